"""The evaluations that a recipe names beside its held-out examples, each a function from a model to scores.

::

    eval/ifeval/MODEL/         answers.jsonl, scores.jsonl
    eval/questions/MODEL/      answers.jsonl, scores.jsonl     MODEL may be a rival, whose answers were stored
    eval/mt-context-answers/MODEL/   answers.jsonl, which the judge rates (judge.py)
    eval/TASK/MODEL/           rows.jsonl, scores.jsonl        a benchmark of lm-evaluation-harness, or of one's own

Files are read before anything is trained, so that a mistake in one shows at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spintune.errors import DataError, RecipeError
from spintune.evaluation.answers import StoredAnswer, pair_answers, read_answers
from spintune.evaluation.generate_answers import write_answers
from spintune.evaluation.harness import Benchmark, benchmarks, check_benchmarks, run_benchmarks
from spintune.evaluation.harness_results import HarnessResult
from spintune.evaluation.ifeval.prompts import Prompt, read_prompts, require_langdetect
from spintune.evaluation.ifeval.scoring import check
from spintune.evaluation.rating import Question, read_questions
from spintune.evaluation.scores import ItemScore, ScoreScale, ScoreTable
from spintune.metrics import answer_metrics, metric_inputs
from spintune.recipe import HELDOUT, IFEVAL, MT_BENCH, MT_BENCH_ANSWERS, QUESTIONS, EvaluationSection, Recipe
from spintune.records import Message
from spintune.run_folder import BASE, BASELINE, SFT
from spintune.stages.context import RunContext
from spintune.stages.iterates import LoadedIterate
from spintune.storage import digest_file

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationOutcome:
    """What one evaluation found out about one model.

    Attributes:
        scores: item by item; None where a judge gives them later.
        files: what else is kept, as rows, by the file's name.
        facts: what the manifest says besides.
    """

    scores: ScoreTable | None
    files: dict[str, list[Row]] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One thing that judges models.

    Attributes:
        name: in tables, and of its folder.
        inputs: what decides its outcome, besides the model.
        judge: what finds out; None where it could not be done, which was said then.
        rivals: answers of other models, which were stored.
    """

    name: str
    inputs: dict[str, Any]
    judge: Callable[[RunContext, LoadedIterate], EvaluationOutcome | None]
    rivals: dict[str, EvaluationOutcome] = field(default_factory=dict)


def evaluations_of(recipe: Recipe) -> list[Evaluation]:
    """What a recipe's ``eval`` names, held-out examples apart, in its order; all files are read.

    Raises RecipeError, DataError or MissingExtraError for what is wrong with any of them.
    """
    section = recipe.evaluation
    own = {IFEVAL: _ifeval, QUESTIONS: _questions, MT_BENCH: _mt_bench}
    standard = [name for name in recipe.eval if name not in {HELDOUT, *own}]
    titles = check_benchmarks(benchmarks(standard, section.shots), _folder(section))
    chosen = [
        one
        for name in recipe.eval
        for one in (
            [own[name](section)]
            if name in own
            else [_benchmark(section, known, titles[known.task]) for known in benchmarks([name], section.shots)]
            if name != HELDOUT
            else []
        )
    ]
    names = [one.name for one in chosen]
    for name in names:
        if names.count(name) > 1 or (name in {HELDOUT, *own} and name not in recipe.eval):
            raise RecipeError(f"eval: there are several evaluations called {name}; give the task of one another name")
    return chosen


def _folder(section: EvaluationSection) -> Path | None:
    return Path(section.folder).expanduser() if section.folder else None


# IFEval -------------------------------------------------------------------------------------------------------------

_IFEVAL_SCALES = {
    "prompt_strict": ScoreScale(right_or_wrong=True),
    "instruction_strict": ScoreScale(),
    "prompt_loose": ScoreScale(right_or_wrong=True),
    "instruction_loose": ScoreScale(),
}


