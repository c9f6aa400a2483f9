"""What the evaluations of a run found beside its held-out examples: scores, answers, a judge's verdicts, overlaps.

::

    eval/NAME/MODEL/             scores.jsonl, answers.jsonl (not of standard benchmarks)
    eval/mt-bench-answers/MODEL/ answers.jsonl, whose ratings are eval/mt-bench/MODEL/ratings.jsonl

MODEL may be a rival, whose answers were stored. Scores and answers come from these files; ``results.json`` lends
intervals, and alone has what the judge said.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spintune.data.contamination import SIZES
from spintune.evaluation.harness import benchmarks
from spintune.evaluation.judge import Canary, in_words
from spintune.evaluation.scores import SCORES, ScoreTable, read_scores
from spintune.evaluation.statistics import Interval
from spintune.recipe import HELDOUT, IFEVAL, MT_BENCH, MT_BENCH_ANSWERS, QUESTIONS, read_yaml
from spintune.storage import read_json_lines

Facts = Mapping[str, Any]
Known = Mapping[tuple[str, str], Interval]
"""Intervals of results.json by (model, measure)."""

_ANSWERS_OF = {IFEVAL: IFEVAL, QUESTIONS: QUESTIONS, MT_BENCH: MT_BENCH_ANSWERS}
"""The folders with answers of evaluations that keep them."""


@dataclass(frozen=True)
class ReportedAnswer:
    """A model's answer to one item, turn by turn; what nobody measured is None or empty.

    Attributes:
        turns: what was asked.
        answers: one to each turn.
        finished: it ended by itself, and was not cut.
        tokens: its length.
        followed: IFEval's instructions, and whether the answer follows each, strictly.
        ratings: the judge's, by turn; None where it gave none.
    """

    turns: tuple[str, ...]
    answers: tuple[str, ...]
    reference: str | None = None
    finished: bool | None = None
    tokens: int | None = None
    rouge_l: float | None = None
    exact_match: bool | None = None
    followed: tuple[tuple[str, bool], ...] = ()
    ratings: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation, of every model and rival of which anything is there.

    Attributes:
        scores: item by item, by model.
        replies: by model, then by the item's id; empty where answers are not kept.
        place: the folder of the answers.
        known, known_clean: intervals over all items, and over those that share no long run of words with training data.
    """

    name: str
    scores: Mapping[str, ScoreTable]
    replies: Mapping[str, Mapping[str, ReportedAnswer]] = field(default_factory=dict)
    place: str = ""
    known: Known = field(default_factory=dict)
    known_clean: Known = field(default_factory=dict)


@dataclass(frozen=True)
class JudgeVerdicts:
    """Of one pair of models in one evaluation; rates are shares of the first one's wins, None without verdicts.

    Attributes:
        length_controlled: the win rate at equal length of answers.
        flip_rate: contests whose verdict hangs on the order.
        words: the same as one line.
    """

    evaluation: str
    first: str
    second: str
    wins: int
    ties: int
    losses: int
    invalid: int
    win_rate: Interval | None
    length_controlled: Interval | None
    flip_rate: float | None
    words: str


@dataclass(frozen=True)
class JudgeRatings:
    """Mean ratings of one model, over all turns and by turn; ``invalid`` are those that could not be read."""

    model: str
    items: int
    invalid: int
    mean: Interval | None
    turns: tuple[Interval | None, ...]


@dataclass(frozen=True)
class JudgeReport:
    """What a judge said.

    Attributes:
        canaries: how constant nonsense fared, by evaluation.
        problems: why verdicts are missing.
        cost: requests, completion_tokens, dollars.
    """

    judge: str
    canaries: Mapping[str, Canary]
    pairs: tuple[JudgeVerdicts, ...]
    ratings: tuple[JudgeRatings, ...]
    problems: tuple[str, ...]
    cost: Facts


@dataclass(frozen=True)
class BenchmarkOverlap:
    """Items of an evaluation that share a run of so many words with a training row; ``unclean`` are ids."""

    evaluation: str
    items: int
    touched: Mapping[int, int]
    unclean: frozenset[str]


# Evaluations --------------------------------------------------------------------------------------------------------


def evaluations_of(recipe: Facts) -> list[str]:
    """What a recipe's ``eval`` names beside held-out examples, in its order; a task whose file is gone has no name."""
    names = []
    for task in (known.task for name in recipe["eval"] if name != HELDOUT for known in benchmarks([name])):
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
        elif Path(task).is_file():
            names.append(str(read_yaml(Path(task), "task").get("task")))
    return names


def rivals_of(recipe: Facts) -> list[str]:
    return [Path(path).stem for path in (recipe.get("evaluation") or {}).get("rivals", [])]


def missing_evaluations(recipe: Facts, stages: Collection[str], models: Sequence[str]) -> dict[str, list[str]]:
    """Models that an evaluation is not done of, by its name."""
    found = {}
    for name in evaluations_of(recipe):
        place = _ANSWERS_OF.get(name, name)
        if without := [model for model in models if f"eval/{place}/{model}" not in stages]:
            found[name] = without
    return found


