"""The list of stages and the time left follow from the files of a run, by hand arithmetic."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.recipe import load_recipe
from spintune.records import Example, Message, write_records
from spintune.report.reading import read_run
from spintune.time_left import RELATIVE_COST
from spintune.typed_json import JsonObject
from spintune.watch.run import SILENT_SECONDS, WatchedRun
from spintune.watch.stages import StageList, stage_list

Make = Callable[..., Any]
PROMPT, ANSWER = "x" * 80, "y" * 76
HELDOUT = 200
"""By four characters a token: 20 + 12 of a template, and 19 + 1."""


@pytest.fixture
def made(folder: Make) -> Any:
    """A run folder of 100 training examples and HELDOUT held-out ones, before any stage."""
    base: dict[str, object] = {"out": "-", "model": "m", "sft": {"epochs": 2, "tokens_per_step": 520}}
    base |= {"data": {"train": {"path": "x.jsonl"}, "max_length": 256}}
    base |= {"spin": {"iterations": 1, "pairs_per_step": 10, "max_new_tokens": 32, "epochs": 1, "baseline": "none"}}
    return folder().json("recipe.json", {"spintune": "0.1.0", "recipe": load_recipe(None, [], base).identity()})


def with_data(made: Any) -> Any:
    made.data([(f"{PROMPT[:-3]}{n:03}", ANSWER) for n in range(HELDOUT)])
    examples = [Example((Message("user", f"{PROMPT[:-3]}{n:03}"), Message("assistant", ANSWER))) for n in range(100)]
    write_records(made.path / "data/train.jsonl", examples)
    counts = {"read": 100 + HELDOUT, "repeated": 0, "dropped": {}, "train": 100, "heldout": HELDOUT}
    return made.stage("data", **counts)


def measured(made: Any, name: str) -> Any:
    return made.lines(f"likelihood/{name}/likelihood.jsonl", []).stage(f"likelihood/{name}", items=HELDOUT, left_out=0)


def listed(made: Any, running: bool = True) -> StageList:
    run = read_run(made.path)
    return stage_list(run, run.metrics, running)


def states(found: StageList) -> dict[str, str]:
    return {one.name: one.state for one in found.stages}


def step(n: int) -> JsonObject:
    return {"loss": 3.0 - n / 100, "tokens": 520, "seconds": 2.0}


def test_a_run_without_data_is_at_its_data(made: Any) -> None:
    found = listed(made)
    names = ["data", "measure base", "SFT", "iteration 1: answers", "iteration 1: training", "evaluation"]
    assert list(states(found)) == names
    assert list(states(found).values()) == ["running", *["to come"] * 5]
    assert found.left is None
    assert states(listed(made, running=False))["data"] == "stopped"


def test_time_left_is_what_is_left_at_the_rate_so_far(made: Any) -> None:
    measured(with_data(made), "base")
    made.metrics("sft", [step(n) for n in range(5)])
    now = time.time()
    for path in made.path.rglob("*"):
        os.utime(path, (now, now))
    found = listed(made)
    assert states(found)["SFT"] == "running"
    # 100 examples x (32 + 20) tokens x 2 epochs / 520 = 20 steps; 5 took 2 s each
    assert found.current is not None
    assert found.current.did == "5 of about 20 steps"
    # then SFT is measured: 200 x 52 tokens scored and 200 x 20 written; a trained token costs 2 / 520 s, the others as
    # much of that as the table says
    token = 2 / 520
    train, write = RELATIVE_COST["train"], RELATIVE_COST["generate"]
    left = 15 * 2 + HELDOUT * 52 * token / train + HELDOUT * 20 * token * write / train
    assert found.current.left == pytest.approx(left, abs=3)
    whole = 20 * 520 * train + HELDOUT * 52 + HELDOUT * 20 * write
    assert found.current.share == pytest.approx(5 * 520 * train / whole, abs=0.01)
    assert found.left is not None
    assert found.left.seconds > found.current.left


def test_tokens_are_those_of_the_model_once_it_was_measured(made: Any) -> None:
    """39 tokens for 76 characters and the end of the turn, so two characters a token: 52 + 39 tokens an example."""
    with_data(made)
    heldout = read_run(made.path).heldout
    likely = [{"id": one.id, "nll": 9.0, "tokens": 39, "bytes": 76} for one in heldout]
    made.lines("likelihood/base/likelihood.jsonl", likely).stage("likelihood/base", items=HELDOUT, left_out=0)
    found = listed(made.metrics("sft", [step(n) for n in range(5)])).current
    assert found is not None
    assert found.did == "5 of about 35 steps"


def test_once_there_are_steps_the_short_runs_for_their_rate_are_over(made: Any) -> None:
    measured(with_data(made), "base")
    content = json.loads((made.path / "recipe.json").read_text())
    fixed = listed(made.metrics("sft", [step(n) for n in range(5)])).current
    content["recipe"]["sft"]["learning_rate"] = "auto"
    made.json("recipe.json", content)
    found = listed(made).current
    assert fixed is not None
    assert found is not None
    assert found.did == "5 of about 20 steps"
    assert found.left == pytest.approx(fixed.left, abs=1)
    (made.path / "metrics.jsonl").unlink()
    trying = listed(made).current
    assert trying is not None
    assert (trying.did, trying.share) == ("", 0)


def test_rows_that_are_left_out_take_their_time(made: Any) -> None:
    """As of a long stage, whose earlier rows are thinned: five steps took 10 s, whichever of them are known."""
    measured(with_data(made), "base")
    made.metrics("sft", [step(n) for n in range(5)])
    run = read_run(made.path)
    rows = run.metrics["sft"]
    whole, thin = (stage_list(run, {"sft": known}, True).current for known in (rows, rows[::2]))
    assert whole is not None
    assert thin is not None
    assert thin.left == pytest.approx(whole.left, abs=3)


def test_answers_in_shards_are_a_sign_of_life(made: Any) -> None:
    """Where no lock can be seen: on another machine, or on macOS."""
    shards = made.path / "spin/iterate-1/pairs/shards"
    shards.mkdir(parents=True)
    (made.path / "run.lock").write_text("1")
    ago = time.time() - 2 * SILENT_SECONDS
    for path in made.path.rglob("*"):
        os.utime(path, (ago, ago))
    watched = WatchedRun(made.path, "x")
    watched.look()
    assert "no sign of life" in watched.shown["head"]
    (shards / "a-answers-0.jsonl").write_text("{}\n")
    watched.look()
    assert "running" in watched.shown["head"]


def test_a_stage_that_says_nothing_takes_up_its_time(made: Any) -> None:
    measured(with_data(made), "base")
    made.metrics("sft", [step(n) for n in range(5)])
    ago = time.time() - 20
    for path in made.path.rglob("*"):
        os.utime(path, (ago, ago))
    waited = listed(made)
    assert waited.current is not None
    assert waited.current.left is not None
    now = time.time()
    os.utime(made.path / "metrics.jsonl", (now, now))
    fresh = listed(made)
    assert fresh.current is not None
    assert fresh.current.left is not None
    assert 15 < fresh.current.left - waited.current.left < 120  # 20 s and what the test took


def test_a_trained_model_that_is_not_measured_yet_is_being_measured(made: Any) -> None:
    measured(with_data(made), "base")
    made.metrics("sft", [step(n) for n in range(18)])
    facts = {"rows": 100, "dropped": {}, "truncated": 0, "steps": 18, "heldout_loss": 2.7, "learning_rate": 1e-4}
    hardware = {"share_of_peak": None, "best_gflops": 1.0, "joules": None}
    made.stage("sft", **facts, seconds={"train": 36.0}, hardware=hardware)
    found = listed(made)
    assert found.current is not None
    assert (found.current.name, found.current.did) == ("SFT", "measuring its model")
    measured(made, "sft")
    found = listed(made)
    assert states(found)["SFT"] == "done"
    assert found.stages[2].seconds == 36.0
    assert found.current is not None
    assert found.current.name == "iteration 1: answers"


def test_a_recipe_of_another_version_lists_no_stages(folder: Make) -> None:
    assert listed(folder().recipe(spin={"no_such_key": 1})) == StageList()


def test_answers_in_shards_are_counted(made: Any) -> None:
    measured(with_data(made), "base")
    facts = {"rows": 100, "dropped": {}, "truncated": 0, "steps": 18, "heldout_loss": 2.7, "learning_rate": 1e-4}
    hardware = {"share_of_peak": None, "best_gflops": 1.0, "joules": None}
    measured(made.stage("sft", **facts, seconds={"train": 36.0}, hardware=hardware), "sft")
    shard: Path = made.path / "spin/iterate-1/pairs/shards/abc-answers-00000000.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text('{"records":64,"sha256":""}\nhalf a li')
    found = listed(made)
    assert found.current is not None
    assert found.current.did == "64 of about 300 answers"
