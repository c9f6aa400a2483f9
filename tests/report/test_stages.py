"""Counts that add up, and costs that are the sums of what every step said."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from run_folders import MIXTURE

from spintune.report.page import render
from spintune.report.reading import read_run
from spintune.report.stages import (
    costs,
    differing,
    files,
    funnel,
    iteration_rows,
    mixture,
    recipe_text,
    versions,
)
from spintune.report.table import counted, duration

Make = Callable[..., Any]


def test_every_step_of_the_funnel_adds_up(whole: Make) -> None:
    steps = {step.step: step for step in funnel(read_run(whole().path))}
    assert list(steps) == ["reading", "SFT", "more SFT", "iteration 1", "iteration 2", "judging"]
    for step in steps.values():
        assert step.read == step.kept + sum(step.dropped.values())
    assert (steps["reading"].read, steps["reading"].kept, steps["reading"].dropped) == (70, 60, {"over_limit": 10})
    assert steps["SFT"].note == "2 truncated"
    assert steps["iteration 1"].dropped == {"too_long": 1, "identical": 2}


@pytest.mark.parametrize(
    ("train", "read", "note"),
    [
        # spin.refresh: 16 prompts are answered before training, and the player answers the others
        ({"played": 16, "kept": 14, "answers": 14}, 17, "14 generated answers, 4 cut; 16 of 48 prompts answered"),
        # an earlier version, with several negatives, counted the answers that it took out of pairs
        ({"played": 48, "kept": 48, "answers": 93, "dropped": {"identical": 3}}, 48, "93 generated answers, 4 cut"),
    ],
)
def test_an_iteration_reads_the_prompts_that_it_answers(
    folder: Make, train: dict[str, Any], read: int, note: str
) -> None:
    counts = {"prompts": 48, "dropped": {"too_long": 1, "identical": 2}, "replayed": 0, "real_cut": 0}
    made = folder().data().pairs(1, train={**counts, "generated_cut": 4, **train})
    step = funnel(read_run(made.path))[-1]
    assert (step.step, step.unit, step.read, step.note) == ("iteration 1", "prompts", read, note)
    assert step.kept <= step.read


def test_the_step_that_sft_kept_and_what_it_did_not_see_are_told(folder: Make) -> None:
    made = folder().data().sft(planned_steps=9, kept_step=3, chosen_by=25)
    told = {step.step: step.note for step in funnel(read_run(made.path))}
    assert told["SFT"] == "2 truncated; step 3 of 5 kept; ended early, 9 steps were planned"
    made = folder("last").data().sft(planned_steps=5, kept_step=5)
    assert {step.step: step.note for step in funnel(read_run(made.path))}["SFT"] == "2 truncated"
    split = {"read": 70, "repeated": 0, "dropped": {}, "train": 58, "heldout": 12, "seen": 30, "unseen": 28}
    (step,) = funnel(read_run(folder("split").data().stage("data", **split).path))
    assert step.note == "58 to train on (30 that SFT sees, 28 that it does not), 12 held out"


def test_the_teacher_s_funnel_comes_first(folder: Make) -> None:
    made = folder(synth={"method": "alpaca"}).data()
    step = {"step": "new_instructions", "unit": "instructions", "read": 9, "kept": 4, "dropped": {"similar": 5}}
    cost = {"requests": 3, "prompt_tokens": 100, "completion_tokens": 250, "dollars": 1.5}
    told = {"teacher": "wise-1", "method": "alpaca", "seeds": "builtin:seeds", "examples": 4, "instructions": 4}
    made.stage("synth", **told, funnel=[step], stopped=None, cost=cost, seconds={"write": 8.0}, thoughts=7)
    run = read_run(made.path)
    first, second = funnel(run)
    assert (first.step, first.read, first.kept, first.dropped) == ("writing: new instructions", 9, 4, {"similar": 5})
    assert first.note == "7 replies began with reasoning, which was set apart."
    assert second.step == "reading"
    (paid,) = costs(run)
    assert (paid.did, paid.tokens, paid.seconds) == ("3 requests, $1.50", 250, {"write": 8.0})


def test_a_mixture_s_tasks_are_counted_by_themselves(folder: Make, page: Make) -> None:
    made = folder(data={"train": []}).data()
    made.stage("data", read=0, repeated=0, dropped={}, train=90, heldout=10, mixture=MIXTURE)
    run = read_run(made.path)
    (tasks,) = funnel(run)
    assert (tasks.step, tasks.read, tasks.kept, tasks.dropped) == ("tasks", 50, 40, {"empty": 10})
    assert tasks.note == "90 examples mixed from them, 80 of them distinct; 90 to train on, 10 held out"
    assert [name for name, _ in mixture(run)] == ["halves", "sums"]
    read = page(render([run], made.path))
    assert read.row("halves") == [["halves", "75.00", "76.00", "45", "15", "3.00", "5"]]
    assert read.row("sums") == [["sums", "25.00", "26.00", "45", "15", "3.00", "5"]]


def test_costs_are_sums_over_steps(whole: Make) -> None:
    found = {cost.stage: cost for cost in costs(read_run(whole().path))}
    assert (found["SFT"].did, found["SFT"].tokens) == ("5 steps", 5 * 500)
    assert found["SFT"].rate == 500 / 2.0  # 500 tokens in 2 seconds, each step
    assert found["iteration 1: training"].tokens == 4 * 500
    pairs = found["iteration 2: pairs"]
    assert (pairs.did, pairs.tokens, pairs.rate) == ("47 answers", 47 * 3, None)
    assert pairs.seconds == {"generate": 12.25, "score": 3.5}
    assert found["more SFT"].seconds == {"train": 18.0}


def test_answers_are_counted_without_being_in_memory_at_once(whole: Make) -> None:
    made = whole()
    line = {"example_id": "1", "generated": [{"text": "a b c" * 20, "ids": [1, 2, 3]}]}
    made.lines("spin/iterate-1/pairs/answers.jsonl", [line] * 10_000)  # 1.5 MB
    run = read_run(made.path)
    tracemalloc.start()
    found = {cost.stage: cost for cost in costs(run)}
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (found["iteration 1: pairs"].did, found["iteration 1: pairs"].tokens) == ("10,000 answers", 30_000)
    assert peak < 300_000


def test_iterations_stand_side_by_side(whole: Make) -> None:
    rows = {name: texts for name, _, texts in iteration_rows(read_run(whole().path))}
    assert rows["learning rate"] == ["5e−6", "5e−6"]
    assert rows["margin r − r′"] == ["0.400", "0.400"]
    assert rows["KL to the opponent"] == ["0.031 ± 0.012"] * 2
    assert rows["KL to iterate 0"] == ["0.052"] * 2
    assert "real told by length alone" not in rows  # too few pairs to probe


def test_an_iteration_that_is_not_done_has_dashes(folder: Make) -> None:
    made = folder().data().sft().pairs(1).iterate(1).pairs(2)
    rows = {name: texts for name, _, texts in iteration_rows(read_run(made.path))}
    assert rows["accuracy"] == ["0.750", None]
    assert "held-out loss" not in rows


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (9.96, "10.0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7620, "2 h 07 min")]
)
def test_durations_are_told_in_two_units_at_most(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_reasons_are_in_order_and_readable() -> None:
    assert counted({"too_long": 1200, "empty": 3}) == "empty 3, too long 1,200"
    assert counted({}) == "none"


def test_the_recipe_reads_back_as_it_was(whole: Make) -> None:
    run = read_run(whole().path)
    assert yaml.safe_load(recipe_text(run.recipe)) == {
        key: value for key, value in run.recipe.items() if value is not None
    }


def test_settings_that_differ_are_found_wherever_they_are() -> None:
    one = {"data": {"train": [{"path": "a", "limit": 3}]}, "spin": {"lambda": 0.1, "loss": "ipo"}, "sft": None}
    other = {
        "data": {"train": [{"path": "a", "limit": 5}]},
        "spin": {"lambda": [0.1, 0.2], "loss": "ipo"},
        "sft": {"epochs": 1.0},
    }
    assert differing([one, other]) == [
        ("data.train.1.limit", ["3", "5"]),
        ("spin.lambda", ["0.1", "[0.1,0.2]"]),
        ("sft", ["null", "–"]),
        ("sft.epochs", ["–", "1.0"]),
    ]
    assert differing([one, one]) == []


def test_only_files_that_are_there_are_listed(whole: Make) -> None:
    made = whole()
    made.json("sft/model/config.json", {"transformers_version": "5.1.2"})
    found = {path: size for path, _, _, size in files(read_run(made.path), made.path)}
    assert found["results.json"] == (made.path / "results.json").stat().st_size
    assert found["sft/model"] == (made.path / "sft/model/config.json").stat().st_size
    assert "spin/iterate-1/model" not in found
    assert versions(read_run(made.path)) == [("spintune", "0.1.0"), ("transformers", "5.1.2")]


def test_training_tells_its_share_of_the_peak_and_energy_where_it_is_known(whole: Make) -> None:
    made = whole()
    made.stage(
        "sft",
        rows=48,
        dropped={},
        truncated=2,
        steps=5,
        heldout_loss=2.75,
        learning_rate=2e-5,
        seconds={"train": 30.5},
        hardware={"share_of_peak": 0.437, "best_gflops": 400.0, "joules": 12_345.0},
    )
    found = {cost.stage: cost for cost in costs(read_run(made.path))}
    assert (found["SFT"].share_of_peak, found["SFT"].joules) == (0.437, 12_345.0)
    assert found["iteration 1: pairs"].share_of_peak is None
    page = render([read_run(made.path)], made.path)
    assert re.search(r"<td>44</td>\s*<td>12.3</td>", page)
    assert "not measured" not in page
