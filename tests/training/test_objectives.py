"""Objectives by hand: which answers meet, what they weigh, and where a loss starts."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from spintune.engine.query import LogProbs
from spintune.records import Answer, Pair
from spintune.tokens.rows import TokenRow
from spintune.training.objectives import NegativeLogLikelihood, SelfPlay

LN2, LN3 = math.log(2), math.log(3)


def answer(tokens: int, opponent: float | None, base: float | None = None) -> Answer:
    return Answer(tuple(range(2, 2 + tokens)), "text", True, opponent, base)


def pair(real: Answer, *generated: Answer, first: Answer | None = None, weight: float = 1.0) -> Pair:
    return Pair("id", (1,), real, generated, first, weight=weight)


def scored(pairs, *sums: float) -> LogProbs:
    """The player's log-probabilities of all answers of some pairs."""
    sum_N = torch.tensor(sums, dtype=torch.float64, requires_grad=True)
    return LogProbs(sum_N, torch.tensor([len(a.ids) for pair in pairs for a in pair.answers]), sum_N)


def by_opponent(pairs) -> LogProbs:
    return scored(pairs, *(a.opponent for pair in pairs for a in pair.answers))


# Supervised fine-tuning -----------------------------------------------------------------------------------------------


def test_likelihood_counts_trained_tokens_only():
    row = TokenRow("id", (1, 2), (3, 4, 5), (True, False, True), True)
    objective = NegativeLogLikelihood()
    assert objective.query(row).scored == ((True, False, True),)
    assert objective.weight(row) == 2
    assert objective.initial_logprobs([row]) is None
    sum_N = torch.tensor([-1.5, -2.0])
    assert objective([row, row], LogProbs(sum_N, torch.tensor([2, 2]), sum_N)).total.item() == 3.5


# Self-play: one duel a pair -------------------------------------------------------------------------------------------


def test_self_play_facts_by_hand():
    # r = -3 + 4 = 1, r' = -7 + 5 = -2, m = 3; and r = -2, r' = 1, m = -3
    pairs = [pair(answer(2, -4.0), answer(1, -5.0))] * 2
    logprobs = scored(pairs, -3, -7, -6, -4)
    result = SelfPlay("logistic", lambda_=0.5)(pairs, logprobs)
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
    assert logprobs.sum_N.grad.tolist() == pytest.approx([slopes[0], -slopes[0], slopes[1], -slopes[1]], rel=1e-12)


def test_a_margin_of_nothing_is_no_hit():
    pairs = [pair(answer(1, -1.0), answer(1, -2.0))]
    assert SelfPlay()(pairs, by_opponent(pairs)).facts["accuracy"] == 0


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        # r = ln 3, r' = -ln 2, m = ln 6
        (SelfPlay("logistic", 1.0), math.log(7 / 6)),
        (SelfPlay("hinge", 0.1), 1 - 0.1 * math.log(6)),
        (SelfPlay("exponential", 2.0), 1 / 36),
        (SelfPlay("correlation", 2.0), 1 - 2 * math.log(6)),
        (SelfPlay("ipo", 0.5), (math.log(6) - 1) ** 2),
        # log(1 + 3/3) + 3 log(1 + 1/2/3)
        (SelfPlay("space", 1.0, mu=3.0), LN2 + 3 * math.log(7 / 6)),
        # u = ln 3 + ln 2 = ln 6, u' = -ln 2 + ln 2 = 0
        (SelfPlay("gsil_bernoulli", 1.0, shift=LN2), math.log(7 / 6) + LN2),
        (SelfPlay("gsil_brier", 1.0, shift=LN2), 1 / 49 + 1 / 4),
        (SelfPlay("gsil_hinge", 1.0, shift=LN2), 0 + 1),
        (SelfPlay("gsil_kliep", 1.0, shift=LN2), 1 - math.log(6)),
        (SelfPlay("gsil_lsif", 1.0, shift=LN2), 1 / 2 - 6),
        # log p(y) - log p(y') = (-4 + ln 3) - (-5 - ln 2) = 1 + ln 6
        (SelfPlay("t_spin", 1.0), math.log1p(math.exp(-1) / 6)),
    ],
    ids=lambda value: value.loss if isinstance(value, SelfPlay) else None,
)
def test_every_loss_gets_what_it_looks_at(objective, value):
    pairs = [pair(answer(3, -4.0), answer(2, -5.0))]
    assert objective(pairs, scored(pairs, -4 + LN3, -5 - LN2)).total.item() == pytest.approx(value, rel=1e-12)