def missing_verdicts(recipe: Facts, results: Facts) -> Iterator[str]:
    """What of a judge's verdicts is not there, in words."""
    if recipe.get("judge") and "judge" not in results:
        yield "the judge's verdicts"
    elif recipe.get("judge") and results["judge"]["problems"]:
        yield "a part of the judge's verdicts"


def read_evaluations(
    folder: Path, recipe: Facts, results: Facts, stages: Collection[str], models: Sequence[str]
) -> tuple[EvaluationResult, ...]:
    """The evaluations of which anything is there, in the recipe's order."""
    names = [*models, *rivals_of(recipe)]
    told = results.get("benchmarks", {})
    found = []
    for name in dict.fromkeys([*evaluations_of(recipe), *told]):
        scores = {model: one for model in names if (one := _scores(folder, f"eval/{name}/{model}", stages))}
        place = _ANSWERS_OF.get(name)
        replies = {model: rows for model in names if place and (rows := _replies(folder, place, model, scores, stages))}
        if scores or replies:
            intervals = told.get(name, {})
            known, clean = _known(intervals.get("scores", {})), _known(intervals.get("clean", {}))
            found.append(EvaluationResult(name, scores, replies, f"eval/{place}" if replies else "", known, clean))
    return tuple(found)


def _known(models: Facts) -> Known:
    return {
        (model, measure): Interval(**interval)
        for model, measures in models.items()
        for measure, interval in measures.items()
    }


def _scores(folder: Path, stage: str, stages: Collection[str]) -> ScoreTable | None:
    there = stage in stages and (folder / stage / SCORES).is_file()
    scores = read_scores(folder / stage) if there else None
    return scores if scores and scores.items else None


def _replies(
    folder: Path, place: str, model: str, scores: Mapping[str, ScoreTable], stages: Collection[str]
) -> dict[str, ReportedAnswer]:
    stage = f"eval/{place}/{model}"
    if stage not in stages:
        return {}
    measured = {item.id: item.scores for item in scores[model].items} if model in scores else {}
    rated: dict[str, list[int | None]] = {}
    ratings = folder / "eval" / MT_BENCH / model / "ratings.jsonl"
    if place == _ANSWERS_OF[MT_BENCH] and ratings.is_file():
        for row in read_json_lines(ratings):
            rated.setdefault(row["id"], []).append(row["score"])
    return {
        row["id"]: _reply(row, measured.get(row["id"], {}), rated.get(row["id"], []))
        for row in read_json_lines(folder / stage / "answers.jsonl")
    }


def _reply(row: Facts, measured: Mapping[str, float], ratings: Sequence[int | None]) -> ReportedAnswer:
    if "turns" in row:
        return ReportedAnswer(tuple(row["turns"]), tuple(row["answers"]), ratings=tuple(ratings))
    return ReportedAnswer(
        turns=(row["prompt"],),
        answers=(row["answer"],),
        reference=row.get("reference"),
        finished=row["finish_reason"] == "stop" if "finish_reason" in row else None,
        tokens=row.get("answer_tokens"),
        rouge_l=measured.get("rouge_l"),
        exact_match=bool(measured["exact_match"]) if "exact_match" in measured else None,
        followed=tuple(zip(row.get("types", []), row.get("strict", []), strict=True)),
    )


# The judge ----------------------------------------------------------------------------------------------------------


def read_judging(found: Facts) -> JudgeReport:
    """What results.json says of the judge."""
    return JudgeReport(
        judge=found["judge"],
        canaries={
            name: Canary(one["judge"], one["items"], tuple(one["preferences"]), one["limit"])
            for name, one in found["canary"].items()
        },
        pairs=tuple(
            _verdicts(evaluation, names, facts, found["judge"])
            for evaluation, pairs in found["pairs"].items()
            for names, facts in pairs.items()
        ),
        ratings=tuple(
            JudgeRatings(
                model,
                facts["items"],
                facts["invalid"],
                _interval(facts["mean"]),
                tuple(_interval(mean) for _, mean in sorted(facts["turns"].items())),
            )
            for model, facts in found["ratings"].items()
        ),
        problems=tuple(found["problems"]),
        cost={key: found["cost"][key] for key in ("requests", "completion_tokens", "dollars")},
    )


def _verdicts(evaluation: str, names: str, facts: Facts, judge: str) -> JudgeVerdicts:
    first, _, second = names.partition(" - ")
    return JudgeVerdicts(
        evaluation=evaluation,
        first=first,
        second=second,
        wins=facts["wins"],
        ties=facts["ties"],
        losses=facts["losses"],
        invalid=facts["invalid"],
        win_rate=_interval(facts["win_rate"]),
        length_controlled=_interval((facts["length_controlled"] or {}).get("rate")),
        flip_rate=facts["flip_rate"],
        words=f"{evaluation}: {in_words(facts, first, second, judge)}",
    )


def _interval(found: Facts | None) -> Interval | None:
    return Interval(**found) if found else None


# Overlaps -----------------------------------------------------------------------------------------------------------


def read_overlaps(facts: Facts) -> tuple[BenchmarkOverlap, ...]:
    """What the stage ``contamination`` says of itself."""
    return tuple(
        BenchmarkOverlap(name, one["items"], {size: one[str(size)] for size in SIZES}, frozenset(one["unclean"]))
        for name, one in facts["sets"].items()
    )
