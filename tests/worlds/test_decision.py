"""A run decides once which model to use, and everything that uses a model of the run follows."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import ModelError
from spintune.evaluation.selection import selects
from spintune.export.card import model_card
from spintune.export.model import export_model
from spintune.progress import Silent
from spintune.report.findings import finding
from spintune.report.reading import read_run
from spintune.run_models import final_model, model_name

Run = Callable[..., dict[str, Any]]
pytestmark = pytest.mark.slow

LOSS = {"metric": "nll"}
HARMFUL = {"iterations": 2, "learning_rate": 0.3, "max_new_tokens": 8}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parts(out: Path) -> tuple[set[str], set[str]]:
    """Ids of the held-out examples that choose, and of the others, by the texts of their prompts."""
    answers = rows(out / "eval/heldout/base/answers.jsonl")
    chooses = {row["id"] for row in answers if selects(row["prompt"])}
    return chooses, {row["id"] for row in answers} - chooses


def loss(out: Path, model: str, ids: set[str]) -> float:
    found = [row for row in rows(out / f"likelihood/{model}/likelihood.jsonl") if row["id"] in ids]
    return math.fsum(row["nll"] for row in found) / sum(row["tokens"] for row in found)


def test_a_better_baseline_is_the_model_of_the_run_everywhere(
    run: Run, many: dict[str, Any], spintune: Callable[..., Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    spin = {**HARMFUL, "baseline": "sft", "baseline_learning_rate": 3e-3}
    results = run(out, data=many, sft={"max_steps": 3}, spin=spin, evaluation=LOSS)
    best = json.loads((out / "best.json").read_text())
    assert best["name"] == results["best"]["name"] == "sft-more"
    assert best["model"] == "spin/baseline-sft/model"
    assert [one["name"] for one in best["candidates"]] == ["base", "sft", "sft-more", "iterate-1", "iterate-2"]
    chooses, reports = parts(out)
    assert len(chooses) == best["selection"]
    assert not chooses & reports
    for one in best["candidates"]:
        assert one["mean"] == pytest.approx(loss(out, one["name"], chooses))
        reported = results["heldout"][one["name"]]["nll_per_token"]["mean"]
        assert reported == pytest.approx(loss(out, one["name"], reports))
    gap = results["differences"]["sft-more - iterate-1"]["nll_per_token"]["mean"]
    assert gap == pytest.approx(loss(out, "sft-more", reports) - loss(out, "iterate-1", reports))

    assert model_name(out) == model_name(out, "best") == "sft-more"
    assert final_model(out) == str(out / "spin/baseline-sft/model")
    assert export_model(out, tmp_path / "exported") == "sft-more"
    sentence = finding(read_run(out)).sentence
    assert sentence == f"sft-more is the model to use: {best['why']}."
    assert sentence in (tmp_path / "exported/README.md").read_text()
    assert sentence in model_card(read_run(out), "iterate-1")
    assert f"On the {len(reports)} held-out examples that did not choose" in finding(read_run(out)).remarks[0]
    asked = ("--prompt", "Say fox.", "--max-new-tokens", "8")
    by_default, best_one, last = (
        spintune("chat", out, *choice, *asked) for choice in ((), ("--model", "best"), ("--model", "last"))
    )
    assert (by_default.code, best_one.code, last.code) == (0, 0, 0)
    assert by_default.out == best_one.out != last.out
    compared = json.loads(spintune("compare", out, "--json").out)
    assert compared["items"]["nll_per_token"] == len(reports)
    assert f"{len(chooses)} others chose the model" in " ".join(compared["notes"])

    assert model_name(out, "last") == "iterate-2"
    assert export_model(out, tmp_path / "named", "iterate-1") == "iterate-1"
    with pytest.raises(ModelError, match=r"no model iterate-3; it has base, sft, iterate-1, iterate-2, sft-more, or"):
        final_model(out, "iterate-3")


def test_the_terminal_ends_with_the_decision(
    values: Callable[..., Any], many: dict[str, Any], spintune: Callable[..., Any], tmp_path: Path, cache: Path
) -> None:
    out = tmp_path / "run"
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps(values(out, data=many, sft={"max_steps": 3}, spin=None)))
    assert spintune("run", recipe).code == 0
    told = spintune("run", recipe, "--details").out.splitlines()
    best = json.loads((out / "best.json").read_text())
    assert f"The model to use is sft: {best['why']}." in told
    assert f"It is {out}/sft/model; everything else is in {out}." in told
    assert told[told.index("Next:") + 1 :][:2] == [f"  spintune chat {out}", "      talk to it"]
    following = [line.replace(str(out), "runs/support") for line in told[told.index("Next:") + 1 :]]
    assert "  spintune export runs/support --to ollama" in following
    assert max(map(len, following[:8])) <= 60
    assert f"{best['selection']} others chose the model" in "\n".join(told)


@pytest.mark.parametrize("baseline", ["none", "sft"])
def test_self_play_without_a_rival_says_so(
    values: Callable[..., Any], spintune: Callable[..., Any], tmp_path: Path, baseline: str
) -> None:
    recipe = tmp_path / "recipe.json"
    recipe.write_text(
        json.dumps(values(tmp_path / "run", sft=None, spin={"iterations": 1, "baseline": baseline}, eval=[]))
    )
    told = spintune("run", recipe)
    assert told.code == 0
    assert ("as much SFT would have done as well is not known" in told.out) == (baseline == "none")


def test_sft_that_ruins_the_model_leaves_base_the_model_to_use(
    run: Run, many: dict[str, Any], spintune: Callable[..., Any], tmp_path: Path, tiny_model: Path
) -> None:
    out = tmp_path / "run"
    results = run(out, data=many, sft={"learning_rate": 1.0}, spin=None, evaluation=LOSS)
    assert (results["best"]["name"], results["best"]["model"]) == ("base", str(tiny_model))
    assert final_model(out) == str(tiny_model)
    assert final_model(out, "last") == str(out / "sft/model")
    assert finding(read_run(out)).sentence.startswith("base is the model to use: its held-out loss of ")
    told = spintune("export", out, tmp_path / "exported")
    assert told.code != 0
    assert "base is " in told.err
    assert "such as --model sft" in told.err
    assert not (tmp_path / "exported").exists()
    assert export_model(out, tmp_path / "exported", "sft") == "sft"


class StopsIn(Silent):
    """Progress that raises when a task begins."""

    def __init__(self, name: str) -> None:
        self.name = name

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
        if name == self.name:
            raise KeyboardInterrupt
        yield self

    def advance(self, amount: float = 1, **facts: Any) -> None:
        pass


def test_a_repeated_and_a_continued_run_decide_as_one_that_was_not_stopped(
    run: Run, many: dict[str, Any], contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    spin = {"iterations": 3, "keep": "best", "baseline": "sft", "max_new_tokens": 8, "stop": {"patience": 2}}
    straight, stopped = tmp_path / "straight", tmp_path / "stopped"
    changes = {"data": many, "sft": {"max_steps": 4}, "eval": []}
    first = run(straight, spin=spin, **changes)
    assert {one["name"] for one in first["best"]["candidates"]} >= {"base", "sft", "sft-more", "iterate-1"}
    before = contents(straight)
    (straight / "best.json").write_text("{}")
    again = run(straight, spin=spin, **changes)  # iterates that were deleted meanwhile change nothing
    assert again["best"] == first["best"]
    assert contents(straight) == before
    run(stopped, until="sft", spin=spin, **changes)
    assert not (stopped / "best.json").exists()
    for task in ("iterate-1: held-out answers", "iterate-2: held-out likelihood", "SFT baseline"):
        with pytest.raises(KeyboardInterrupt):
            run(stopped, StopsIn(task), spin=spin, **changes)
        assert json.loads((stopped / "best.json").read_text())["candidates"]  # so far
    run(stopped, spin=spin, **changes)
    assert contents(stopped) == before


def test_an_earlier_choice_among_iterates_alone_is_replaced(run: Run, many: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    changes: dict[str, Any] = {
        "data": many,
        "sft": None,
        "spin": {**HARMFUL, "iterations": 1},
        "eval": [],
        "evaluation": LOSS,
    }
    run(out, **changes)
    new = json.loads((out / "best.json").read_text())
    (out / "best.json").unlink()
    old = {"name": "iterate-1", "model": "spin/iterate-1/model", "why": "it is the newest"}
    (out / "spin/best.json").write_text(json.dumps(old))
    assert model_name(out) == "iterate-1"
    assert read_run(out).selection == frozenset()
    run(out, **changes)
    assert not (out / "spin/best.json").exists()
    assert json.loads((out / "best.json").read_text()) == new
    assert new["name"] == "base"


def test_too_few_examples_measure_nothing_and_say_how_many_are_needed(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "run"
    results = run(out, spin={"iterations": 1, "baseline": "sft"}, eval=["heldout"])
    assert results["best"]["name"] == "iterate-1"
    assert results["best"]["why"].startswith("it is the newest trained model; none was chosen by a measure, since ")
    assert "of 8 held-out examples are there to choose by, and 20 are needed; hold out 50" in results["best"]["why"]
    ids = {row["id"] for row in rows(out / "likelihood/sft/likelihood.jsonl")}
    assert results["heldout"]["sft"]["nll_per_token"]["mean"] == pytest.approx(loss(out, "sft", ids))  # all report
