"""Right answers to the tasks of a mixture: by quadrant, by cluster, on tasks that were trained and on held-out ones."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from spintune.evaluation.heldout import HeldoutAnswer
from spintune.evaluation.scores import SCORES, ItemScore, ScoreScale
from spintune.evaluation.statistics import bootstrap
from spintune.mixtures.answers import correct
from spintune.mixtures.rendering import MixtureProvenance, provenance
from spintune.mixtures.selectors import select
from spintune.mixtures.tasks import MixtureTask, TaskItem, load_tasks
from spintune.recipe import MixtureSection
from spintune.records import write_records
from spintune.stages.context import RunContext

Right = dict[str, bool]
"""Whether each held-out example was answered rightly, by example id."""


def judge_tasks(
    context: RunContext, section: MixtureSection, judged: Mapping[str, Sequence[HeldoutAnswer]], reference: str
) -> dict[str, Any]:
    """Accuracy of every model in every group of questions, and each one's paired difference from ``reference``.

    An answer is right by the rules of :func:`spintune.mixtures.answers.correct`. Whether it is stands in
    eval/tasks/MODEL for comparisons.
    """
    folder = Path(section.folder).expanduser() if section.folder else None
    loaded = load_tasks(section.tasks, folder).tasks
    tasks = {task.name: task for task in loaded}
    held_out = {task.name for task in select(section.held_out, loaded, "data.mixture.held_out")}
    questions = {
        example.id: (tasks[found.task], found)
        for example in context.heldout
        if (found := provenance(example.source)) and found.task in tasks
    }
    groups: dict[str, list[str]] = defaultdict(list)
    quadrants: dict[str, str] = {}
    for id, (task, found) in questions.items():
        trained = "held-out tasks" if task.name in held_out else "trained tasks"
        kind = (
            f"{'few-shot' if found.shots else 'zero-shot'}, {'chain of thought' if found.kind == 'cot' else 'direct'}"
        )
        quadrants[id] = f"{trained}, {kind}"
        for group in (trained, quadrants[id], f"cluster {task.cluster}", f"task {task.name}"):
            groups[group].append(id)
    right = {name: _right(rows, questions) for name, rows in judged.items()}
    for name, answers in right.items():
        _keep(context, name, {row.id: f"{row.prompt}\n\n{row.reference}" for row in judged[name]}, answers, quadrants)
    return {
        "accuracy": {name: _means(groups, answers) for name, answers in right.items()},
        "differences": {
            f"{name} - {reference}": _differences(groups, answers, right[reference])
            for name, answers in right.items()
            if name != reference
        },
    }


def _keep(
    context: RunContext, name: str, texts: Mapping[str, str], answers: Right, quadrants: Mapping[str, str]
) -> None:
    """Writes which questions a model answered rightly, a measure for each kind of question."""
    stage = f"eval/tasks/{name}"
    inputs = {"answers": context.run.digest(f"eval/heldout/{name}"), "quadrants": quadrants}
    if context.run.finished(stage, inputs) is None:
        path = context.run.folder / stage / SCORES
        write_records(path, (ItemScore(id, texts[id], {quadrants[id]: float(right)}) for id, right in answers.items()))
        measures = {quadrant: asdict(ScoreScale(right_or_wrong=True)) for quadrant in sorted(set(quadrants.values()))}
        context.run.finish(stage, inputs, [path], {"items": len(answers), "measures": measures})


def _right(rows: Sequence[HeldoutAnswer], questions: Mapping[str, tuple[MixtureTask, MixtureProvenance]]) -> Right:
    items: dict[str, dict[int, TaskItem]] = {}
    answers: Right = {}
    for row in rows:
        if row.id in questions:
            task, found = questions[row.id]
            known = items.setdefault(task.name, {item.number: item for item in task.items})
            answers[row.id] = correct(task, row.reference, row.answer, known.get(found.row))
    return answers


def _means(groups: Mapping[str, Sequence[str]], answers: Right) -> dict[str, Any]:
    return {
        group: {"items": len(values), **bootstrap(values).to_json()}
        for group, ids in groups.items()
        if (values := [float(answers[id]) for id in ids if id in answers])
    }


def _differences(groups: Mapping[str, Sequence[str]], answers: Right, others: Right) -> dict[str, Any]:
    return {
        group: {"items": len(values), **bootstrap(values).to_json()}
        for group, ids in groups.items()
        if (values := [float(answers[id]) - float(others[id]) for id in ids if id in answers and id in others])
    }
