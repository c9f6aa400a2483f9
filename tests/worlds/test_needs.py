"""What a run says that it takes is what it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from spintune.models.lora import new_adapter
from spintune.recipe import LoraSection, parse_recipe
from spintune.recipe.section import OptimizerName
from spintune.stages.needs import DiskNeeds, _memory, disk_needs, in_units
from spintune.training.checkpoint import Checkpoints
from spintune.training.footprint import TrainingFootprint, footprint
from spintune.training.optimization import Optimization, build_optimizer

HEADERS = 20_000
"""Bytes of the names in safetensors files, and of other small files."""


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "adamw8bit", "rmsprop", "muon", "adafactor"])
def test_a_checkpoint_is_as_large_as_foretold(
    tiny_model: Path, tmp_path: Path, optimizer: OptimizerName, lora: bool, kind: torch.dtype
) -> None:
    if optimizer == "adamw8bit":
        pytest.importorskip("bitsandbytes")
    if lora and optimizer == "muon":
        pytest.skip("a recipe refuses both together")
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=kind)
    if lora:
        new_adapter(model, LoraSection(rank=4), "test")
    built = build_optimizer(model, Optimization(1e-3, optimizer=optimizer))
    model(input_ids=torch.arange(8)[None], labels=torch.arange(8)[None]).loss.backward()
    built.step()
    Checkpoints(tmp_path, 0).save(1, model, built)
    written = sum(file.stat().st_size for file in tmp_path.rglob("*.safetensors"))
    expected = footprint(model, optimizer)
    assert 0 <= written - expected.checkpoint < HEADERS
    assert expected.weights == sum(p.numel() * p.element_size() for p in model.parameters())
    if kind == torch.float32:
        assert expected.weights == sum(p.numel() * 4 for p in model.parameters())
    if not lora:
        assert expected.gradients == expected.weights


def sizes(folder: Path, pattern: str) -> int:
    return sum(file.stat().st_size for place in folder.glob(pattern) for file in place.rglob("*.safetensors"))


def test_models_are_as_large_as_foretold(values: Callable[..., dict[str, Any]], finished: Path, tmp_path: Path) -> None:
    recipe = parse_recipe(values(tmp_path), "test")
    (first, *_) = finished.glob("**/model/model.safetensors")
    needs = disk_needs(recipe, first.stat().st_size, TrainingFootprint(1, 1, 2))
    assert needs.final == needs.certain == sizes(finished, "**/model")


MODEL, ADAMW = 100, TrainingFootprint(100, 100, 200)


@pytest.mark.parametrize(
    ("spin", "expected"),
    [
        (None, DiskNeeds(100, 100, 600)),  # two checkpoints of 300
        ({"iterations": 4}, DiskNeeds(500, 500, 1000)),
        ({"iterations": 4, "baseline": "sft"}, DiskNeeds(500, 600, 1300)),  # and twice the best weights of its steps
        ({"iterations": 4, "stop": {"start_loss": True}}, DiskNeeds(200, 500, 1000)),
        ({"iterations": 4, "keep": "best"}, DiskNeeds(300, 300, 800)),
        ({"iterations": 4, "keep": "best", "history": 2}, DiskNeeds(400, 400, 900)),
        ({"iterations": 1, "keep": "best"}, DiskNeeds(200, 200, 700)),
    ],
)
def test_models_and_checkpoints_are_added_up(
    values: Callable[..., dict[str, Any]], tmp_path: Path, spin: dict[str, Any] | None, expected: DiskNeeds
) -> None:
    recipe = parse_recipe(values(tmp_path, spin=spin), "test")
    assert disk_needs(recipe, MODEL, ADAMW) == expected


@pytest.mark.parametrize(
    ("sft", "peak"),
    [
        ({"epochs": 2.0}, 800),  # two checkpoints, the best weights that one of them names, and the best since
        ({"eval_every": 0.5}, 800),
        ({"epochs": 2.0, "eval_every": 2.0}, 600),  # one evaluation chooses nothing
        ({"epochs": 2.0, "keep": "last"}, 600),
    ],
)
def test_best_weights_are_added_up(
    values: Callable[..., dict[str, Any]], tmp_path: Path, sft: dict[str, Any], peak: int
) -> None:
    recipe = parse_recipe(values(tmp_path, spin=None, sft=sft), "test")
    assert disk_needs(recipe, MODEL, ADAMW) == DiskNeeds(100, 100, peak)
    recipe = parse_recipe(values(tmp_path, sft=sft), "test")
    assert disk_needs(recipe, MODEL, ADAMW) == DiskNeeds(300, 300, 800)  # SFT's are gone when self-play trains


def test_memory_that_is_not_there_is_told(values: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    cpu, recipe = torch.device("cpu"), parse_recipe(values(tmp_path), "test")
    assert list(_memory(recipe, TrainingFootprint(2**50, 2**20, 2**21), cpu)) == []  # the weights are loaded already
    (line,) = _memory(recipe, TrainingFootprint(0, 2**50, 2**51), cpu)
    assert line.startswith("warning: training takes 3377699.7 GB of memory beside the weights")
    assert line.count("are free") == 1
    assert "lora" in line


def test_bytes_in_units() -> None:
    given: Sequence[int] = (5 * 10**6, 1_600_000_000)
    assert [in_units(size) for size in given] == ["5 MB", "1.6 GB"]