# Self-play: several negatives, weights --------------------------------------------------------------------------------


def test_a_pairs_loss_is_the_mean_over_its_duels():
    # r = 1; r' = -2, 0, 3 with margins 3, 1, -2; hinges of λ = 1/2: 0, 1/2, 2
    pairs = [pair(answer(2, -4.0), answer(1, -5.0), answer(4, -6.0), answer(3, -7.0))]
    logprobs = scored(pairs, -3, -7, -6, -4)
    result = SelfPlay("hinge", 0.5)(pairs, logprobs)
    assert result.total.item() == pytest.approx(2.5 / 3)
    assert result.facts == pytest.approx(
        {
            "real_ratio": 1,
            "generated_ratio": 1 / 3,
            "margin": 2 / 3,
            "accuracy": 2 / 3,
            "real_logprob": -3,
            "generated_logprob": -17 / 3,
        }
    )
    result.total.backward()
    # a third of ±λ from each of the two duels that are not won
    assert logprobs.sum_N.grad.tolist() == pytest.approx([-1 / 3, 0, 1 / 6, 1 / 6])


def test_pairs_count_by_their_weights():
    # margins 3 and -3; losses 1 - m of -2 and 4
    pairs = [
        pair(answer(2, -4.0), answer(1, -5.0), weight=1.5),
        pair(answer(2, -4.0), answer(1, -5.0), weight=0.25),
    ]
    objective = SelfPlay("correlation", 1.0)
    result = objective(pairs, scored(pairs, -3, -7, -6, -4))
    assert list(map(objective.weight, pairs)) == [1.5, 0.25]
    assert result.total.item() == pytest.approx(1.5 * -2 + 0.25 * 4)
    assert result.facts["margin"] == pytest.approx(1.5 * 3 - 0.25 * 3)
    assert result.facts["accuracy"] == 1.5
    assert objective.start(pairs) == pytest.approx(1.0)  # a mean: weights that are all there cancel


def test_pairs_of_one_call_and_of_several_give_the_same_sums():
    pairs = [
        pair(answer(2, -4.0), answer(1, -5.0), first=answer(2, -5.5)),
        pair(answer(3, -4.5), answer(1, -5.0), answer(5, -9.0), first=answer(1, -2.0), weight=0.5),
        pair(answer(1, -1.0), answer(2, -2.0), answer(2, -2.5), answer(4, -6.0), first=answer(3, -3.0)),
    ]
    sums = [[-3.0, -6.0, -5.0], [-4.0, -6.0, -7.0, -2.5], [-2.0, -1.0, -3.0, -5.0, -4.0]]
    for loss in ("logistic", "space", "t_spin"):
        objective = SelfPlay(loss, 0.7, mu=3.0, history_weight=0.4, gamma=0.2)
        together = objective(pairs, scored(pairs, *sums[0], *sums[1], *sums[2]))
        alone = [objective([p], scored([p], *s)) for p, s in zip(pairs, sums, strict=True)]
        assert together.total.item() == pytest.approx(sum(result.total.item() for result in alone), rel=1e-12)
        for name, value in together.facts.items():
            assert value == pytest.approx(sum(result.facts[name] for result in alone), rel=1e-12, abs=1e-12)


# Self-play: lengths, likelihood, references ---------------------------------------------------------------------------


def test_gamma_adds_the_likelihood_of_the_real_answer_a_token():
    # real: -6 nats in 4 tokens, so 1.5 a token, once for each pair however many answers it meets
    pairs = [pair(answer(4, -6.0), answer(1, -5.0), answer(2, -1.0), weight=2.0)]
    logprobs = by_opponent(pairs)
    result = SelfPlay("logistic", 0.1, gamma=0.3)(pairs, logprobs)
    assert result.total.item() == pytest.approx(2 * (LN2 + 0.3 * 1.5))
    result.total.backward()
    # real: weight · (-λ/2 - γ/4); generated: weight · λ/2, shared by two
    assert logprobs.sum_N.grad.tolist() == pytest.approx([2 * (-0.05 - 0.075), 0.05, 0.05])


