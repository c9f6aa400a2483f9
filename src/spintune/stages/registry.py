"""The evaluations that a recipe names, apart from held-out examples, each a function from a model to scores.

::

    eval/ifeval/MODEL/             answers.jsonl, scores.jsonl
    eval/questions/MODEL/          answers.jsonl, scores.jsonl    MODEL may be a rival, whose answers were stored
    eval/mt-bench-answers/MODEL/   answers.jsonl, which the judge rates (judge.py)
    eval/TASK/MODEL/               rows.jsonl, scores.jsonl       a benchmark of lm-evaluation-harness or of a user

Their files are read before anything is trained, so that a mistake in one shows at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spintune.errors import DataError, RecipeError
from spintune.evaluation.answers import StoredAnswer, pair_answers, read_answers
from spintune.evaluation.generate_answers import write_answers
from spintune.evaluation.harness import Benchmark, benchmarks, check_benchmarks, run_benchmarks, task_inputs
from spintune.evaluation.harness_results import standing_scores
from spintune.evaluation.ifeval.prompts import read_prompts, require_langdetect
from spintune.evaluation.ifeval.scoring import IFEVAL_SCALES, check, item_score
from spintune.evaluation.rating import Question, read_questions
from spintune.evaluation.scores import ItemScore, ScoreScale, ScoreTable
from spintune.metrics import answer_metrics, metric_inputs
from spintune.recipe import HELDOUT, IFEVAL, MT_BENCH, MT_BENCH_ANSWERS, QUESTIONS, EvaluationSection, Recipe
from spintune.records import Completion, Message
from spintune.run_folder import BASE, BASELINE, SFT
from spintune.stages.context import RunContext
from spintune.stages.iterates import LoadedIterate
from spintune.storage import digest_file
from spintune.text.reasoning import scored_answer, without_reasoning
from spintune.typed_json import JsonObject, to_json


@dataclass(frozen=True)
class EvaluationOutcome:
    """What one evaluation found out about one model.

    Attributes:
        scores: item by item; None when a judge rates the answers later.
        files: other rows to keep, by file name.
        facts: further facts of the manifest.
    """

    scores: ScoreTable | None
    files: dict[str, list[JsonObject]]
    facts: JsonObject = field(default_factory=dict)


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of all models.

    Attributes:
        name: in tables, and of its folder.
        inputs: what its outcome depends on, apart from the model.
        run: evaluates one model; None when that cannot be done, after a note about the reason.
        rivals: the outcomes of other models, whose answers were stored.
    """

    name: str
    inputs: JsonObject
    run: Callable[[RunContext, LoadedIterate], EvaluationOutcome | None]
    rivals: dict[str, EvaluationOutcome] = field(default_factory=dict)


def evaluations_of(recipe: Recipe) -> list[Evaluation]:
    """The evaluations that a recipe's ``eval`` names, without held-out examples, in its order. Reads all their files.

    Raises RecipeError, DataError or MissingExtraError for the first mistake in any of them.
    """
    section = recipe.evaluation
    builtin = {IFEVAL: _ifeval, QUESTIONS: _questions, MT_BENCH: _mt_bench}
    others = [name for name in recipe.eval if name not in (HELDOUT, *builtin)]
    titles = check_benchmarks(benchmarks(others, section.shots), _data_folder(section))
    found: list[Evaluation] = []
    for name in recipe.eval:
        if name in builtin:
            found.append(builtin[name](section))
        elif name != HELDOUT:
            found += [_benchmark(section, one, titles[one.task]) for one in benchmarks([name], section.shots)]
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1 or (name in (HELDOUT, *builtin) and name not in recipe.eval):
            raise RecipeError(f"eval: there are several evaluations called {name}; rename the task of one of them")
    return found


def _data_folder(section: EvaluationSection) -> Path | None:
    return Path(section.folder).expanduser() if section.folder else None


# IFEval --------------------------------------------------------------------------------------------------------------


def _ifeval(section: EvaluationSection) -> Evaluation:
    path = Path(section.ifeval or "")
    prompts = read_prompts(path)[: section.limit]
    require_langdetect(prompts)

    def run(context: RunContext, player: LoadedIterate) -> EvaluationOutcome:
        completions = _answer(context, player, [[Message("user", prompt.text)] for prompt in prompts], IFEVAL)
        rows, items = [], []
        for prompt, completion in zip(prompts, completions, strict=True):
            followed = check(prompt, scored_answer(completion.text))
            rows.append({"id": prompt.key, "prompt": prompt.text, **_answer_row(completion), **to_json(followed)})
            items.append(item_score(prompt, followed))
        return EvaluationOutcome(ScoreTable(IFEVAL_SCALES, tuple(items)), {"answers.jsonl": rows})

    return Evaluation(IFEVAL, _answer_inputs(section, path), run)


# Questions -----------------------------------------------------------------------------------------------------------


