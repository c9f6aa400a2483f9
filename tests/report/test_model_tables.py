"""Scores, verdicts and overlaps as text: of the items that are there, with an interval that is theirs."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from spintune.report.model_tables import different_items, scoreboard, scores_without_overlaps
from spintune.report.page import render
from spintune.report.reading import read_run

Make = Callable[..., Any]


def test_an_interval_of_results_json_is_shown_while_it_is_of_the_same_scores(everything: Make) -> None:
    made = everything()
    shown = [row.cells[2] for row in scoreboard([read_run(made.path)]).rows]  # ROUGE-L, after two of ifeval
    assert (shown[1].mean, shown[1].interval) == ("0.500", "0.125 to 0.875")
    made.questions("sft", ["a b"] * 12)  # measured anew: all right
    shown = [row.cells[2] for row in scoreboard([read_run(made.path)]).rows]
    assert (shown[1].mean, shown[1].interval) == ("1.000", "1.000 to 1.000")


def test_a_ratio_of_sums_is_one(folder: Make) -> None:
    made = folder(spin=None, sft=None, data={"train": []}, eval=["ifeval"], evaluation={"ifeval": "i.jsonl"})
    made.ifeval("base", [(True, False, False), (True,)])
    (row,) = scoreboard([read_run(made.path)]).rows
    assert [cell.mean for cell in row.cells] == ["50.0", "50.0"]  # 1 of 2 prompts; 2 of 4 instructions, not (1/3 + 1)/2


def test_shares_that_are_all_alike_have_wilson_s_interval(folder: Make) -> None:
    made = folder(spin=None, sft=None, data={"train": []}, eval=["quiz"])
    made.scored("quiz", "base", {"acc": [0.0] * 10}, acc={"right_or_wrong": True})
    (row,) = scoreboard([read_run(made.path)]).rows
    assert row.cells[0].interval == "0.0 to 27.8"  # z^2/(10 + z^2)


def test_scores_that_are_all_0_for_one_model_are_scores(folder: Make) -> None:
    made = folder(spin=None, data={"train": []}, eval=["quiz"]).sft()
    made.scored("quiz", "base", {"f1": [0.5, 0.25]}).scored(
        "quiz", "sft", {"f1": [0.0] * 2}, f1={"right_or_wrong": True}
    )
    board = scoreboard([read_run(made.path)])
    assert board.groups[0].measures[0].unit == ""
    assert [row.cells[0].mean for row in board.rows] == ["0.375", "0.000"]


def test_measures_say_which_way_is_better_and_in_what_they_are(everything: Make) -> None:
    made = everything(eval=["ifeval", "questions", "mt-bench", "bits"])
    for model in ("base", "sft"):
        made.scored("bits", model, {"per_byte": [1.5, 2.5]}, per_byte={"better": "lower"})
    board = scoreboard([read_run(made.path)])
    told = {(group.name, one.title): (one.unit, one.better) for group in board.groups for one in group.measures}
    assert told == {
        ("ifeval", "prompt strict"): ("%", "higher"),
        ("ifeval", "instruction strict"): ("% of instructions", "higher"),
        ("questions", "ROUGE-L"): ("", "higher"),
        ("questions", "exact match"): ("%", "higher"),
        ("questions", "characters"): ("", None),
        ("mt-bench", "rating"): ("", "higher"),
        ("bits", "per byte"): ("", "lower"),
    }
    assert "per byte<small>lower is better</small>" in render([read_run(made.path)], made.path)


def test_rivals_come_last_and_are_marked(everything: Make) -> None:
    rows = scoreboard([read_run(everything().path)]).rows
    assert [(row.label, row.note) for row in rows] == [("base", ""), ("sft", ""), ("parrot", "stored answers")]
    assert [cell and cell.note for cell in rows[2].cells] == [None, None, "10 items", "10 items", "10 items", None]


def test_scores_without_what_was_trained_on_are_of_the_rest(everything: Make) -> None:
    board = scores_without_overlaps(read_run(everything().path))
    assert [group.name for group in board.groups] == ["questions"]  # of ifeval nothing was trained on
    means = [(row.label, row.note, row.cells[1].mean, row.cells[1].note) for row in board.rows]
    assert means == [
        ("base", "", "0.0", ""),
        ("base", "without them", "0.0", "9 items"),
        ("sft", "", "50.0", ""),
        ("sft", "without them", "33.3", "9 items"),  # 6 - 3 right of 12 - 3
        ("parrot", "stored answers", "100.0", "10 items"),
        ("parrot", "without them", "100.0", "7 items"),
    ]


def test_where_all_was_trained_on_nothing_is_left_to_score(everything: Make) -> None:
    made = everything()
    sets = {"ifeval": {"items": 2, "8": 2, "13": 2, "unclean": ["0", "1"]}}
    made.stage("contamination", training_rows=60, sets=sets)
    rows = scores_without_overlaps(read_run(made.path)).rows
    assert [row.cells for row in rows if row.note] == [(None, None), (None, None)]


def test_runs_that_were_asked_other_items_are_named(everything: Make) -> None:
    one, other = everything("one"), everything("other")
    assert different_items([read_run(one.path), read_run(other.path)]) == []
    other.questions("sft", ["a b"] * 13)
    assert different_items([read_run(one.path), read_run(other.path)]) == ["questions"]


def test_a_damaged_interval_of_results_json_is_no_interval(everything: Make) -> None:
    made = everything()
    results = json.loads((made.path / "results.json").read_text())
    results["benchmarks"]["questions"]["scores"]["sft"]["rouge_l"]["mean"] = 0.9  # not that of the rows
    made.json("results.json", results)
    assert scoreboard([read_run(made.path)]).rows[1].cells[2].mean == "0.500"
