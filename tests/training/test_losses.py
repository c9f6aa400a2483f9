"""Every loss against values by hand, finite differences, and the identities between them."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest
import torch
from torch.nn.functional import logsigmoid

import spintune.training.losses
from spintune.errors import RecipeError
from spintune.recipe.losses import BUILT_IN, SelfPlayLoss, register_loss
from spintune.training.losses import (
    correlation,
    exponential,
    gsil_bernoulli,
    gsil_brier,
    gsil_hinge,
    gsil_kliep,
    gsil_lsif,
    hinge,
    ipo,
    logistic,
    mixed_reference,
    space,
    t_spin,
)

LN2, LN3 = math.log(2), math.log(3)
MARGIN_LOSSES = [logistic, hinge, exponential, correlation, ipo]
GSIL_LOSSES = [gsil_bernoulli, gsil_brier, gsil_hinge, gsil_kliep, gsil_lsif]


def at(loss, *point: float) -> list[float]:
    """Value of a loss for one duel, then its slope in each argument."""
    arguments = [torch.tensor([coordinate], dtype=torch.float64, requires_grad=True) for coordinate in point]
    value = loss(*arguments)
    value.sum().backward()
    return [value.item(), *(argument.grad.item() for argument in arguments)]


def bound(loss, **settings):
    """The loss with its settings, and a name for the test's id."""
    text = "-".join(f"{name.rstrip('_')}={value}" for name, value in settings.items())
    return pytest.param(partial(loss, **settings), id=f"{loss.__name__}-{text}")


# The margin -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "margin", "lambda_", "value", "slope"),
    [
        (logistic, 0.0, 0.1, LN2, -0.05),
        (logistic, 0.0, 5.0, LN2, -2.5),
        # λm = ln 3: log(1 + 1/3), slope -λ / (1 + 3)
        (logistic, LN3 / 2, 2.0, math.log(4 / 3), -0.5),
        (hinge, 0.0, 0.1, 1.0, -0.1),
        (hinge, -10.0, 0.1, 2.0, -0.1),
        (hinge, 11.0, 0.1, 0.0, 0.0),
        (exponential, 0.0, 0.1, 1.0, -0.1),
        (exponential, -2.0, 0.5, math.e, -0.5 * math.e),
        (correlation, 0.0, 0.1, 1.0, -0.1),
        (correlation, 10.0, 0.1, 0.0, -0.1),
        (correlation, 30.0, 0.1, -2.0, -0.1),
        # 1/(4λ²) and -1/λ at the start, nothing at m = 1/(2λ), rising beyond
        (ipo, 0.0, 0.1, 25.0, -10.0),
        (ipo, 0.0, 0.5, 1.0, -2.0),
        (ipo, 1.0, 0.5, 0.0, 0.0),
        (ipo, 3.0, 0.5, 4.0, 4.0),
    ],
)
def test_losses_of_the_margin_by_hand(loss, margin, lambda_, value, slope):
    assert at(partial(loss, lambda_=lambda_), margin) == pytest.approx([value, slope], rel=1e-12, abs=1e-15)


# Each ratio alone -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mu", "start"), [(1.0, 1.386294), (3.0, 2.249341), (7.0, 3.014161)])
def test_space_starts_at_its_known_value_and_pushes_both_sides_equally(mu, start):
    # slopes -λσ(log μ) and λμσ(-log μ), both of size λμ/(1 + μ)
    push = 0.5 * mu / (1 + mu)
    value, *slopes = at(partial(space, lambda_=0.5, mu=mu), 0.0, 0.0)
    assert value == pytest.approx(start, abs=5e-7)
    assert value == pytest.approx(math.log(1 + mu) + mu * math.log(1 + 1 / mu), rel=1e-12)
    assert slopes == pytest.approx([-push, push], rel=1e-12)


S2 = 1 / (1 + math.exp(-2))  # σ(2) = 0.880797
E2 = math.exp(2)