def _questions(section: EvaluationSection) -> Evaluation:
    path = Path(section.questions or "")
    questions = read_answers(path)[: section.limit]
    if missing := [question.where for question in questions if not question.prompt.strip()]:
        raise DataError(f"{missing[0]}: a question without a prompt; fill it in or delete the row")

    def run(context: RunContext, player: LoadedIterate) -> EvaluationOutcome:
        prompts = [[Message("user", question.prompt)] for question in questions]
        answers = map(_answer_row, _answer(context, player, prompts, QUESTIONS))
        return _score_answers(list(zip(questions, answers, strict=True)))

    rivals = {}
    for rival in map(Path, section.rivals):
        if rival.stem in rivals:
            raise RecipeError(f"evaluation.rivals: two are called {rival.stem}; rename one of the files")
        if rival.stem in (BASE, SFT, BASELINE) or rival.stem.startswith("iterate-"):
            raise RecipeError(f"evaluation.rivals: {rival} has the name of a model of the run; rename it")
        pairing = pair_answers(questions, read_answers(rival))
        rivals[rival.stem] = _score_answers([(one, {"answer": other.answer}) for one, other in pairing.pairs])
    rival_digests = [digest_file(Path(rival)) for rival in section.rivals]
    inputs = {**_answer_inputs(section, path), "rivals": rival_digests, **metric_inputs()}
    return Evaluation(QUESTIONS, inputs, run, rivals)


def _score_answers(pairs: Sequence[tuple[StoredAnswer, JsonObject]]) -> EvaluationOutcome:
    """Scores answers against the reference of each question, or its writers' answer, where they are not empty."""
    metrics = answer_metrics()
    rows, items = [], []
    for question, row in pairs:
        text = scored_answer(row["answer"])
        reference = question.reference or question.answer
        rows.append({"id": question.id, "prompt": question.prompt, "reference": reference, **row})
        references = [without_reasoning(reference)] if reference.strip() else []
        scores = {metric.name: metric.score(text, references) for metric in metrics if references}
        scores["characters"] = float(len(text.strip()))
        items.append(ItemScore(question.id, f"{question.prompt}\n\n{reference}", scores))
    scored = [metric for metric in metrics if any(metric.name in item.scores for item in items)]
    scales = {metric.name: ScoreScale(metric.better, metric.right_or_wrong) for metric in scored}
    scales["characters"] = ScoreScale(better=None)
    return EvaluationOutcome(ScoreTable(scales, tuple(items)), {"answers.jsonl": rows})


# MT-Bench ------------------------------------------------------------------------------------------------------------


def _mt_bench(section: EvaluationSection) -> Evaluation:
    path = Path(section.mt_bench or "")
    questions = read_questions(path)[: section.limit]

    def run(context: RunContext, player: LoadedIterate) -> EvaluationOutcome:
        rows = [
            {"id": question.id, "category": question.category, "turns": question.turns, "answers": answers}
            for question, answers in zip(questions, _answer_turns(context, player, questions), strict=True)
        ]
        return EvaluationOutcome(None, {"answers.jsonl": rows})

    return Evaluation(MT_BENCH_ANSWERS, _answer_inputs(section, path), run)


def _answer_turns(context: RunContext, player: LoadedIterate, questions: Sequence[Question]) -> list[list[str]]:
    """Answers to all turns of each question. A later turn is asked after the earlier turns and their answers."""
    answers: list[list[str]] = [[] for _ in questions]
    for turn in range(max(len(question.turns) for question in questions)):
        places = [place for place, question in enumerate(questions) if len(question.turns) > turn]
        conversations = []
        for place in places:
            conversation: list[Message] = []
            for prompt, answer in zip(questions[place].turns, answers[place], strict=False):
                conversation += [Message("user", prompt), Message("assistant", answer)]
            conversations.append([*conversation, Message("user", questions[place].turns[turn])])
        completions = _answer(context, player, conversations, f"{MT_BENCH}, turn {turn + 1}")
        for place, completion in zip(places, completions, strict=True):
            answers[place].append(scored_answer(completion.text))
    return answers


# Benchmarks ----------------------------------------------------------------------------------------------------------


def _benchmark(section: EvaluationSection, benchmark: Benchmark, title: str) -> Evaluation:
    """A benchmark of lm-evaluation-harness, or a user's own."""

    def run(context: RunContext, player: LoadedIterate) -> EvaluationOutcome | None:
        from spintune.evaluation.harness_model import InMemory

        report = run_benchmarks(
            InMemory(player.engine, player.writer, player.loaded.tokenizer, player.template, player.template_options),
            [benchmark],
            limit=section.limit,
            chat=section.chat,
            data_dir=_data_folder(section),
            progress=context.progress,
            name=player.iterate.name,
        )
        if not report.results:
            return None
        rows = [to_json(row) for result in report.results for row in result.rows]
        return EvaluationOutcome(standing_scores(report.results), {"rows.jsonl": rows}, to_json(report))

    inputs = {
        **task_inputs(benchmark, title, _data_folder(section)),
        "shots": benchmark.shots,
        "limit": section.limit,
        "chat": section.chat,
    }
    return Evaluation(title, inputs, run)


# Answers -------------------------------------------------------------------------------------------------------------


def _answer_inputs(section: EvaluationSection, path: Path) -> JsonObject:
    return {"file": digest_file(path), "limit": section.limit, "max_new_tokens": section.max_new_tokens}


def _answer(
    context: RunContext, player: LoadedIterate, conversations: Sequence[Sequence[Message]], title: str
) -> list[Completion]:
    """Greedy answers to conversations, in their order."""
    renderer = player.renderer("last")
    return write_answers(
        player.writer,
        [renderer.prompt(list(conversation)) for conversation in conversations],
        context.recipe.evaluation.max_new_tokens,
        context.progress,
        f"{player.iterate.name}: {title}",
        player.loaded.max_input_length,
    )


def _answer_row(completion: Completion) -> JsonObject:
    return {
        "answer": completion.text,
        "finish_reason": completion.finish_reason,
        "answer_tokens": len(completion.ids),
    }
