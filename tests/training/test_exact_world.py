"""The theory, played out: one prompt, five answers, every expectation exact, through the real objective and loop.

With p = p_data and q = p_t, a pair (y, y') has weight p(y) q(y'). An optimum of the logistic loss is then known for
every λ (arXiv 2401.01335, theorem 5.4), and so is where iteration after iteration leads.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from spintune.engine.query import LogProbs
from spintune.recipe.losses import LOSSES
from spintune.records import Answer, Pair
from spintune.selfplay.filters import without_degenerate
from spintune.training.batches import Batches
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import TrainingHooks, train
from spintune.training.objectives import SelfPlay
from spintune.training.optimization import Optimization

DATA = torch.tensor([0.4, 0.25, 0.2, 0.1, 0.05], dtype=torch.float64)
START = torch.tensor([0.1, 0.3, 0.15, 0.05, 0.4], dtype=torch.float64)
MARGIN_LOSSES = ["logistic", "hinge", "exponential", "correlation", "ipo"]
GSIL_LOSSES = ["gsil_bernoulli", "gsil_brier", "gsil_hinge", "gsil_kliep", "gsil_lsif"]
SLOW = pytest.mark.slow
TINY = 1e-14  # a slope of nothing: sums of numbers up to 50, rounded


class Table(nn.Module):
    """A player of one prompt: a logit for each answer."""

    def __init__(self, probability_A: Tensor) -> None:
        super().__init__()
        self.logit_A = nn.Parameter(probability_A.log())


class TableEngine:
    """What the loop asks of an engine, read from a table. An answer is one token, its place in the table."""

    autocast = None
    tokens_per_forward = 10**6
    is_sharded = False

    def __init__(self, probability_A: Tensor) -> None:
        self.model = Table(probability_A)

    def __call__(self, queries) -> LogProbs:
        answers_N = torch.tensor([response[0] for query in queries for response in query.responses])
        sum_N = self.model.logit_A.log_softmax(-1)[answers_N]
        return LogProbs(sum_N, torch.ones_like(answers_N), sum_N)

    @property
    def probabilities(self) -> Tensor:
        return self.model.logit_A.detach().softmax(-1)


def every_pair(data_A, opponent_A, negatives=1, base_A=None, first_A=None, identical=True) -> list[Pair]:
    """Every way to draw a pair, weighted by how often it is drawn."""
    scores = opponent_A.log().tolist()
    bases = [None] * len(scores) if base_A is None else base_A.log().tolist()
    answers = [Answer((y,), str(y), True, *score) for y, score in enumerate(zip(scores, bases, strict=True))]
    pairs = []
    for real, *generated in itertools.product(range(len(scores)), repeat=1 + negatives):
        weight = (data_A[real] * opponent_A[generated].prod()).item()
        if not identical and real in generated:
            continue
        for first in [None] if first_A is None else range(len(scores)):
            pairs.append(
                Pair(
                    "prompt",
                    (0,),
                    answers[real],
                    tuple(answers[y] for y in generated),
                    None if first is None else answers[first],
                    weight=weight * (1 if first is None else first_A[first].item()),
                )
            )
    return pairs


def slopes(objective, pairs, player_A) -> Tensor:
    """Gradient of the expected loss in a player's logits."""
    engine = TableEngine(player_A)
    objective(pairs, engine([objective.query(pair) for pair in pairs])).total.backward()
    return engine.model.logit_A.grad


def expected_loss(objective, pairs, player_A) -> float:
    return objective(pairs, TableEngine(player_A)([objective.query(pair) for pair in pairs])).total.item()


@pytest.fixture
def iterate(tmp_path):
    """``iterate(objective, opponent)``: the player trained from its opponent to the optimum, and its last loss."""

    def to_optimum(objective, opponent_A, pairs=None) -> tuple[Tensor, float]:
        pairs = pairs or every_pair(DATA, opponent_A)
        engine, losses = TableEngine(opponent_A), []
        train(
            engine,
            Batches(pairs, [list(range(len(pairs)))] * 400),
            objective,
            Optimization(0.3, "cosine", warmup=0.0, max_grad_norm=0.0),
            Checkpoints(tmp_path, minutes=1e9),
            TrainingHooks(on_step=lambda report: losses.append(report.loss)),
        )
        return engine.probabilities, losses[-1]

    return to_optimum


