"""Adafactor: by hand, beside transformers' implementation, and across a checkpoint."""

from __future__ import annotations

import math

import pytest
import torch
import transformers

from spintune.training.adafactor import Adafactor
from spintune.training.checkpoint import Checkpoints
from spintune.training.optimization import Optimization, build_optimizer

RATE = 5e-4


def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 3))


def give_gradients(model: torch.nn.Module, step: int, scale: float = 1.0) -> None:
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator).to(parameter)


def weights(model: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_first_step_of_a_matrix_by_hand():
    """G = [[1, 2], [3, 4]]: rows 2.5 and 12.5, columns 5 and 10, mean 7.5; U_11 = 1 / √(2.5 · 5 / 7.5) = √0.6, ...

    The four squares of U are 0.6, 1.2, 1.08 and 0.96; their mean 0.96 is below 1, so nothing is clipped.
    """
    weight = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    weight.grad = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    Adafactor([weight], lr=0.1).step()
    expected = [-0.1 * math.sqrt(square) for square in (0.6, 1.2, 1.08, 0.96)]
    assert weight.flatten().tolist() == pytest.approx(expected, rel=1e-12)


def test_three_steps_of_a_vector_by_hand():
    """One entry. Step 1: β = 0, U = 1. Step 2: β = 1 - 2^-0.8; g = 4 after 1 gives U > 1, clipped to 1.

    Step 3: g = 0.5 is small beside what is remembered.
    """
    weight = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Adafactor([weight], lr=0.1)
    for gradient in (1.0, 4.0, 0.5):
        weight.grad = torch.tensor([gradient], dtype=torch.float64)
        optimizer.step()
    beta2, beta3 = 1 - 2**-0.8, 1 - 3**-0.8
    third = beta3 * (beta2 + (1 - beta2) * 16) + (1 - beta3) * 0.25
    assert weight.item() == pytest.approx(-0.1 - 0.1 - 0.1 * 0.5 / math.sqrt(third), rel=1e-12)


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_are_those_of_transformers_without_relative_step_and_scale(decay):
    mine, theirs = network().double(), network().double()
    optimizer = Adafactor(mine.parameters(), lr=RATE, weight_decay=decay)
    reference = transformers.Adafactor(
        theirs.parameters(), lr=RATE, weight_decay=decay, relative_step=False, scale_parameter=False, warmup_init=False
    )
    for step in range(20):
        for model, stepper in ((mine, optimizer), (theirs, reference)):
            give_gradients(model, step, scale=10.0 ** (step % 3))
            stepper.step()
    torch.testing.assert_close(weights(mine), weights(theirs), rtol=1e-10, atol=1e-12)


def test_torchs_optimizer_of_that_name_scales_the_rate_by_each_tensors_size():
    """Why it is not used: a matrix of entries 0.05 moves 1 / 0.05 = 20 times as far here."""
    mine, theirs = (torch.nn.Parameter(torch.full((4, 4), 0.05)) for _ in range(2))
    for parameter, kind in ((mine, Adafactor), (theirs, torch.optim.Adafactor)):
        parameter.grad = torch.ones(4, 4)
        kind([parameter], lr=RATE).step()
    ratio = (mine - 0.05).abs().mean() / (theirs - 0.05).abs().mean()
    assert ratio.item() == pytest.approx(20, rel=1e-3)


def test_it_goes_on_from_a_checkpoint_bit_for_bit(tmp_path):
    optimization = Optimization(RATE, optimizer="adafactor", weight_decay=0.1)
    model = network()
    optimizer = build_optimizer(model, optimization)
    assert isinstance(optimizer, Adafactor)
    stopped = Checkpoints(tmp_path / "checkpoints", 0)
    for step in range(6):
        if step == 3:
            stopped.save(step, model, optimizer)
        give_gradients(model, step)
        optimizer.step()

    resumed = network()
    again = build_optimizer(resumed, optimization)
    for step in range(stopped.restore(resumed, again), 6):
        give_gradients(resumed, step)
        again.step()
    assert torch.equal(weights(resumed), weights(model))


def test_memory_of_a_matrix_is_one_row_and_one_column():
    weight = torch.nn.Parameter(torch.zeros(30, 40))
    weight.grad = torch.ones(30, 40)
    optimizer = Adafactor([weight], lr=RATE)
    optimizer.step()
    assert sum(tensor.numel() for tensor in optimizer.state[weight].values()) == 30 + 40 + 1