@pytest.mark.parametrize(
    ("loss", "shift", "start", "real_slope", "generated_slope"),
    [
        (gsil_bernoulli, 0.0, 1.386294, -1 / 2, 1 / 2),
        (gsil_bernoulli, 2.0, 2.253856, -(1 - S2), S2),
        # 2(σ - 1)σ' and 2σσ' with σ' = σ(1 - σ)
        (gsil_brier, 0.0, 0.5, -1 / 4, 1 / 4),
        (gsil_brier, 2.0, 0.790013, -2 * S2 * (1 - S2) ** 2, 2 * S2**2 * (1 - S2)),
        # a real answer beyond the hinge is left alone
        (gsil_hinge, 0.0, 2.0, -1, 1),
        (gsil_hinge, 2.0, 3.0, 0, 1),
        (gsil_kliep, 0.0, 1.0, -1, 1),
        (gsil_kliep, 2.0, 5.389056, -1, E2),
        (gsil_lsif, 0.0, -0.5, -1, 1),
        (gsil_lsif, 2.0, 19.910019, -E2, E2**2),
    ],
)
def test_gsil_starts_at_its_known_value_and_slopes(loss, shift, start, real_slope, generated_slope):
    value, *slopes = at(partial(loss, lambda_=0.01, shift=shift), 0.0, 0.0)
    assert value == pytest.approx(start, abs=5e-7)
    assert slopes == pytest.approx([0.01 * real_slope, 0.01 * generated_slope], rel=1e-12)


@pytest.mark.parametrize(
    ("loss", "real_ratio", "generated_ratio", "value"),
    [
        # log(1 + 3/3) + 3 log(1 + 9/3)
        (partial(space, lambda_=1.0, mu=3.0), LN3, 2 * LN3, LN2 + 3 * math.log(4)),
        # λ halves the ratios: log(1 + 1/3) + log(1 + 1/3)
        (partial(space, lambda_=0.5, mu=1.0), 2 * LN3, -2 * LN3, 2 * math.log(4 / 3)),
        # u = ln 3 + ln 2 = ln 6, u' = -ln 2 + ln 2 = 0: log(1 + 1/6) + log(1 + 1)
        (partial(gsil_bernoulli, lambda_=2.0, shift=LN2), LN3 / 2, -LN2 / 2, math.log(7 / 6) + LN2),
        # (6/7 - 1)² + (1/2)²
        (partial(gsil_brier, lambda_=2.0, shift=LN2), LN3 / 2, -LN2 / 2, 1 / 49 + 1 / 4),
        # u = 1/2, u' = -1/4; and both beyond their hinges: u = 3/2, u' = -5/4
        (partial(gsil_hinge, lambda_=0.5, shift=0.25), 0.5, -1.0, 0.5 + 0.75),
        (partial(gsil_hinge, lambda_=0.5, shift=0.25), 2.5, -3.0, 0.0),
        # -ln 6 + e⁰, and -6 + e⁰/2
        (partial(gsil_kliep, lambda_=2.0, shift=LN2), LN3 / 2, -LN2 / 2, -math.log(6) + 1),
        (partial(gsil_lsif, lambda_=2.0, shift=LN2), LN3 / 2, -LN2 / 2, -6 + 1 / 2),
    ],
)
def test_losses_of_each_ratio_by_hand(loss, real_ratio, generated_ratio, value):
    assert at(loss, real_ratio, generated_ratio)[0] == pytest.approx(value, rel=1e-12, abs=1e-15)


@pytest.mark.parametrize(
    "loss",
    [
        bound(space, lambda_=0.7, mu=1.0),
        bound(space, lambda_=0.7, mu=3.0),
        *(bound(loss, lambda_=0.7, shift=0.0) for loss in GSIL_LOSSES if loss is not gsil_hinge),
    ],
)
@pytest.mark.parametrize(("data", "opponent"), [(0.2, 0.2), (0.3, 0.1), (0.02, 0.7)])
def test_the_two_sides_balance_where_the_ratio_is_that_of_the_densities(loss, data, opponent):
    """An answer is real with density p and generated with q; λr = log p/q is where the expected loss is level."""
    ratio = math.log(data / opponent) / 0.7
    _, real_slope, generated_slope = at(loss, ratio, ratio)
    assert data * real_slope + opponent * generated_slope == pytest.approx(0, abs=1e-15)
    assert real_slope < 0 < generated_slope


