"""Objectives against closed forms and values by hand."""

from __future__ import annotations

import math

import pytest
import torch

from spintune.models.logprobs import LogProbs
from spintune.records import Pair
from spintune.tokens.chat import Row
from spintune.training.objectives import (
    MARGIN_LOSSES,
    NegativeLogLikelihood,
    SelfPlay,
    correlation,
    exponential,
    hinge,
    logistic,
)


def at(function, margin: float, lambda_: float) -> tuple[float, float]:
    """Value and slope of a loss at one margin."""
    margin_1 = torch.tensor([margin], dtype=torch.float64, requires_grad=True)
    value = function(margin_1, lambda_)
    value.sum().backward()
    return value.item(), margin_1.grad.item()


@pytest.mark.parametrize(
    ("function", "margin", "lambda_", "value", "slope"),
    [
        (logistic, 0.0, 0.1, math.log(2), -0.05),
        (logistic, 0.0, 5.0, math.log(2), -2.5),
        # λm = ln 3: log(1 + 1/3), slope -λ / (1 + 3)
        (logistic, math.log(3) / 2, 2.0, math.log(4 / 3), -0.5),
        # far on the wrong side it is linear, and does not overflow
        (logistic, -1e6, 1.0, 1e6, -1.0),
        (logistic, 1e6, 1.0, 0.0, 0.0),
        (hinge, 0.0, 0.1, 1.0, -0.1),
        (hinge, -10.0, 0.1, 2.0, -0.1),
        (hinge, 11.0, 0.1, 0.0, 0.0),
        (exponential, 0.0, 0.1, 1.0, -0.1),
        (exponential, -2.0, 0.5, math.e, -0.5 * math.e),
        (correlation, 0.0, 0.1, 1.0, -0.1),
        (correlation, 10.0, 0.1, 0.0, -0.1),
        (correlation, 30.0, 0.1, -2.0, -0.1),
    ],
)
def test_losses_of_the_margin_by_hand(function, margin, lambda_, value, slope):
    assert at(function, margin, lambda_) == pytest.approx((value, slope), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("name", MARGIN_LOSSES)
def test_slopes_are_the_finite_differences(name):
    function, start = MARGIN_LOSSES[name]
    assert at(function, 0.0, 0.7)[0] == pytest.approx(start)
    for margin in (-3.1, -0.2, 0.4, 5.0):
        step = 1e-5
        rise = at(function, margin + step, 0.7)[0] - at(function, margin - step, 0.7)[0]
        # central differences err by step² times a third derivative of at most 0.7³ e^2.2 / 6 = 0.5
        assert at(function, margin, 0.7)[1] == pytest.approx(rise / (2 * step), abs=1e-9)


def pair(real: float, generated: float) -> Pair:
    return Pair("id", (1,), (2, 3), (4,), "text", True, True, real, generated)


def test_self_play_facts_by_hand():
    # r = -3 + 4 = 1, r' = -7 + 5 = -2, m = 3; and r = -2, r' = 1, m = -3
    pairs = [pair(-4.0, -5.0), pair(-4.0, -5.0)]
    sum_N = torch.tensor([-3.0, -7.0, -6.0, -4.0], dtype=torch.float64, requires_grad=True)
    result = SelfPlay("logistic", lambda_=0.5)(pairs, LogProbs(sum_N, torch.tensor([2, 1, 2, 1]), sum_N))
    # log(1 + e^-1.5) + log(1 + e^1.5) = 0.2014 + 1.7014
    assert result.total.item() == pytest.approx(math.log1p(math.exp(-1.5)) + math.log1p(math.exp(1.5)), rel=1e-12)
    assert result.facts == pytest.approx(
        {
            "real_ratio": 1 - 2,
            "generated_ratio": -2 + 1,
            "margin": 0,
            "accuracy": 1,
            "real_logprob": -3 - 6,
            "generated_logprob": -7 - 4,
        }
    )
    result.total.backward()
    # slope in m: -λ / (1 + e^λm); real answers take it, generated ones its opposite
    slopes = [-0.5 / (1 + math.exp(1.5)), -0.5 / (1 + math.exp(-1.5))]
    assert sum_N.grad.tolist() == pytest.approx([slopes[0], -slopes[0], slopes[1], -slopes[1]], rel=1e-12)


def test_self_play_asks_for_the_real_answer_first_and_counts_pairs():
    objective = SelfPlay("hinge", 0.2)
    assert objective.query(pair(0, 0)).responses == ((2, 3), (4,))
    assert objective.weight(pair(0, 0)) == 1
    assert objective.start == 1


def test_likelihood_counts_trained_tokens_only():
    row = Row("id", (1, 2), (3, 4, 5), (True, False, True), True)
    objective = NegativeLogLikelihood()
    assert objective.query(row).scored == ((True, False, True),)
    assert objective.weight(row) == 2
    sum_N = torch.tensor([-1.5, -2.0])
    assert objective([row, row], LogProbs(sum_N, torch.tensor([2, 2]), sum_N)).total.item() == 3.5


@pytest.mark.parametrize("lambda_", [0.5, 2.0])
def test_the_least_expected_logistic_loss_is_log_2_minus_jensen_shannon_divergence(lambda_):
    """Over all players. With p+ = p_data(y) p_t(y') and p- its mirror, the loss of a margin function m is
    E_p+ log(1 + e^-λm); its minimum is log 2 - JSD(p+ || p-), at λm = log p+ / p- (paper, Lemma C.2), which the
    player p ∝ p_t (p_data / p_t)^(1/λ) attains.
    """
    data = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
    opponent = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    real_first = torch.outer(data, opponent)
    mirrored = real_first.T
    middle = (real_first + mirrored) / 2
    divergence = ((real_first * (real_first / middle).log() + mirrored * (mirrored / middle).log()) / 2).sum().item()

    def expected_loss(logits: torch.Tensor) -> torch.Tensor:
        ratio = logits.log_softmax(-1) - opponent.log()
        return (real_first * logistic(ratio[:, None] - ratio[None, :], lambda_)).sum()

    assert expected_loss(opponent.log()).item() == pytest.approx(math.log(2))
    optimum = (opponent.log() + (data / opponent).log() / lambda_).requires_grad_()
    loss = expected_loss(optimum)
    assert loss.item() == pytest.approx(math.log(2) - divergence, rel=1e-12)
    loss.backward()
    assert optimum.grad.abs().max() < 1e-15
