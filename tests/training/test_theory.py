"""benchmarks/theory.py against closed forms, and the page of the documentation against what it prints."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import theory
import torch

from spintune.training.objectives import SelfPlay

PAGE = Path(__file__).resolve().parents[2] / "docs/explanation/what-self-play-adds.md"
SLOPES = {"logistic": 0.5, "exponential": 1.0, "hinge": 1.0, "correlation": 1.0}
"""-ℓ'(0) of losses ℓ(λm)."""


@pytest.mark.parametrize("lambda_", [0.05, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("loss", SLOPES)
def test_the_first_gradient_of_a_margin_loss_is_sfts_times_lambda_and_its_slope(loss: str, lambda_: float) -> None:
    """SFT's, in logits, is p - p_data."""
    expected_A = SLOPES[loss] * lambda_ * (theory.OPPONENT - theory.DATA)
    found_A = theory.gradient(lambda logit_A: theory.self_play_loss(SelfPlay(loss, lambda_), logit_A), theory.OPPONENT)
    torch.testing.assert_close(found_A, expected_A, rtol=0, atol=1e-15)


def test_ipo_and_the_losses_of_single_ratios_begin_along_sft_too() -> None:
    for name, lambda_, factor, rest in theory.first_steps():
        expected = {"ipo": 1 / lambda_, "space": lambda_ / 2, "gsil_bernoulli": lambda_ / 2}
        assert factor == pytest.approx(expected.get(name, SLOPES.get(name, 0.0) * lambda_), rel=1e-13)
        assert rest < 1e-14


def test_the_weight_of_a_pair_is_the_gradient_of_its_loss() -> None:
    for move in (-1.0, 0.0, 0.1, 1.0, 3.0):
        margin = torch.tensor(move / 0.1, dtype=torch.float64, requires_grad=True)
        torch.nn.functional.softplus(-0.1 * margin).backward()  # type: ignore[no-untyped-call]
        assert margin.grad is not None
        assert theory.pull(move) == pytest.approx(-margin.grad.item() / 0.05, rel=1e-12)


def test_margins_on_the_way_are_the_place_times_the_log_ratio() -> None:
    """E m = s (KL(p_data || p_t) + KL(p_t || p_data)), since normalization cancels."""
    both = theory.kl(theory.DATA, theory.OPPONENT) + theory.kl(theory.OPPONENT, theory.DATA)
    for place, move, _, _, _ in theory.stations(0.1):
        assert move == pytest.approx(0.1 * place * both, abs=1e-12)


@pytest.mark.parametrize("lambda_", [0.1, 0.5, 1.0, 2.0])
def test_the_loss_has_its_least_at_one_over_lambda_and_its_gradient_is_zero_there(lambda_: float) -> None:
    objective, best = SelfPlay("logistic", lambda_), theory.on_the_way(1 / lambda_)
    gradient_A = theory.gradient(lambda logit_A: theory.self_play_loss(objective, logit_A), best)
    assert gradient_A.abs().max() < 1e-14
    losses = [float(theory.self_play_loss(objective, theory.on_the_way(s / lambda_).log())) for s in (0.9, 1.0, 1.1)]
    assert losses[1] < min(losses[0], losses[2])


def test_beyond_the_data_a_small_lambda_goes_against_sft_and_a_lambda_of_1_with_it() -> None:
    assert theory.agreement(0.1, 0.0) == pytest.approx(1, abs=1e-12)
    assert theory.agreement(0.1, 2.0) < -0.9
    assert theory.agreement(1.0, 2.0) > 0.9
    assert math.isnan(theory.agreement(0.1, 1.0))


def test_early_stopping_at_small_lambda_passes_the_data_and_lambda_1_stays() -> None:
    small, one = ([theory.kl(theory.DATA, p) for p in theory.descent(value, 0.5, 400)] for value in (0.1, 1.0))
    closest = small.index(min(small))
    assert 5 < closest < 20
    assert small[-1] > 10 * small[0]
    assert all(later <= earlier + 1e-15 for earlier, later in itertools.pairwise(one))
    # the end is the optimum's
    target_A = theory.on_the_way(10.0)
    assert theory.kl(target_A, theory.descent(0.1, 0.5, 400)[-1]) < 0.05


def test_the_page_shows_what_the_script_prints() -> None:
    page = PAGE.read_text()
    for title, text in theory.tables():
        assert text in page, title
