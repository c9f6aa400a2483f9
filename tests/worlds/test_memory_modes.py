"""Runs with bfloat16 weights, 8-bit moments and 4-bit bases: the same bits after a stop, known first losses."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tests.worlds.test_resume import no_leftovers, until_done

from spintune.errors import SpintuneError

Run = Callable[..., dict[str, Any]]
ROUNDED = {"weights": "bfloat16", "eval": []}
PACKED = {"lora": {"rank": 4, "alpha": 16.0, "base": "nf4"}, "eval": []}


def first_losses(out: Path) -> list[float]:
    """Of each iteration's first step, where the player is its own opponent."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if row["stage"] in ("spin/iterate-1", "spin/iterate-2") and row["step"] == 1]


def test_bfloat16_weights_are_trained_saved_and_played_with(run: Run, tmp_path: Path) -> None:
    """Each model is saved in bfloat16 and differs from the one before by less than rounding would keep."""
    out = tmp_path / "run"
    run(out, **ROUNDED, sft={"learning_rate": 3e-4}, spin={"learning_rate": 1e-4})
    models = [load_file(out / place / "model/model.safetensors") for place in ("sft", "spin/iterate-1")]
    assert {tensor.dtype for model in models for tensor in model.values()} == {torch.bfloat16}
    assert json.loads((out / "sft/model/config.json").read_text())["dtype"] == "bfloat16"
    changed = [(models[0][name] != models[1][name]).float().mean().item() for name in models[0]]
    assert 0.005 < sum(changed) / len(changed) < 0.9
    losses = first_losses(out)
    assert len(losses) == 2
    # the pairs of a step are scored in other batches than alone, and bfloat16 sums differ in the third digit
    assert all(abs(loss - math.log(2)) < 0.02 for loss in losses)


@pytest.mark.slow
def test_bfloat16_weights_stopped_at_many_points_end_in_the_same_bits(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    changes = {**ROUNDED, "spin": {"optimizer": "adafactor", "iterations": 1}}
    run(tmp_path / "straight", **changes)
    until_done(run, tmp_path / "stopped", iter([3, 9, 12, 30, 10_000]), **changes)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")
    no_leftovers(tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [{"weights": "bfloat16"}, {"lora": {"rank": 2, "base": "nf4"}}], ids=["rounded", "nf4"]
)
def test_an_encoder_decoder_is_trained_in_each_mode(run: Run, tmp_path: Path, tiny_t5: Path, changes: Any) -> None:
    if "lora" in changes:
        pytest.importorskip("bitsandbytes")
    out = tmp_path / "run"
    run(out, model=str(tiny_t5), **changes, sft={"learning_rate": 1e-3}, spin={"iterations": 1}, eval=[])
    assert first_losses(out) == pytest.approx([math.log(2)], abs=0.02)


@pytest.mark.slow
def test_over_a_4_bit_base_the_opponent_is_the_last_iterate_on_the_same_base(run: Run, tmp_path: Path) -> None:
    """The first loss of each iteration is ln 2, and a saved model, which is merged, scores as its player did."""
    pytest.importorskip("bitsandbytes")
    from spintune.engine.logprobs import LogProbEngine
    from spintune.engine.query import Query
    from spintune.models.loading import load_model

    out = tmp_path / "run"
    run(out, **PACKED, sft={"learning_rate": 1e-2}, spin={"learning_rate": 1e-2})
    losses = first_losses(out)
    assert losses == pytest.approx([math.log(2)] * 2, abs=1e-5)
    assert json.loads((out / "spin/iterate-2/adapter/base.json").read_text())["format"] == "nf4"
    pairs = [json.loads(line) for line in (out / "spin/iterate-2/pairs/train.jsonl").read_text().splitlines()][:4]
    queries = [Query(tuple(pair["prompt_ids"]), (tuple(pair["generated"][0]["ids"]),)) for pair in pairs]
    cached = [pair["generated"][0]["opponent"] for pair in pairs]
    scores = {}
    for place in ("sft", "spin/iterate-1"):
        merged = load_model(str(out / place / "model"), cache=tmp_path).model
        assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
        scores[place] = [score for (score,) in LogProbEngine(merged).score(queries)]
    assert scores["spin/iterate-1"] == pytest.approx(cached, abs=1e-3)
    assert max(abs(a - b) for a, b in zip(scores["sft"], cached, strict=True)) > 1e-2


@pytest.mark.slow
def test_a_4_bit_base_stopped_at_many_points_ends_in_the_same_bits(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    changes = {**PACKED, "weights": "bfloat16", "sft": {"optimizer": "adamw8bit"}, "spin": {"iterations": 1}}
    run(tmp_path / "straight", **changes)
    until_done(run, tmp_path / "stopped", iter([7, 15, 10_000]), **changes)
    assert contents(tmp_path / "stopped") == contents(tmp_path / "straight")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has something to offload")
def test_without_a_gpu_there_is_nothing_to_offload(run: Run, tmp_path: Path) -> None:
    with pytest.raises(SpintuneError, match="there is no GPU here; leave it out"):
        run(tmp_path / "run", offload="optimizer")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("offload", ["optimizer", "activations", "both"])
def test_on_a_gpu_offload_changes_no_result_beyond_rounding(run: Run, tmp_path: Path, offload: str) -> None:
    changes = {"precision": "float32", "recompute": 1.0, "spin": None, "eval": []}
    run(tmp_path / "plain", **changes)
    run(tmp_path / "offloaded", **changes, offload=offload)
    plain, other = (load_file(tmp_path / name / "sft/model/model.safetensors") for name in ("plain", "offloaded"))
    for name, tensor in plain.items():
        torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_adapters_print_no_notices_of_packages_that_are_not_needed() -> None:
    """bitsandbytes, which peft imports, misses a package for 4-bit products on CPUs."""
    pytest.importorskip("bitsandbytes")
    code = (
        "from spintune.cli.execution import quiet_libraries; quiet_libraries(); import logging; logging.basicConfig()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", f"{code}; import bitsandbytes"], capture_output=True, text=True, check=True
    )
    assert ended.stderr == ""
