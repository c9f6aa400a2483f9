"""AdamW with moments of 8 bits, beside torch's AdamW and across a restart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from spintune.training.checkpoint import Checkpoints
from spintune.training.footprint import footprint
from spintune.training.optimization import Optimization, build_optimizer

pytest.importorskip("bitsandbytes")


def model(dtype: torch.dtype = torch.float32) -> nn.Module:
    """A matrix of 8,192 numbers, whose moments take 8 bits, and a bias, which is too small for that."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(128, 64).to(dtype)


def gradients(player: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in player.parameters():
        common = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(99))
        parameter.grad = (common + torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)


def test_updates_are_close_to_those_of_float32_moments() -> None:
    """After 20 steps with decay the way that weights have gone differs by less than 3 % of its length."""
    start, ends = [p.detach().clone() for p in model().parameters()], []
    for name in ("adamw", "adamw8bit"):
        player = model()
        optimizer = build_optimizer(player, Optimization(1e-3, optimizer=name, weight_decay=0.1))
        for step in range(20):
            gradients(player, step)
            optimizer.step()
        ends.append([p.detach() for p in player.parameters()])
    for before, exact, found in zip(start, *ends, strict=True):
        assert (found - exact).norm() < 0.03 * (exact - before).norm()
    assert torch.allclose(ends[0][1], ends[1][1], rtol=0, atol=1e-6)  # the bias, with moments in float32


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_goes_on_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    settings = Optimization(1e-3, optimizer="adamw8bit", seed=5)
    straight, stopped = model(dtype), model(dtype)
    optimizer = build_optimizer(straight, settings)
    for step in range(6):
        gradients(straight, step)
        optimizer.step()
    optimizer = build_optimizer(stopped, settings)
    for step in range(3):
        gradients(stopped, step)
        optimizer.step()
    Checkpoints(tmp_path, 0).save(3, stopped, optimizer)
    again = model(dtype)
    optimizer = build_optimizer(again, settings)
    assert Checkpoints(tmp_path, 0).restore(again, optimizer) == 3
    for step in range(3, 6):
        gradients(again, step)
        optimizer.step()
    assert all(map(torch.equal, straight.parameters(), again.parameters()))


def test_moments_take_two_bytes_a_weight_and_their_scales() -> None:
    """8,192 numbers in 32 blocks: twice 8,192 bytes, and twice 32 scales of 4 bytes; the bias takes 64 times 8."""
    player = model()
    optimizer = build_optimizer(player, Optimization(1e-3, optimizer="adamw8bit"))
    gradients(player, 0)
    optimizer.step()
    states = optimizer.state_dict()["state"].values()
    held = sum(t.numel() * t.element_size() for state in states for name, t in state.items() if name != "step")
    assert held == footprint(player, "adamw8bit").moments == 2 * (8192 + 32 * 4) + 64 * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_takes_the_same_way() -> None:
    ends = []
    for device in ("cpu", "cuda"):
        player = model().to(device)
        optimizer = build_optimizer(player, Optimization(1e-3, optimizer="adamw8bit"))
        for step in range(5):
            here = model()
            gradients(here, step)
            for parameter, other in zip(player.parameters(), here.parameters(), strict=True):
                parameter.grad = None if other.grad is None else other.grad.to(device)
            optimizer.step()
        ends.append(player.weight.detach().cpu())
    assert (ends[0] - ends[1]).norm() < 0.03 * (ends[0] - model().weight.detach()).norm()