def test_length_normalize_divides_ratios_by_tokens_and_leaves_facts_alone():
    # r = 1 over 2 tokens, r' = -2 over 4: 1/2 + 1/2; facts stay nats an answer
    pairs = [pair(answer(2, -4.0), answer(4, -5.0))]
    logprobs = scored(pairs, -3, -7)
    result = SelfPlay("correlation", 0.1, length_normalize=True)(pairs, logprobs)
    assert result.total.item() == pytest.approx(1 - 0.1 * 1)
    assert result.facts["margin"] == 3
    result.total.backward()
    assert logprobs.sum_N.grad.tolist() == pytest.approx([-0.1 / 2, 0.1 / 4])
    # log(1 + e^-r/2) + log(1 + e^r'/4) alike
    space = SelfPlay("space", 1.0, length_normalize=True)(pairs, scored(pairs, -3, -7))
    assert space.total.item() == pytest.approx(2 * math.log1p(math.exp(-0.5)))
    # the likelihood term is a token's already: 1 - 0.1 + γ · 3/2
    anchored = SelfPlay("correlation", 0.1, length_normalize=True, gamma=0.2)(pairs, scored(pairs, -3, -7))
    assert anchored.total.item() == pytest.approx(0.9 + 0.2 * 1.5)


def test_length_normalize_divides_the_likelihoods_of_t_spin():
    # a token: -3/2, -7/4, -6/3; advantage 1/4, history 1/4
    pairs = [pair(answer(2, -4.0), answer(4, -5.0), first=answer(3, -6.0))]
    result = SelfPlay("t_spin", 1.0, history_weight=0.5, length_normalize=True)(pairs, scored(pairs, -3, -7, -6))
    assert result.total.item() == pytest.approx(1.5 * math.log1p(math.exp(-1 / 4)))


def test_a_mixed_reference_starts_away_from_ln_2_where_the_base_differs():
    # reference of the real answer: 3/4 · -4 + 1/4 · -8 = -5, of the generated one: 3/4 · -5 + 1/4 · -1 = -4;
    # r = -4 + 5 = 1, r' = -5 + 4 = -1, m = 2
    pairs = [pair(answer(2, -4.0, -8.0), answer(1, -5.0, -1.0))]
    objective = SelfPlay("logistic", 0.5, reference_mixture=0.25)
    assert objective.start(pairs) == pytest.approx(math.log1p(math.exp(-1)))
    facts = objective(pairs, by_opponent(pairs)).facts
    assert (facts["real_ratio"], facts["generated_ratio"], facts["margin"]) == pytest.approx((1, -1, 2))
    # in the first iteration the opponent is iterate 0
    own = [pair(answer(2, -4.0, -4.0), answer(1, -5.0, -5.0))]
    assert objective.start(own) == pytest.approx(LN2)


def test_t_spin_with_and_without_iterate_0s_answer():
    # advantage -4 + 5 = 1, history -5 + 6 = 1: log(1 + e^-1) once, or 1.1 times
    once = math.log1p(math.exp(-1))
    real, generated = answer(2, -4.0), answer(4, -5.0)
    objective = SelfPlay("t_spin", 1.0, history_weight=0.1)
    with_first, without = [pair(real, generated, first=answer(3, -6.0))], [pair(real, generated)]
    assert objective.start(with_first) == pytest.approx(1.1 * once)
    assert objective.start(without) == pytest.approx(once)
    assert replace(objective, history_weight=0.0).start(with_first) == pytest.approx(once)
    # a second duel, in which iterate 0's answer takes part again: advantage 3, history -1
    two = [pair(real, generated, answer(1, -7.0), first=answer(3, -6.0))]
    other = math.log1p(math.exp(-3)) + 0.1 * math.log1p(math.exp(1))
    assert objective.start(two) == pytest.approx((1.1 * once + other) / 2)