def _ifeval(section: EvaluationSection) -> Evaluation:
    path = Path(section.ifeval or "")
    prompts = read_prompts(path)[: section.limit]
    require_langdetect(prompts)

    def judge(context: RunContext, player: LoadedIterate) -> EvaluationOutcome:
        answers = _answers(context, player, [[Message("user", prompt.text)] for prompt in prompts], IFEVAL)
        rows, items = [], []
        for prompt, answer in zip(prompts, answers, strict=True):
            verdict = check(prompt, answer["answer"])
            rows.append({"id": prompt.key, "prompt": prompt.text, **answer, **verdict.to_json()})
            items.append(_followed(prompt, verdict.strict, verdict.loose))
        return EvaluationOutcome(ScoreTable(_IFEVAL_SCALES, tuple(items)), {"answers.jsonl": rows})

    return Evaluation(IFEVAL, _reading(section, path), judge)


def _followed(prompt: Prompt, strict: Sequence[bool], loose: Sequence[bool]) -> ItemScore:
    asked = float(len(prompt.instructions))
    scores = {
        "prompt_strict": float(all(strict)),
        "instruction_strict": float(sum(strict)),
        "prompt_loose": float(all(loose)),
        "instruction_loose": float(sum(loose)),
    }
    return ItemScore(prompt.key, prompt.text, scores, {"instruction_strict": asked, "instruction_loose": asked})


# Questions ----------------------------------------------------------------------------------------------------------


def _questions(section: EvaluationSection) -> Evaluation:
    path = Path(section.questions or "")
    questions = read_answers(path)[: section.limit]
    if missing := [question.where for question in questions if not question.prompt.strip()]:
        raise DataError(f"{missing[0]}: a question without a prompt; fill it in or delete the row")

    def judge(context: RunContext, player: LoadedIterate) -> EvaluationOutcome:
        answers = _answers(context, player, [[Message("user", question.prompt)] for question in questions], QUESTIONS)
        return _answered(list(zip(questions, answers, strict=True)))

    rivals = {}
    for rival in map(Path, section.rivals):
        if rival.stem in rivals:
            raise RecipeError(f"evaluation.rivals: two are called {rival.stem}; rename one of the files")
        if rival.stem in (BASE, SFT, BASELINE) or rival.stem.startswith("iterate-"):
            raise RecipeError(f"evaluation.rivals: {rival} has the name of a model of the run; rename it")
        pairing = pair_answers(questions, read_answers(rival))
        rivals[rival.stem] = _answered([(one, {"answer": other.answer}) for one, other in pairing.pairs])
    rival_digests = [digest_file(Path(rival)) for rival in section.rivals]
    inputs = _reading(section, path) | {"rivals": rival_digests} | metric_inputs()
    return Evaluation(QUESTIONS, inputs, judge, rivals)


def _answered(pairs: Sequence[tuple[StoredAnswer, Row]]) -> EvaluationOutcome:
    """Answers against those of the people who wrote the questions."""
    metrics = answer_metrics()
    scales = {metric.name: ScoreScale(metric.better, metric.right_or_wrong) for metric in metrics}
    rows, items = [], []
    for question, answer in pairs:
        text, reference = answer["answer"], question.reference or question.answer
        rows.append({"id": question.id, "prompt": question.prompt, "reference": reference, **answer})
        scores = {metric.name: metric.score(text, [reference]) for metric in metrics}
        scores["characters"] = float(len(text.strip()))
        items.append(ItemScore(question.id, f"{question.prompt}\n\n{reference}", scores))
    table = ScoreTable({**scales, "characters": ScoreScale(better=None)}, tuple(items))
    return EvaluationOutcome(table, {"answers.jsonl": rows})


# MT-Bench -----------------------------------------------------------------------------------------------------------


def _mt_bench(section: EvaluationSection) -> Evaluation:
    path = Path(section.mt_bench or "")
    questions = read_questions(path)[: section.limit]

    def judge(context: RunContext, player: LoadedIterate) -> EvaluationOutcome:
        return EvaluationOutcome(None, {"answers.jsonl": _dialogues(context, player, questions)})

    return Evaluation(MT_BENCH_ANSWERS, _reading(section, path), judge)


def _dialogues(context: RunContext, player: LoadedIterate, questions: Sequence[Question]) -> list[Row]:
    """Answers to all turns of all questions; a later turn is asked with the answers to the earlier ones in view."""
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        asked = [place for place, question in enumerate(questions) if len(question.turns) > turn]
        conversations = []
        for place in asked:
            said = zip(questions[place].turns, answers[place], strict=False)
            earlier = [Message(role, text) for pair in said for role, text in zip(_ROLES, pair, strict=True)]
            conversations.append([*earlier, Message("user", questions[place].turns[turn])])
        written = _answers(context, player, conversations, f"{MT_BENCH}, turn {turn + 1}")
        for place, row in zip(asked, written, strict=True):
            answers[place].append(row["answer"])
    return [
        {"id": question.id, "category": question.category, "turns": question.turns, "answers": said}
        for question, said in zip(questions, answers, strict=True)
    ]


