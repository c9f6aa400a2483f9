"""Reads the evaluations of a run, apart from its held-out examples.

::

    eval/NAME/MODEL/             scores.jsonl, answers.jsonl (not for standard benchmarks)
    eval/mt-bench-answers/MODEL/ answers.jsonl, rated in eval/mt-bench/MODEL/ratings.jsonl

MODEL may be a rival, whose answers were stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spintune.evaluation.harness import benchmarks
from spintune.evaluation.scores import SCORES, ScoreTable, read_scores
from spintune.recipe import HELDOUT, IFEVAL, MT_BENCH, MT_BENCH_ANSWERS, QUESTIONS, read_yaml
from spintune.report.facts import Answers, EvaluationResult, ReportedAnswer, checked_answer
from spintune.run_folder import MANIFEST
from spintune.storage import read_json_lines
from spintune.typed_json import JsonObject

_ANSWERS_OF = {IFEVAL: IFEVAL, QUESTIONS: QUESTIONS, MT_BENCH: MT_BENCH_ANSWERS}


def answers_folder(evaluation: str) -> str | None:
    """The folder of an evaluation's answers inside the run folder; None for evaluations that keep none."""
    return f"eval/{_ANSWERS_OF[evaluation]}" if evaluation in _ANSWERS_OF else None


def evaluations_of(recipe: JsonObject) -> list[str]:
    """What a recipe's ``eval`` names apart from held-out examples, in its order, without tasks whose file is gone."""
    names = []
    for task in (known.task for name in recipe["eval"] if name != HELDOUT for known in benchmarks([name])):
        if not task.endswith((".yaml", ".yml")):
            names.append(task)
        elif Path(task).is_file():
            names.append(str(read_yaml(Path(task), "task").get("task")))
    return names


def rivals_of(recipe: JsonObject) -> tuple[str, ...]:
    """Names of those whose stored answers are compared with the models'."""
    return tuple(Path(path).stem for path in (recipe.get("evaluation") or {}).get("rivals", []))


def read_evaluations(folder: Path, names: Sequence[str], models: Sequence[str]) -> tuple[EvaluationResult, ...]:
    """The evaluations ``names`` that have any results, for ``models``, which include rivals."""
    found = []
    for name in names:
        scores = {model: one for model in models if (one := _scores(folder / "eval" / name / model))}
        place, replies = answers_folder(name), {}
        if place:
            ratings = folder / "eval" / name
            replies = {
                model: rows
                for model in models
                if (rows := _replies(folder / place / model, scores.get(model), ratings / model / "ratings.jsonl"))
            }
        if scores or replies:
            found.append(EvaluationResult(name, scores, replies, place or ""))
    return tuple(found)


def _scores(stage: Path) -> ScoreTable | None:
    there = (stage / MANIFEST).is_file() and (stage / SCORES).is_file()
    scores = read_scores(stage) if there else None
    return scores if scores and scores.items else None


def _replies(stage: Path, scores: ScoreTable | None, ratings: Path) -> Answers:
    if not (stage / MANIFEST).is_file():
        return {}
    measured = {item.id: item.scores for item in scores.items} if scores else {}
    rated: dict[str, list[int | None]] = {}
    for row in read_json_lines(ratings) if ratings.is_file() else []:
        rated.setdefault(row["id"], []).append(row["score"])
    return {
        row["id"]: _reply(stage, row, measured.get(row["id"], {}), rated.get(row["id"], []))
        for row in read_json_lines(stage / "answers.jsonl")
    }


def _reply(
    stage: Path, row: JsonObject, measured: Mapping[str, float], ratings: Sequence[int | None]
) -> ReportedAnswer:
    if "turns" in row:
        return checked_answer(stage, texts=row["answers"], turns=row["turns"], ratings=ratings)
    return checked_answer(
        stage,
        texts=(row["answer"],),
        turns=(row["prompt"],),
        reference=row.get("reference"),
        finished=row["finish_reason"] == "stop" if "finish_reason" in row else None,
        tokens=row.get("answer_tokens"),
        scores=measured,
        followed=tuple(zip(row.get("types", []), row.get("strict", []), strict=True)),
    )
