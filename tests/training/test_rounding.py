"""Updates of bfloat16 weights: rounded without bias, the same bits each time, in pieces as at once."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from spintune.errors import RunError
from spintune.training import rounding
from spintune.training.optimization import (
    Optimization,
    build_optimizer,
    gradient_norm,
    optimizer_tensors,
    restore_optimizer,
)
from spintune.training.rounding import PiecewiseOptimizer, round_stochastically

BELOW, ABOVE = 1.0, 1.0078125
"""Neighbors in bfloat16, which has 7 bits after the leading one: 1 and 1 + 2^-7."""


@pytest.mark.parametrize("share", [0.25, 0.5, 1 / 128])
@pytest.mark.parametrize("scale", [1.0, -3.0 * 2**-20, 2.0**100])
def test_numbers_round_up_with_the_share_of_the_way_to_the_next_one(share: float, scale: float) -> None:
    """1 + share · 2^-7 becomes 1 + 2^-7 in ``share`` of the draws and 1 in the others; signs and powers of 2 alike."""
    draws = 2**16
    sign, power = math.copysign(1.0, scale), 2.0 ** math.floor(math.log2(abs(scale)))
    exact = sign * power * (BELOW + share * (ABOVE - BELOW))
    rounded = round_stochastically(torch.full((draws,), exact), "draws").double()
    assert set(rounded.tolist()) == {sign * power * BELOW, sign * power * ABOVE}
    up = (rounded == sign * power * ABOVE).double().mean().item()
    assert up == pytest.approx(share, abs=5 * math.sqrt(share * (1 - share) / draws))


def test_the_expectation_is_the_float32_number() -> None:
    """Over all kinds of numbers, in float64: the mean of 400 roundings is within 5 standard errors for nearly all."""
    generator = torch.Generator().manual_seed(1)
    wide = torch.randn(3000, generator=generator) * 10.0 ** torch.randint(-6, 4, (3000,), generator=generator)
    drawn = torch.stack([round_stochastically(wide, f"draw/{i}").double() for i in range(400)])
    gap = 2.0 ** (wide.double().abs().log2().floor() - 7)  # between the two bfloat16 numbers around each
    assert ((drawn - wide.double()).abs() < gap).all()
    error = (drawn.mean(0) - wide.double()) / gap
    assert error.abs().max() < 5 * 0.5 / math.sqrt(400)  # a coin has a deviation of at most 1/2
    assert abs(error.mean()) < 5 * 0.5 / math.sqrt(400 * 3000)  # no drift to either side


def test_what_bfloat16_has_stays_as_it_is() -> None:
    exact = torch.tensor([0.0, -0.0, 1.0, -1.5, 2.0**-133, torch.inf, -torch.inf, torch.finfo(torch.bfloat16).max])
    rounded = round_stochastically(exact, "exact")
    assert rounded.dtype == torch.bfloat16
    assert torch.equal(rounded.float().view(torch.int32), exact.view(torch.int32))
    assert round_stochastically(torch.tensor([torch.nan]), "nan").isnan().all()


def test_a_stream_has_one_set_of_bits_whatever_else_is_drawn() -> None:
    wide = torch.linspace(-1, 1, 999)
    first = round_stochastically(wide, "a")
    torch.rand(7)
    assert torch.equal(round_stochastically(wide, "a"), first)
    assert not torch.equal(round_stochastically(wide, "b"), first)


def test_a_small_update_survives_that_rounding_to_the_nearest_loses() -> None:
    """1,000 updates of -1e-5 move a weight of 1 by -0.01: half of the gap below 1 is 2^-9, about 0.002."""
    weight = nn.Parameter(torch.ones(4096, dtype=torch.bfloat16))
    nearest = weight.detach().clone()
    optimizer = PiecewiseOptimizer([{"params": [weight]}], lambda groups: torch.optim.SGD(groups, lr=1e-5), seed=0)
    for _ in range(1000):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
        nearest -= 1e-5
    assert torch.equal(nearest, torch.ones_like(nearest))
    moved = 1 - weight.detach().double().mean().item()
    assert moved == pytest.approx(0.01, rel=0.05)


def wide_and_narrow(seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Two equal models with weights that bfloat16 has, one in float32 and one in bfloat16."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        narrow = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8)).bfloat16()
        wide = nn.Sequential(nn.Linear(24, 40), nn.Linear(40, 8))
    wide.load_state_dict({name: tensor.float() for name, tensor in narrow.state_dict().items()})
    return wide, narrow


def give_gradients(model: nn.Module, step: int) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        drawn = torch.randn(parameter.shape, generator=generator).bfloat16()
        parameter.grad = drawn.to(parameter.dtype)


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "muon", "adafactor"])
def test_the_update_is_that_of_float32_weights(name: str) -> None:
    """One step from equal weights ends at one of the two bfloat16 numbers around what float32 gives."""
    wide, narrow = wide_and_narrow()
    for model in (wide, narrow):
        optimizer = build_optimizer(model, Optimization(1e-2, optimizer=name, weight_decay=0.1))
        give_gradients(model, 0)
        optimizer.step()
    for exact, rounded in zip(wide.parameters(), narrow.parameters(), strict=True):
        gap = 2.0 ** (exact.double().abs().log2().floor() - 7)
        assert ((exact.double() - rounded.double()).abs() <= gap).all()


def test_moments_stay_in_float32() -> None:
    _, narrow = wide_and_narrow()
    optimizer = build_optimizer(narrow, Optimization(1e-2))
    give_gradients(narrow, 0)
    optimizer.step()
    states = optimizer.state_dict()["state"].values()
    assert {tensor.dtype for state in states for tensor in state.values()} == {torch.float32}
    assert [parameter.dtype for parameter in narrow.parameters()] == [torch.bfloat16] * 4


@pytest.mark.parametrize("name", ["adamw", "rmsprop", "muon", "adafactor"])
def test_a_resumed_optimizer_gives_the_same_bits(name: str) -> None:
    def trained(stop: int | None) -> list[torch.Tensor]:
        _, model = wide_and_narrow()
        optimizer = build_optimizer(model, Optimization(1e-2, optimizer=name, seed=3))
        for step in range(6):
            if step == stop:
                state = optimizer.state_dict()
                optimizer = build_optimizer(model, Optimization(1e-2, optimizer=name, seed=3))
                optimizer.load_state_dict(state)
            give_gradients(model, step)
            optimizer.step()
        return [parameter.detach() for parameter in model.parameters()]

    straight = trained(None)
    assert all(map(torch.equal, straight, trained(4)))


def test_pieces_change_no_update(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of float32 weights with moments elsewhere, which are not rounded: the same bits as AdamW over all at once."""
    monkeypatch.setattr(rounding, "PIECE", 96)
    plain, _ = wide_and_narrow()
    split, _ = wide_and_narrow()
    optimizers = [
        build_optimizer(plain, Optimization(1e-2, weight_decay=0.1)),
        build_optimizer(split, Optimization(1e-2, weight_decay=0.1, offload=True)),
    ]
    assert isinstance(optimizers[1], PiecewiseOptimizer)
    for step in range(4):
        for model, optimizer in zip((plain, split), optimizers, strict=True):
            give_gradients(model, step)
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 / (step + 1)
            optimizer.step()
    assert all(map(torch.equal, plain.parameters(), split.parameters()))
    assert len(optimizers[1].inner.state_dict()["state"]) == 10 + 1 + 4 + 1  # of 960, 40, 320 and 8 numbers


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
@pytest.mark.parametrize("offloads", [(True, False), (False, True), (True, True), (False, False)])
def test_a_checkpoint_goes_on_with_moments_elsewhere(
    name: Any, offloads: tuple[bool, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever runs short of memory adds offload and goes on: the same bits as without a stop."""
    monkeypatch.setattr(rounding, "PIECE", 96)

    def trained(*offloads: bool) -> list[torch.Tensor]:
        model, _ = wide_and_narrow()
        tensors: dict[str, torch.Tensor] = {}
        for part, here in enumerate(offloads):
            optimizer = build_optimizer(model, Optimization(1e-2, optimizer=name, offload=here, weight_decay=0.1))
            if tensors:
                restore_optimizer(optimizer, tensors)
            for step in range(6 // len(offloads)):
                give_gradients(model, 6 // len(offloads) * part + step)
                optimizer.step()
            tensors = {key: value.clone() for key, value in optimizer_tensors(optimizer).items()}
        return [*(parameter.detach() for parameter in model.parameters()), *tensors.values()]

    assert all(map(torch.equal, trained(*offloads), trained(False)))


def test_moments_of_another_shape_are_refused() -> None:
    """They were once kept in pieces; torch reads beyond the end of them."""
    wide, _ = wide_and_narrow()
    optimizer = build_optimizer(wide, Optimization(1e-2))
    for key in ("0.exp_avg", "9.exp_avg"):
        with pytest.raises(RunError, match="of another shape; delete it"):
            restore_optimizer(optimizer, {key: torch.zeros(100)})


def test_the_norm_of_bfloat16_gradients_is_computed_in_float32() -> None:
    """Of 1,288 numbers, in float64 by hand; bfloat16 would give three digits."""
    _, narrow = wide_and_narrow()
    give_gradients(narrow, 0)
    squares = sum(p.grad.double().square().sum().item() for p in narrow.parameters() if p.grad is not None)
    assert gradient_norm(narrow).item() == pytest.approx(math.sqrt(squares), rel=1e-6)


def test_float32_weights_keep_the_optimizer_that_they_had() -> None:
    wide, _ = wide_and_narrow()
    assert type(build_optimizer(wide, Optimization(1e-2))) is torch.optim.AdamW


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_moments_on_the_cpu_of_weights_on_a_gpu() -> None:
    """Updates are computed on the CPU, so the weights are to the bit those of a model that is there."""
    here, there = wide_and_narrow()[0], wide_and_narrow()[0].cuda()
    for model in (here, there):
        optimizer = build_optimizer(model, Optimization(1e-2, offload=True))
        for step in range(3):
            give_gradients(here, step)
            for mine, other in zip(model.parameters(), here.parameters(), strict=True):
                mine.grad = other.grad.to(mine.device) if other.grad is not None else None
            optimizer.step()
        states = optimizer.state_dict()["state"].values()
        assert {tensor.device.type for state in states for tensor in state.values()} == {"cpu"}
    assert all(torch.equal(a, b.cpu()) for a, b in zip(here.parameters(), there.parameters(), strict=True))
