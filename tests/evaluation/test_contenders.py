"""What is compared: models of runs and files of answers by their names, and the scores of saved answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from spintune.evaluation.contenders import tables
from spintune.evaluation.scores import ScoreTable
from spintune.recipe import Recipe
from spintune.stages.registry import evaluations_of

REASONED = ["<think>no</think>yes", "no\n</think>\n\nyes", "yes", "<think>It is yes", "no"]
RIGHT = [1.0, 1.0, 1.0, 0.0, 0.0]
"""Whether each says yes, by what follows its reasoning; one was cut before its answer."""


def saved(path: Path, answers: list[str], **more: Any) -> Path:
    rows = [{"prompt": f"Question {n}?", "answer": text, **more} for n, text in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_saved_answers_are_scored_without_their_reasoning(tmp_path: Path) -> None:
    found = tables([str(saved(tmp_path / "one.jsonl", REASONED, reference="<think>b</think>yes"))])["one"]
    assert list(found["exact_match"].values.values()) == RIGHT
    assert list(found["characters"].values.values()) == [3, 3, 3, 0, 2]


def test_answers_to_questions_are_scored_without_their_reasoning(tmp_path: Path) -> None:
    questions = saved(tmp_path / "questions.jsonl", ["<think>b</think>yes"] * 5)
    rival = saved(tmp_path / "rival.jsonl", REASONED)
    section = {"questions": str(questions), "rivals": [str(rival)]}
    recipe = Recipe.model_validate({"model": "m", "out": "o", "eval": ["questions"], "evaluation": section})
    (evaluation,) = evaluations_of(recipe)
    scores = evaluation.rivals["rival"].scores
    assert isinstance(scores, ScoreTable)
    assert [item.scores["exact_match"] for item in scores.items] == RIGHT
    assert [item.scores["characters"] for item in scores.items] == [3, 3, 3, 0, 2]
