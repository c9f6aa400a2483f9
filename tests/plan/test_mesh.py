"""The share of each rank, beside FSDP2 itself on a process group that only pretends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from spintune.engine.rotary import layers_of
from spintune.plan.calls import Calls
from spintune.plan.devices import GPUS, Target
from spintune.plan.memory import MemoryPlan
from spintune.plan.shapes import read_shape
from spintune.recipe import SftSection, load_recipe

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