def normalised(weight_A: Tensor) -> Tensor:
    return weight_A / weight_A.sum()


def theorem_5_4(opponent_A: Tensor, lambda_: float) -> Tensor:
    return normalised(opponent_A * (DATA / opponent_A) ** (1 / lambda_))


def kl(p_A: Tensor, q_A: Tensor) -> float:
    return (p_A * (p_A / q_A).log()).sum().item()


def centred_log_ratio(player_A: Tensor) -> Tensor:
    """log p/p_data up to normalisation."""
    ratio_A = (player_A / DATA).log()
    return ratio_A - ratio_A.mean()


# One iteration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lambda_", [pytest.param(0.5, marks=SLOW), 1.0, 2.0, pytest.param(5.0, marks=SLOW)])
def test_logistic_play_lands_on_the_player_of_theorem_5_4(lambda_, iterate):
    """p ∝ q (p_data/q)^(1/λ), and the least loss is log 2 - JSD(p+ || p-), whatever λ is (lemma C.2). p+ is the law of
    the pairs and p- that of the mirrored ones.
    """
    objective, pairs, target_A = SelfPlay("logistic", lambda_), every_pair(DATA, START), theorem_5_4(START, lambda_)
    plus_AA = torch.outer(DATA, START)
    middle_AA = (plus_AA + plus_AA.T) / 2
    least = math.log(2) - (kl(plus_AA, middle_AA) + kl(plus_AA.T, middle_AA)) / 2

    assert slopes(objective, pairs, target_A).abs().max() < TINY
    assert expected_loss(objective, pairs, target_A) == pytest.approx(least, rel=1e-12)

    player_A, loss = iterate(objective, START)
    assert (player_A - target_A).abs().max() < 1e-6
    assert loss == pytest.approx(least, abs=1e-10)  # quadratic around its least


@pytest.mark.slow
def test_two_negatives_a_pair_have_the_optimum_of_one(iterate):
    objective = SelfPlay("logistic", 2.0)
    player_A, loss = iterate(objective, START, every_pair(DATA, START, negatives=2))
    assert (player_A - theorem_5_4(START, 2.0)).abs().max() < 1e-6
    assert loss == pytest.approx(iterate(objective, START)[1], abs=1e-10)


@pytest.mark.parametrize(
    "objective",
    [
        SelfPlay("space", 1.0, mu=1.0),
        pytest.param(SelfPlay("space", 1.0, mu=3.0), marks=SLOW),
        SelfPlay("gsil_bernoulli", 1.0, shift=0.0),
        *(pytest.param(SelfPlay(f"gsil_{name}", 1.0, shift=0.0), marks=SLOW) for name in ("brier", "kliep", "lsif")),
    ],
    ids=lambda objective: f"{objective.loss}-{objective.mu}",
)
def test_ratio_losses_with_lambda_1_land_on_p_data_at_once(objective, iterate):
    """Their optimum over all functions is λr = log p_data/q (the hinge's is the sign of that). With λ = 1 this is the
    ratio of two distributions, so a player attains it.
    """
    player_A, _ = iterate(objective, START)
    assert (player_A - DATA).abs().max() < 1e-6


def test_only_a_margin_forgives_a_ratio_that_is_not_normalised():
    """With λ = 2, q (p_data/q)^(1/2) sums to less than 1. Its normaliser cancels in the margin, so it is the optimum
    after division; in r it does not, and SPACE's optimum is another player.
    """
    target_A, pairs = theorem_5_4(START, 2.0), every_pair(DATA, START)
    assert (START * DATA).sqrt().sum() < 0.9
    assert slopes(SelfPlay("logistic", 2.0), pairs, target_A).abs().max() < TINY
    assert slopes(SelfPlay("space", 2.0), pairs, target_A).abs().max() > 1e-3