def test_iterate_0s_answer_means_nothing_to_other_losses():
    real, generated, first = answer(2, -4.0), answer(4, -5.0), answer(3, -6.0)
    for loss in ("logistic", "space", "gsil_kliep"):
        objective = SelfPlay(loss, 0.5, history_weight=0.5)
        pairs, bare = [pair(real, generated, first=first)] * 2, [pair(real, generated)] * 2
        result = objective(pairs, scored(pairs, -3, -7, -1, -2, -3, -9))
        assert result.total.item() == objective(bare, scored(bare, -3, -7, -2, -3)).total.item()


# Self-play: asking and starting ---------------------------------------------------------------------------------------


def test_self_play_asks_for_real_then_generated_then_first():
    real, one, two, first = (Answer((token, token), "text", True) for token in (5, 6, 7, 8))
    assert SelfPlay().query(pair(real, one, two, first=first)).responses == ((5, 5), (6, 6), (7, 7), (8, 8))
    assert SelfPlay().query(pair(real, one)).responses == ((5, 5), (6, 6))
    assert SelfPlay().query(pair(real, one)).prompt == (1,)
    assert SelfPlay().query(pair(real, one)).scored is None  # every token of an answer


@pytest.mark.parametrize(
    ("objective", "value"),
    [
        (SelfPlay("logistic", 0.1), LN2),
        (SelfPlay("hinge", 0.1), 1),
        (SelfPlay("exponential", 0.1), 1),
        (SelfPlay("correlation", 0.1), 1),
        (SelfPlay("ipo", 0.1), 25),
        (SelfPlay("space", 1.0, mu=1.0), 1.386294),
        (SelfPlay("space", 0.1, mu=3.0), 2.249341),
        (SelfPlay("space", 0.1, mu=7.0), 3.014161),
        (SelfPlay("gsil_bernoulli", 0.01, shift=2.0), 2.253856),
        (SelfPlay("gsil_brier", 0.01, shift=2.0), 0.790013),
        (SelfPlay("gsil_hinge", 0.01, shift=2.0), 3),
        (SelfPlay("gsil_kliep", 0.01, shift=2.0), 5.389056),
        (SelfPlay("gsil_lsif", 0.01, shift=2.0), 19.910019),
        (SelfPlay("gsil_lsif", 0.01, length_normalize=True), -0.5),
        # advantages: 4, 3 and 5 nats, so log(1 + e^-4), ...; pairs weigh 1 and 1/2, duels of the second half of that
        (
            SelfPlay("t_spin", 1.0),
            (math.log1p(math.exp(-4)) + (math.log1p(math.exp(-3)) + math.log1p(math.exp(-5))) / 4) / 1.5,
        ),
        # ln 2 and γ times 4/2 and 6/3 nats a token
        (SelfPlay("logistic", 0.1, gamma=0.1), LN2 + 0.1 * 2),
        # base scores all of 0: r = (1 - 1/2) log p_t, so m = 1/2 · 4, 1/2 · 3, 1/2 · 5
        (SelfPlay("correlation", 1.0, reference_mixture=0.5), 1 - (2 + (1.5 + 2.5) / 4) / 1.5),
    ],
    ids=lambda value: f"{value.loss}-{value.mu}-{value.shift}-{value.gamma}" if isinstance(value, SelfPlay) else None,
)
def test_the_start_is_the_loss_of_the_opponents_own_scores(objective, value):
    pairs = [
        pair(answer(2, -4.0, 0.0), answer(4, -8.0, 0.0)),
        pair(answer(3, -6.0, 0.0), answer(1, -9.0, 0.0), answer(2, -11.0, 0.0), weight=0.5),
    ]
    assert objective.start(pairs) == pytest.approx(value, rel=5e-7)
    total = objective(pairs, by_opponent(pairs)).total.item()
    assert objective.start(pairs) == pytest.approx(total / 1.5, rel=1e-12)


@pytest.mark.parametrize("mixture", [0.0, 0.5])
def test_a_pair_that_was_not_scored_is_refused(mixture):
    pairs = [pair(answer(2, None if mixture == 0 else -4.0), answer(4, -5.0, -5.0))]
    with pytest.raises(ValueError, match="was not scored"):
        SelfPlay(reference_mixture=mixture)(pairs, scored(pairs, -4, -5))