def test_space_with_mu_1_is_bco_pair():
    """-log σ(r) - log σ(-r'), its β 1 and its moving shift 0."""
    real, generated = torch.linspace(-9, 9, 37, dtype=torch.float64), torch.linspace(6, -4, 37, dtype=torch.float64)
    by_hand = [math.log1p(math.exp(-r)) + math.log1p(math.exp(s)) for r, s in zip(real, generated, strict=True)]
    value = space(real, generated, 1.0, 1.0)
    assert value.tolist() == pytest.approx(by_hand, rel=1e-12)
    torch.testing.assert_close(value, -logsigmoid(real) - logsigmoid(-generated), rtol=1e-12, atol=0)
    torch.testing.assert_close(value, gsil_bernoulli(real, generated, 1.0, 0.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("mu", [0.5, 1.0, 3.0, 7.0])
@pytest.mark.parametrize("lambda_", [0.3, 1.0])
def test_space_is_gsil_bernoulli_shifted_by_minus_log_mu_and_weighted(mu, lambda_):
    """σ_μ(z) = σ(z - log μ). A term of GSIL alone is what remains when the other side is far beyond doubt."""
    ratio = torch.linspace(-5, 5, 21, dtype=torch.float64)
    far = torch.full_like(ratio, 1e4)
    real_term = gsil_bernoulli(ratio, -far, lambda_, -math.log(mu))
    generated_term = gsil_bernoulli(far, ratio.flip(0), lambda_, -math.log(mu))
    expected = real_term + mu * generated_term
    torch.testing.assert_close(space(ratio, ratio.flip(0), lambda_, mu), expected, rtol=1e-12, atol=0)


# Likelihoods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("real", "generated", "first", "lambda_", "history", "value"),
    [
        # equally likely answers: ln 2 for each term
        (-20.0, -20.0, -20.0, 1.0, 0.1, 1.1 * LN2),
        (-20.0, -20.0, None, 1.0, 0.1, LN2),
        # a real answer less likely by 3 nats: log(1 + e³)
        (-23.0, -20.0, None, 1.0, 0.0, 3.048587),
        # α = 1/2 halves the advantage of 2 ln 3 and the loss of 4 ln 2: log(1 + 1/3) + β log(1 + 4)
        (-5.0 + 2 * LN3, -5.0, -5.0 + 4 * LN2, 0.5, 0.3, math.log(4 / 3) + 0.3 * math.log(5)),
    ],
)
def test_t_spin_by_hand(real, generated, first, lambda_, history, value):
    sides = [None if side is None else torch.tensor([side], dtype=torch.float64) for side in (real, generated, first)]
    assert t_spin(*sides, lambda_, history).item() == pytest.approx(value, rel=2e-7)


def test_t_spin_slopes_by_hand():
    # at equal likelihoods every σ is 1/2: real -α/2, generated α/2 - βα/2, first βα/2
    assert at(partial(t_spin, lambda_=0.8, history_weight=0.3), -7.0, -7.0, -7.0)[1:] == pytest.approx(
        [-0.4, 0.28, 0.12]
    )


def test_t_spin_without_history_is_spin_without_an_opponent():
    real, generated, first = torch.randn(3, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 4
    expected = logistic(real - generated, 0.7)
    assert torch.equal(t_spin(real, generated, first, 0.7, 0.0), expected)
    assert torch.equal(t_spin(real, generated, None, 0.7, 0.5), expected)


# All ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "arguments"),
    [
        *((partial(loss, lambda_=0.7), 1) for loss in MARGIN_LOSSES),
        *((partial(space, lambda_=0.7, mu=mu), 2) for mu in (1.0, 3.0)),
        *((partial(loss, lambda_=0.7, shift=0.3), 2) for loss in GSIL_LOSSES),
        (partial(t_spin, lambda_=0.7, history_weight=0.4), 3),
    ],
    ids=lambda value: value.func.__name__ if isinstance(value, partial) else None,
)
@pytest.mark.parametrize("point", [(-3.0, 2.0, 0.5), (-0.2, 0.1, -2.0), (0.0, 0.0, 0.0), (2.5, -3.0, 1.0)])
def test_slopes_are_central_differences(loss, arguments, point):
    """With steps of h = 1e-5 they err by h²/6 times a third derivative and by rounding over h. The worst here is LSIF
    at u' = 0.7 · 2 + 0.3 = 1.7: a derivative of 4 · 0.7³ e^3.4 = 41, so 7e-10; and values below 20, so 4e-10.
    """
    point, step = point[:arguments], 1e-5
    _, *slopes = at(loss, *point)
    for i, slope in enumerate(slopes):
        above, below = (at(loss, *(x + sign * step * (j == i) for j, x in enumerate(point)))[0] for sign in (1, -1))
        assert slope == pytest.approx((above - below) / (2 * step), abs=2e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("loss", "point", "value", "slopes"),
    [
        # λ times what is on the wrong side, with the slope of a line; nothing on the right side
        (partial(logistic, lambda_=0.5), (-1e4,), 5e3, [-0.5]),
        (partial(logistic, lambda_=0.5), (1e4,), 0, [0]),
        # log(e^5000 · 3) + 3 log(e^5000 / 3)
        (partial(space, lambda_=0.5, mu=3.0), (-1e4, 1e4), 2e4 - 2 * LN3, [-0.5, 1.5]),
        (partial(space, lambda_=0.5, mu=3.0), (1e4, -1e4), 0, [0, 0]),
        # 5000 - 2 and 5000 + 2
        (partial(gsil_bernoulli, lambda_=0.5, shift=2.0), (-1e4, 1e4), 1e4, [-0.5, 0.5]),
        (partial(gsil_bernoulli, lambda_=0.5, shift=2.0), (1e4, -1e4), 0, [0, 0]),
        (partial(gsil_brier, lambda_=0.5, shift=2.0), (-1e4, 1e4), 2, [0, 0]),
        # 5000 and 0.1 · 10000
        (partial(t_spin, lambda_=0.5, history_weight=0.1), (-1e4, 0.0, 2e4), 5e3 + 1e3, [-0.5, 0.45, 0.05]),
        (partial(t_spin, lambda_=0.5, history_weight=0.1), (1e4, 0.0, -2e4), 0, [0, 0, 0]),
    ],
    ids=lambda value: value.func.__name__ if isinstance(value, partial) else None,
)
def test_ratios_of_ten_thousand_nats_overflow_nothing(loss, point, value, slopes, dtype):
    arguments = [torch.tensor(coordinate, dtype=dtype, requires_grad=True) for coordinate in point]
    result = loss(*arguments)
    result.backward()
    assert result.item() == pytest.approx(value, rel=1e-6)
    assert [argument.grad.item() for argument in arguments] == pytest.approx(slopes, rel=1e-6)


# The table ------------------------------------------------------------------------------------------------------------


def test_every_built_in_record_names_a_function_of_this_module_and_its_own_options():
    for record in BUILT_IN:
        assert record.compute is getattr(spintune.training.losses, record.name)
        parameters = list(inspect.signature(record.compute).parameters)
        sides = {"margin": ["margin_D"], "ratios": ["real_ratio_D", "generated_ratio_D"]}
        read = sides.get(record.kind, ["real_D", "generated_D", "first_D"])
        assert parameters == [*read, "lambda_", *record.options]


def test_a_name_is_taken_once_and_kinds_and_options_are_checked():
    with pytest.raises(RecipeError, match="a loss named 'logistic' already"):
        register_loss(SelfPlayLoss("logistic", hinge, "margin"))
    with pytest.raises(ValueError, match="kind is 'margins'; use margin, ratios, likelihoods"):
        SelfPlayLoss("mine", hinge, "margins")
    with pytest.raises(ValueError, match=r"unknown options \{'nu'\}; use mu, shift, history_weight"):
        SelfPlayLoss("mine", hinge, "margin", options=("nu",))


# The reference --------------------------------------------------------------------------------------------------------


def test_a_mixed_reference_lies_between_opponent_and_iterate_0():
    opponent, base = torch.tensor([-2.0, -10.0]), torch.tensor([-4.0, -6.0])
    assert mixed_reference(opponent, base, 0.25).tolist() == [-2.5, -9.0]
    assert torch.equal(mixed_reference(opponent, base, 0.0), opponent)  # SPIN
    assert torch.equal(mixed_reference(opponent, base, 1.0), base)  # a fixed reference, as DPO's


def test_the_normaliser_of_a_mixed_reference_cancels_in_the_margin_alone():
    """(0.5, 0.5)^(1/2) (0.9, 0.1)^(1/2) sums to Z = √0.45 + √0.05 = 0.894427."""
    opponent, base = torch.tensor([0.5, 0.5], dtype=torch.float64), torch.tensor([0.9, 0.1], dtype=torch.float64)
    mixture = mixed_reference(opponent.log(), base.log(), 0.5)
    normalised = torch.tensor([0.75, 0.25], dtype=torch.float64).log()  # √0.45 : √0.05 = 3 : 1
    assert (mixture[0] - mixture[1]).item() == pytest.approx(LN3)
    assert (mixture - normalised).tolist() == pytest.approx([math.log(0.894427)] * 2, abs=1e-6)