def test_identical_pairs_teach_nothing_to_a_margin_but_hold_a_ratio():
    """At p_data the slope of SPACE (λ = μ = 1) in log p(a) is q(a)σ(r) - p(a)σ(-r) = 0, by answers. Without the pairs
    (a, a) each side loses q(a)p(a) of its weight, and p q (q - p)/(p + q) remains.
    """
    whole, without = (every_pair(DATA, START, identical=identical) for identical in (True, False))
    for loss in MARGIN_LOSSES:
        objective, player_A = SelfPlay(loss, 2.0), normalised(START.sqrt())
        both = slopes(objective, whole, player_A), slopes(objective, without, player_A)
        torch.testing.assert_close(*both, rtol=0, atol=TINY)
    left_A = DATA * START * (START - DATA) / (DATA + START)
    assert slopes(SelfPlay("space", 1.0), whole, DATA).abs().max() < TINY
    torch.testing.assert_close(
        slopes(SelfPlay("space", 1.0), without, DATA), left_A - DATA * left_A.sum(), rtol=0, atol=TINY
    )


@pytest.mark.parametrize("negatives", [1, 2, 4])
@pytest.mark.parametrize("loss", MARGIN_LOSSES)
def test_p_data_is_kept_by_the_pairs_that_the_filter_keeps(loss, negatives):
    """Expected step of one pair, which is divided by the pair's weight. With two negatives, pairs that lose the answers
    equal to the real one give the likeliest answer a slope of -0.025 under the logistic loss.
    """
    data_A, objective = normalised(DATA[:3]), SelfPlay(loss, 1.0)
    total_A = torch.zeros_like(data_A)
    for pair in without_degenerate(every_pair(data_A, data_A, negatives)).kept:
        total_A += pair.weight * slopes(objective, [pair], data_A) / objective.weight(pair)
    assert total_A.abs().max() < TINY


@pytest.mark.parametrize("loss", ["logistic", "space", "gsil_bernoulli"])
def test_a_player_unlearns_to_answer_nothing(loss):
    """Half of the opponent's answers, and none of the real ones, have no text. The other half has the law of the data,
    so without those it would stay. At r = r' = 0 and λ = 1 the slope is (q - p_data) / 2.
    """
    data_A, opponent_A = (torch.tensor(law, dtype=torch.float64) for law in ([0.5, 0.5, 0], [0.25, 0.25, 0.5]))
    pairs = [
        replace(pair, generated=tuple(replace(one, text="" if one.ids == (2,) else "text") for one in pair.generated))
        for pair in every_pair(data_A, opponent_A)
    ]
    kept = without_degenerate(pairs, LOSSES[loss].learns_from_identical).kept
    by_hand_A = torch.tensor([-0.125, -0.125, 0.25], dtype=torch.float64)
    slope_A = slopes(SelfPlay(loss, 1.0), kept, opponent_A)
    torch.testing.assert_close(slope_A, by_hand_A, rtol=0, atol=TINY)


# Iterations -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_lambda_2_halves_the_way_to_p_data_in_every_iteration(iterate):
    """log p/p_data is multiplied by 1 - 1/λ = 1/2, up to normalisation."""
    player_A = START
    for _ in range(4):
        before_A, (player_A, _) = player_A, iterate(SelfPlay("logistic", 2.0), player_A)
        assert kl(DATA, player_A) < kl(DATA, before_A)
        torch.testing.assert_close(centred_log_ratio(player_A), centred_log_ratio(before_A) / 2, rtol=0, atol=1e-5)
    torch.testing.assert_close(centred_log_ratio(player_A), centred_log_ratio(START) / 16, rtol=0, atol=1e-5)


def test_lambda_1_is_there_after_one_iteration_and_stays(iterate):
    player_A, _ = iterate(SelfPlay("logistic", 1.0), START)
    assert kl(DATA, player_A) < 1e-10
    player_A, loss = iterate(SelfPlay("logistic", 1.0), player_A)
    assert kl(DATA, player_A) < 1e-10
    assert loss == pytest.approx(math.log(2), abs=1e-10)  # nothing is left to tell apart


