"""Whole runs on many ranks are those of one process: SFT and two iterations of self-play."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from forked import command, start_ranks, wait_for
from safetensors.torch import load_file

from spintune.cli import main
from spintune.engine import sharded
from spintune.stages import followers

pytestmark = pytest.mark.slow


def _run(recipe: Path, size: int, folder: Path, *words: str) -> Path:
    ranks = start_ranks(size, command(["run", str(recipe), *words]), folder)
    codes = wait_for(ranks)
    assert codes == [0] * size, "\n".join(rank.text for rank in ranks)
    assert all(rank.text == "" for rank in ranks[1:])  # one rank prints
    return Path(next(line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("out:")))


def _metrics(run: Path) -> list[dict[str, float]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


def _close(one: Path, other: Path) -> None:
    """Losses, norms and weights to rounding, the same pairs, the same steps."""
    pairs = zip(_metrics(one), _metrics(other), strict=True)
    for mine, theirs in pairs:
        assert (mine["stage"], mine["step"], mine["tokens"]) == (theirs["stage"], theirs["step"], theirs["tokens"])
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=2e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=2e-4)
    for stage in ("sft", "spin/iterate-1", "spin/iterate-2"):
        weights, others = (load_file(run / stage / "model/model.safetensors") for run in (one, other))
        assert max((weights[name] - others[name]).abs().max().item() for name in weights) < 2e-5
    for iteration in (1, 2):
        file = f"spin/iterate-{iteration}/pairs/answers.jsonl"
        mine, theirs = (list(map(json.loads, (run / file).read_text().splitlines())) for run in (one, other))
        assert [_ids(pair) for pair in mine] == [_ids(pair) for pair in theirs]


def _ids(pair: dict[str, object]) -> object:
    return pair["prompt_ids"], [answer["ids"] for answer in pair["generated"]]  # type: ignore[attr-defined, index]


def test_ranks_end_as_one_process(world: Callable[..., Path], tmp_path: Path) -> None:
    torch.set_num_threads(1)
    one = _run(world("one"), 1, tmp_path / "1")
    for size in (2, 3):
        other = _run(world(f"ranks-{size}"), size, tmp_path / str(size))
        _close(one, other)
        assert all(0 <= line["imbalance"] < 1 and 0 <= line["waiting"] < 1 for line in _metrics(other))
    assert not any("imbalance" in line for line in _metrics(one))


@pytest.mark.parametrize("copies", [None, 2])
def test_shards_end_as_one_process(world: Callable[..., Path], tmp_path: Path, copies: int | None) -> None:
    torch.set_num_threads(1)
    one = _run(world(f"whole-{copies}"), 1, tmp_path / "1")
    more = "parallel: shard\n" + (f"copies: {copies}\n" if copies else "")
    other = _run(world(f"shards-{copies}", more), 4 if copies else 2, tmp_path / "2")
    _close(one, other)


def test_ranks_with_unequal_gpus_shard_together(
    world: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model fits the GPU of the first rank and not that of the second."""
    shard = sharded.shard_model

    def noted(*arguments: Any) -> None:
        (tmp_path / f"sharded-{os.environ['RANK']}").touch()
        shard(*arguments)

    monkeypatch.setattr(followers, "_gpu_memory", lambda: 1000 if os.environ["RANK"] == "1" else 10**12)
    monkeypatch.setattr(sharded, "shard_model", noted)
    _run(world("unequal"), 2, tmp_path / "2", "sft.max_steps=2", "spin.iterations=1")
    assert len(list(tmp_path.glob("sharded-*"))) == 2


def test_an_evaluation_on_ranks_is_that_of_one_process(world: Callable[..., Path], tmp_path: Path) -> None:
    found = []
    for size in (1, 2):
        recipe = world(f"eval-{size}")
        kept = [line for line in recipe.read_text().splitlines() if not line.startswith(("sft:", "spin:"))]
        recipe.write_text("\n".join(kept) + "\n")
        ranks = start_ranks(size, command(["eval", str(recipe)]), tmp_path / str(size))
        assert wait_for(ranks) == [0] * size, "\n".join(rank.text for rank in ranks)
        results = tmp_path / f"results-{size}"
        out = Path(next(line.split()[1] for line in recipe.read_text().splitlines() if line.startswith("out:")))
        results.write_bytes((out / "results.json").read_bytes())
        found.append(json.loads(results.read_text())["heldout"])
    assert found[0]
    assert _numbers(found[0]) == pytest.approx(_numbers(found[1]), abs=1e-5)


def _numbers(value: object) -> list[float]:
    """All numbers of a JSON value, in their order."""
    if isinstance(value, dict):
        return [number for key in sorted(value) if key != "seconds" for number in _numbers(value[key])]
    if isinstance(value, list):
        return [number for one in value for number in _numbers(one)]
    return [float(value)] if isinstance(value, int | float) else []


def test_eval_starts_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", "--model=a/b", "--data=builtin:seeds", "--on=heldout", "--gpus=99"]
    monkeypatch.setattr(sys, "argv", ["spintune", *words])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "--processes 99" in capsys.readouterr().err
