"""What is compared: models of runs and files of answers by their names, and the scores of saved answers."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import DataError
from spintune.evaluation.contenders import selection_notes, tables
from spintune.evaluation.scores import ScoreTable
from spintune.recipe import Recipe
from spintune.stages.registry import evaluations_of

Make = Callable[..., Any]

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


def test_references_of_a_file_come_before_those_of_another(tmp_path: Path) -> None:
    good = saved(tmp_path / "good.jsonl", ["yes"] * 2)
    own = saved(tmp_path / "own.jsonl", ["yes", "no"], reference="no")
    assert list(tables([str(own)], good)["own"]["exact_match"].values.values()) == [0, 1]


def test_an_empty_reference_is_none(tmp_path: Path) -> None:
    """Neither one's own, nor that of a file of references, nor the answer of a question; an empty answer meets none."""
    good = saved(tmp_path / "good.jsonl", ["yes"] * 2)
    own = saved(tmp_path / "own.jsonl", ["yes", ""], reference=" ")
    assert list(tables([str(own)], good)["own"]["exact_match"].values.values()) == [1, 0]
    assert list(tables([str(own)])["own"]) == ["characters"]
    empty = saved(tmp_path / "empty.jsonl", ["yes", ""], reference="")
    bare = saved(tmp_path / "bare.jsonl", ["yes", ""])
    assert list(tables([str(bare)], empty)["bare"]["exact_match"].values.values()) == [1]
    section = {"questions": str(empty), "rivals": [str(bare)]}
    recipe = Recipe.model_validate({"model": "m", "out": "o", "eval": ["questions"], "evaluation": section})
    scores = evaluations_of(recipe)[0].rivals["bare"].scores
    assert isinstance(scores, ScoreTable)
    assert [item.scores.get("exact_match") for item in scores.items] == [1, None]


def test_a_file_with_the_name_of_a_model_does_not_replace_it(folder: Make, tmp_path: Path) -> None:
    made = folder(spin=None).data().sft().judged("base", 2.0).judged("sft", 1.0)
    base = saved(tmp_path / "base.jsonl", ["yes"] * 12)
    assert list(tables([str(made.path), str(base)])) == ["run:base", "run:sft", "base"]
    assert list(tables([str(made.path)])) == ["base", "sft"]


def test_a_run_is_one_run_however_it_is_named(folder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    made = folder(spin=None).data(40).sft().judged("base", 2.0).judged("sft", 1.0).best("sft", selection=True)
    monkeypatch.chdir(made.path)
    assert list(tables([".", "../run/:sft", str(made.path)])) == ["base", "sft"]
    assert len(selection_notes([".:base", "../run"])) == 1
    other = folder("other", spin=None).data().sft().judged("base", 2.0)
    assert list(tables([".:base", str(other.path)])) == ["run:base", "other:base"]


@pytest.mark.skipif(os.name == "nt", reason="no colons in names there")
def test_a_colon_may_be_part_of_a_name(folder: Make) -> None:
    made = folder("lr:2e-5", spin=None).data(40).sft().judged("base", 2.0).judged("sft", 1.0)
    made.best("sft", selection=True)
    assert list(tables([str(made.path)])) == ["base", "sft"]
    assert list(tables([f"{made.path}:sft"])) == ["sft"]
    assert selection_notes([f"{made.path}:sft"])[0].startswith(f"{made.path}: ")
    with pytest.raises(DataError, match="lr:3e-5: no run folder"):
        tables([f"{made.path.parent}/lr:3e-5"])


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