@pytest.mark.slow
def test_lambda_below_a_half_overshoots_further_in_every_iteration(iterate):
    """λ = 0.4: log p/p_data is multiplied by 1 - 2.5 = -1.5, so even a player close to p_data leaves it."""
    player_A = normalised(DATA * (START / DATA) ** 0.1)
    for _ in range(4):
        before_A, (player_A, _) = player_A, iterate(SelfPlay("logistic", 0.4), player_A)
        assert kl(DATA, player_A) > 1.5 * kl(DATA, before_A)  # KL is quadratic at first, so it grows by about 2.25
        torch.testing.assert_close(centred_log_ratio(player_A), -1.5 * centred_log_ratio(before_A), rtol=0, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.25, pytest.param(1.0, marks=SLOW)])
def test_a_mixed_reference_ends_between_iterate_0_and_p_data(alpha, iterate):
    """Against q^(1-α) p0^α an optimum is q^(1-α) p0^α (p_data/q)^(1/λ). What this maps to itself is
    p0^(αλ/(1+αλ)) p_data^(1/(1+αλ)), which is p_data only for p0 = p_data.
    """
    objective, lambda_ = SelfPlay("logistic", 2.0, reference_mixture=alpha), 2.0
    opponent_A = normalised(START.sqrt())
    player_A, _ = iterate(objective, opponent_A, every_pair(DATA, opponent_A, base_A=START))
    mixture_A = opponent_A ** (1 - alpha) * START**alpha
    assert (player_A - normalised(mixture_A * (DATA / opponent_A) ** (1 / lambda_))).abs().max() < 1e-6

    share = alpha * lambda_ / (1 + alpha * lambda_)
    fixed_A = normalised(START**share * DATA ** (1 - share))
    pairs = every_pair(DATA, fixed_A, base_A=START)
    assert slopes(objective, pairs, fixed_A).abs().max() < TINY
    assert slopes(objective, every_pair(DATA, DATA, base_A=START), DATA).abs().max() > 1e-2


# Fixed points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "objective",
    [
        *(SelfPlay(loss, 0.3) for loss in MARGIN_LOSSES),
        SelfPlay("space", 0.3, mu=1.0),
        SelfPlay("space", 0.3, mu=3.0),
        *(SelfPlay(loss, 0.3, shift=shift) for loss in GSIL_LOSSES for shift in (0.0, 2.0)),
        SelfPlay("logistic", 0.3, reference_mixture=0.5),
        SelfPlay("space", 0.3, mu=3.0, reference_mixture=0.5),
        SelfPlay("logistic", 0.3, gamma=0.7),
    ],
    ids=lambda o: f"{o.loss}-mu={o.mu}-shift={o.shift}-mixture={o.reference_mixture}-gamma={o.gamma}",
)
@pytest.mark.parametrize("negatives", [1, 2])
def test_a_player_that_is_p_data_is_moved_by_no_loss_with_a_reference(objective, negatives):
    assert slopes(objective, every_pair(DATA, DATA, negatives, base_A=DATA), DATA).abs().max() < TINY
    # real answers of another law do move it, but for a hinge that has them behind it from the start (λ · 0 + 2 > 1)
    moved = slopes(objective, every_pair(START, DATA, negatives, base_A=DATA), DATA).abs().max() > 1e-3
    assert moved == ((objective.loss, objective.shift) != ("gsil_hinge", 2.0))


V = 1 / (4 * math.cosh(1) ** 2)  # σ(2)σ(-2)