_ROLES: tuple[Any, Any] = ("user", "assistant")


# Standard benchmarks and one's own ----------------------------------------------------------------------------------


def _benchmark(section: EvaluationSection, benchmark: Benchmark, title: str) -> Evaluation:
    def judge(context: RunContext, player: LoadedIterate) -> EvaluationOutcome | None:
        from spintune.evaluation.harness_model import InMemory

        report = run_benchmarks(
            InMemory(player.engine, player.generator, player.loaded.tokenizer, player.template),
            [benchmark],
            limit=section.limit,
            chat=section.chat,
            data_dir=_folder(section),
            progress=context.progress,
            name=player.iterate.name,
        )
        if not report.results:
            return None
        scales: dict[str, ScoreScale] = {}
        items: dict[str, ItemScore] = {}
        for result in report.results:
            _add(result, result.metric.partition(",")[0] if len(report.results) == 1 else result.task, scales, items)
        rows = [row.to_json() for result in report.results for row in result.rows]
        return EvaluationOutcome(ScoreTable(scales, tuple(items.values())), {"rows.jsonl": rows}, report.to_json())

    inputs = {
        "task": benchmark.task,
        "file": _contents(Path(benchmark.task)),
        "folder": _contents(folder / title) if (folder := _folder(section)) else None,
        "shots": benchmark.shots,
        "limit": section.limit,
        "chat": section.chat,
    }
    return Evaluation(title, inputs, judge)


def _contents(path: Path) -> Any:
    """Digests of a task's YAML file and of the rows beside it, or of a folder of splits."""
    if path.is_dir():
        return {file.name: digest_file(file) for file in sorted(path.iterdir()) if file.is_file()}
    if path.suffix not in (".yaml", ".yml"):
        return None
    from spintune.evaluation.custom_tasks import read_custom_task

    return read_custom_task(path).version


def _add(result: HarnessResult, name: str, scales: dict[str, ScoreScale], items: dict[str, ItemScore]) -> None:
    """A result's standing metric, document by document; nothing where it is no mean and no ratio over documents."""
    metric = result.metrics[result.metric]
    if metric.interval is None:
        return
    values = {}
    for row in result.rows:
        if result.metric in row.scores:
            found = row.scores[result.metric]
            nats, weight = found if isinstance(found, list) else (None, None)
            values[f"{row.task}/{row.doc_id}/{row.doc_hash[:8]}"] = (row, found if nats is None else -nats, weight)
    likelihood = any(weight is not None for _, _, weight in values.values())
    if likelihood:  # bits_per_byte and perplexities: compared as bits, which add up
        name = f"{name} in bits"
    scales[name] = ScoreScale(
        "lower" if likelihood or not metric.higher_is_better else "higher",
        all(value in (0, 1) and weight is None for _, value, weight in values.values()),
    )
    for id, (row, value, weight) in values.items():
        item = items.setdefault(id, ItemScore(id, row.text, {}, {}))
        item.scores[name] = value / math.log(2) if likelihood else float(value)
        if weight is not None:
            item.weights[name] = float(weight)


# What they share ----------------------------------------------------------------------------------------------------


def _reading(section: EvaluationSection, path: Path) -> dict[str, Any]:
    return {"file": digest_file(path), "limit": section.limit, "max_new_tokens": section.max_new_tokens}


def _answers(
    context: RunContext, player: LoadedIterate, conversations: Sequence[Sequence[Message]], title: str
) -> list[Row]:
    """Greedy answers: their text, why they ended, and their tokens."""
    renderer = player.renderer("last")
    completions = write_answers(
        player.generator,
        [renderer.prompt(list(conversation)) for conversation in conversations],
        context.recipe.evaluation.max_new_tokens,
        context.progress,
        f"{player.iterate.name}: {title}",
        player.loaded.max_input_length,
    )
    return [
        {"answer": one.text, "finish_reason": one.finish_reason, "answer_tokens": len(one.ids)} for one in completions
    ]
