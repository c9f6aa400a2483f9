"""Accuracy on the tasks of a mixture: by quadrant, by cluster, on trained and on held-out tasks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from spintune.checkers import TASKS, Verdicts, build_checker
from spintune.evaluation.heldout import HeldoutAnswer
from spintune.evaluation.scores import SCORES, ItemScore, ScoreScale, ScoreTable
from spintune.evaluation.statistics import bootstrap
from spintune.mixtures.answers import TaskRules, correct
from spintune.mixtures.rendering import MixtureProvenance, provenance
from spintune.mixtures.selectors import select
from spintune.mixtures.tasks import MixtureTask, item_numbered, load_section
from spintune.recipe import MixtureSection, Recipe
from spintune.records import write_records
from spintune.results import GroupAccuracy, TaskAccuracies
from spintune.stages.context import RunContext
from spintune.text.reasoning import scored_answer, without_reasoning

Questions = Mapping[str, tuple[MixtureTask, MixtureProvenance]]
"""The held-out examples that a task of the mixture gave, by example id."""

Groups = Mapping[str, Sequence[str]]
"""Ids of examples, by group."""

Correct = dict[str, bool]
"""Whether an answer is correct, by example id."""


def checker_of(recipe: Recipe) -> Verdicts | None:
    """The checker of a run's answers, if it has one."""
    setting, mixture = recipe.evaluation.checker, recipe.data.mixture
    if setting == TASKS and mixture:
        return TaskRules(load_section(mixture, recipe.data.bad_row_policy).tasks)
    return build_checker(setting) if setting is not None else None


def judge_tasks(
    context: RunContext, section: MixtureSection, judged: Mapping[str, Sequence[HeldoutAnswer]], reference: str
) -> TaskAccuracies:
    """Accuracy of every model in every group of questions, and its paired difference from the model ``reference``.

    An answer is correct by the rules of :func:`spintune.mixtures.answers.correct`. Each model's answers are also scored
    in eval/tasks/MODEL, for comparisons.
    """
    loaded = load_section(section, context.recipe.data.bad_row_policy).tasks
    tasks = {task.name: task for task in loaded}
    held_out = {task.name for task in select(section.held_out, loaded, "data.mixture.held_out")}
    questions = {
        example.id: (tasks[found.task], found)
        for example in context.reporting
        if (found := provenance(example.source)) and found.task in tasks
    }
    quadrants = {id: _quadrant(task.name in held_out, found) for id, (task, found) in questions.items()}
    groups = _groups(questions, quadrants)
    correct = {name: _correct(rows, questions) for name, rows in judged.items()}
    for name, answers in correct.items():
        texts = {row.id: f"{row.prompt}\n\n{row.reference}" for row in judged[name]}
        _write_scores(context, name, texts, answers, quadrants)
    return TaskAccuracies(
        accuracy={name: _means(groups, answers) for name, answers in correct.items()},
        differences={
            f"{name} - {reference}": _means(groups, _differences(answers, correct[reference]))
            for name, answers in correct.items()
            if name != reference
        },
    )


def _trained(quadrant: str) -> str:
    return quadrant.partition(",")[0]


def _quadrant(held_out: bool, found: MixtureProvenance) -> str:
    tasks = "held-out tasks" if held_out else "trained tasks"
    shots = "few-shot" if found.shots else "zero-shot"
    return f"{tasks}, {shots}, {'chain of thought' if found.kind == 'cot' else 'direct'}"


def _groups(questions: Questions, quadrants: Mapping[str, str]) -> Groups:
    groups: dict[str, list[str]] = defaultdict(list)
    for id, (task, _) in questions.items():
        quadrant = quadrants[id]
        for group in (_trained(quadrant), quadrant, f"cluster {task.cluster}", f"task {task.name}"):
            groups[group].append(id)
    return groups


def _correct(rows: Sequence[HeldoutAnswer], questions: Questions) -> Correct:
    answers: Correct = {}
    for row in rows:
        if row.id in questions:
            task, found = questions[row.id]
            texts = without_reasoning(row.reference), scored_answer(row.answer)
            answers[row.id] = correct(task, *texts, item_numbered(task, found.row))
    return answers


def _write_scores(
    context: RunContext, name: str, texts: Mapping[str, str], answers: Correct, quadrants: Mapping[str, str]
) -> None:
    """Scores a model's answers, one measure per quadrant."""
    stage = f"eval/tasks/{name}"
    answered = context.run.digest(f"eval/heldout/{name}")
    inputs = {"answers": answered, "quadrants": quadrants, "tasks": context.task_digests}
    if context.run.finished(stage, inputs) is None:
        items = tuple(ItemScore(id, texts[id], {quadrants[id]: float(right)}) for id, right in answers.items())
        scales = dict.fromkeys(sorted(set(quadrants.values())), ScoreScale(right_or_wrong=True))
        path = context.run.folder / stage / SCORES
        write_records(path, items)
        context.run.finish(stage, inputs, [path], ScoreTable(scales, items).facts())


def _means(groups: Groups, values: Mapping[str, float]) -> dict[str, GroupAccuracy]:
    """The mean of each group that has values, with its interval."""
    found = {}
    for group, ids in groups.items():
        if known := [float(values[id]) for id in ids if id in values]:
            found[group] = GroupAccuracy(len(known), **vars(bootstrap(known)))
    return found


def _differences(answers: Correct, others: Correct) -> dict[str, float]:
    """By the ids of examples that both models answered."""
    return {id: float(right) - others[id] for id, right in answers.items() if id in others}