@pytest.mark.parametrize(
    ("loss", "settings", "slope", "curvature", "least"),
    [
        ("space", {"mu": 1.0}, 0, 1 / 2, 0),
        ("space", {"mu": 3.0}, 0, 3 / 4, 0),
        ("gsil_bernoulli", {"shift": 0.0}, 0, 1 / 2, 0),
        ("gsil_brier", {"shift": 0.0}, 0, 1 / 4, 0),
        ("gsil_kliep", {"shift": 0.0}, 0, 1, 0),
        ("gsil_lsif", {"shift": 0.0}, 0, 1, 0),
        ("gsil_bernoulli", {"shift": 2.0}, math.tanh(1), 2 * V, 3.6269),
        ("gsil_brier", {"shift": 2.0}, 2 * V * math.tanh(1), 2 * V * (6 * V - 1), math.inf),
        ("gsil_hinge", {"shift": 2.0}, 1, 0, math.inf),
        ("gsil_kliep", {"shift": 2.0}, math.exp(2) - 1, math.exp(2), 0.8647),
        ("gsil_lsif", {"shift": 2.0}, math.exp(4) - math.exp(2), 2 * math.exp(4) - math.exp(2), 0.4637),
    ],
    ids=lambda value: "-".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("lambda_", [0.01, 0.6, 2.0, 4.0])
def test_with_a_shift_gsil_has_its_least_at_p_data_only_for_a_large_lambda(
    loss, settings, slope, curvature, least, lambda_
):
    """With f(u) + g(u') the loss and q = p_data, take the player p ∝ p_data e^εv. Its ratio r has mean -ε²V/2 and mean
    square ε²V, with V the variance of v, so the expected loss rises by ε²V/2 · λ[λ(f'' + g'') - (f' + g')] at u = b.
    For SPACE and for b = 0, f' + g' = 0 and p_data is the least for every λ. For b = 2 it is a greatest unless λ
    exceeds (f' + g')/(f'' + g''): for Bernoulli sinh 2, for KLIEP 1 - e^-2, for LSIF (e² - 1)/(2e² - 1).
    """
    objective, pairs = SelfPlay(loss, lambda_, **settings), every_pair(DATA, DATA)
    v_A, step = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64), 1e-2 / max(1, lambda_)
    variance = ((DATA * v_A**2).sum() - (DATA * v_A).sum() ** 2).item()
    around = [expected_loss(objective, pairs, normalised(DATA * (sign * step * v_A).exp())) for sign in (1, -1)]
    rise = sum(around) / 2 - expected_loss(objective, pairs, DATA)
    assert rise == pytest.approx(step**2 * variance / 2 * lambda_ * (lambda_ * curvature - slope), rel=1e-2)
    assert (rise > 0) == (lambda_ > least)


# T-SPIN ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("history", [0.0, 0.1])
def test_t_spin_moves_a_player_that_is_p_data_towards_the_uniform_one(history):
    """For y, y' (and y0) drawn from p = p_data the slope in the logit of a is α p(a) Σ_b p(b) tanh(α/2 log p(a)/p(b)),
    once for the advantage and β times for the history: what is likelier than the rest is pushed down.
    """
    objective = SelfPlay("t_spin", 0.8, history_weight=history)
    pairs = every_pair(DATA, DATA, first_A=DATA if history else None)
    gap_AA = DATA.log()[:, None] - DATA.log()
    by_hand_A = 0.8 * DATA * (torch.tanh(0.8 * gap_AA / 2) @ DATA) * (1 + history)
    torch.testing.assert_close(slopes(objective, pairs, DATA), by_hand_A, rtol=0, atol=TINY)
    assert by_hand_A[0] > 0.05  # of the likeliest answer
    assert by_hand_A[-1] < -0.01


@pytest.mark.slow
def test_t_spin_without_history_turns_in_circles(iterate):
    """An optimum has α log p = log p_data/q + const. With α = 1 this leads from p_data to the uniform player, and from
    any player in two iterations back to it. Only p ∝ p_data^(1/(1+α)) stays.
    """
    objective = SelfPlay("t_spin", 1.0)
    uniform_A, _ = iterate(objective, DATA)
    assert (uniform_A - 1 / 5).abs().max() < 1e-6

    there_A, _ = iterate(objective, START)
    assert (there_A - normalised(DATA / START)).abs().max() < 1e-6
    back_A, _ = iterate(objective, there_A)
    assert (back_A - START).abs().max() < 1e-5

    for alpha in (0.5, 1.0, 2.0):
        fixed_A = normalised(DATA ** (1 / (1 + alpha)))
        assert slopes(SelfPlay("t_spin", alpha), every_pair(DATA, fixed_A), fixed_A).abs().max() < TINY
