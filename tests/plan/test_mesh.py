"""The share of each rank, beside FSDP2 itself on a process group that only pretends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from transformers import LlamaConfig, LlamaForCausalLM

from spintune.engine.rotary import layers_of
from spintune.plan.calls import Calls
from spintune.plan.devices import GPUS, Target
from spintune.plan.memory import MemoryPlan, step_bytes
from spintune.plan.shapes import read_shape
from spintune.recipe import SftSection, load_recipe
from spintune.recipe.section import OptimizerName
from spintune.training.optimization import Optimization, build_optimizer

RANKS = 64


@pytest.fixture
def ranks() -> Iterator[int]:
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    yield RANKS
    dist.destroy_process_group()


def local_bytes(tensors: list[torch.Tensor]) -> int:
    own = [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]
    return sum(tensor.numel() * tensor.element_size() for tensor in own)


def test_70b_on_64_ranks_takes_what_fsdp_gives_to_one(ranks: int, tmp_path: Path) -> None:
    recipe = load_recipe(None, [], {"out": "x", "model": "llama-70b", "data": {"train": "x"}, "sft": {}})
    shape, gpu = read_shape("llama-70b", tmp_path), GPUS["h100"]
    plan = MemoryPlan(recipe, shape, Target(True, gpu, ranks, int(gpu.memory), 0.35, False), sharded=True)
    kept = plan.kept("adamw")
    model, mesh = shape.whole(), init_device_mesh("cpu", (ranks,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    parameters = list(model.parameters())
    assert local_bytes(parameters) == kept.weights
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    assert local_bytes([p.grad for p in parameters if p.grad is not None]) == kept.gradients
    optimizer = torch.optim.AdamW(parameters, foreach=True)  # fused, as in training, it does not know the meta device
    optimizer.step()
    moments = [state[name] for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    assert local_bytes(moments) == kept.moments
    # by hand: 70.55 billion numbers of 4 bytes over 64 ranks; no tensor's first dimension leaves a rest
    assert kept.weights == 70_553_706_496 * 4 // 64


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("optimizer", ["adamw", "rmsprop"])
def test_the_update_of_a_share_takes_what_is_said(
    optimizer: OptimizerName, decay: float, ranks: int, peak: Callable[[Callable[[], object]], int]
) -> None:
    sizes = {"hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4096}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=8))
    matrices = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    expected = {"adamw": 0, "rmsprop": 4 * matrices * (2 if decay else 1) // ranks}[optimizer]  # by hand
    assert step_bytes(model, optimizer, ranks, decays=decay > 0) == expected
    mesh = init_device_mesh("cpu", (ranks,))
    for layer in layers_of(model):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made = build_optimizer(model, Optimization(1e-4, optimizer=optimizer, weight_decay=decay))
    made.step()
    assert peak(made.step) == pytest.approx(expected, rel=0.05, abs=2000)


@pytest.mark.parametrize(("offload", "expected"), [(None, 70_553_706_496 * 4 // 64), ("optimizer", 0)])
def test_rmsprop_of_70b_on_64_ranks_by_hand(offload: str | None, expected: int, tmp_path: Path) -> None:
    """The square roots of a rank's share; none on the GPU where the CPU computes the update."""
    sft = {"optimizer": "rmsprop"}
    recipe = load_recipe(
        None, [], {"out": "x", "model": "llama-70b", "data": {"train": "x"}, "offload": offload, "sft": sft}
    )
    shape, gpu = read_shape("llama-70b", tmp_path), GPUS["h100"]
    plan = MemoryPlan(recipe, shape, Target(True, gpu, RANKS, int(gpu.memory), 0.35, False), sharded=True)
    parts, _ = plan.training(SftSection(optimizer="rmsprop"), Calls(1, 1, 1, 1, (), True))
    assert parts.activations == pytest.approx(expected, rel=1e-4)  # norms are updated after the matrices


def test_a_sharded_rank_holds_whole_layers_at_work_only(tmp_path: Path) -> None:
    recipe = load_recipe(
        None, [], {"out": "x", "model": "llama-70b", "data": {"train": "x"}, "sft": {}, "recompute": 1.0}
    )
    shape, gpu = read_shape("llama-70b", tmp_path), GPUS["h100"]
    plan = MemoryPlan(recipe, shape, Target(True, gpu, RANKS, int(gpu.memory), 0.35, False), sharded=True)
    parts, how = plan.training(SftSection(), Calls(1, 1, 1, 1, (), True))
    layer = 2 * 8192 * 8192 + 2 * 8192 * 1024 + 3 * 8192 * 28672 + 2 * 8192
    root = 2 * 128256 * 8192 + 8192
    assert parts.gathered == 2 * (2 * root + 3 * layer)  # bfloat16: weights of root and two layers, gradients of one
    assert (parts.activations, how) == (0, "there are no rows")
    assert parts.total < gpu.memory
