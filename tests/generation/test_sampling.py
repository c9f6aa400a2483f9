"""Choosing a token: the draws follow the distribution, which is checked against hand-computed ones."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from spintune.errors import NonFiniteError
from spintune.generation.sampling import Sampling, choose, penalize, stream_keys, uniforms

DRAWS = 10_000
GRID = (torch.arange(DRAWS, dtype=torch.float64) + 0.5) / DRAWS
BELOW_ONE = 1 - 2**-53
# 0.5, 0.25, 0.15, 0.1 in shuffled order
FOUR = torch.tensor([0.15, 0.5, 0.1, 0.25], dtype=torch.float64).log()


def frequencies(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Share of each token over an even grid of uniform numbers."""
    tokens, logprobs = choose(logits.expand(DRAWS, -1), GRID, sampling)
    shares = torch.bincount(tokens, minlength=len(logits)).double() / DRAWS
    # the reported log-probability is that of the distribution drawn from: an even grid meets it to within one draw
    assert (shares[tokens] - logprobs.double().exp()).abs().max() <= 1.01 / DRAWS
    return shares


@pytest.mark.parametrize("vocabulary", [1, 7, 256, 257, 300])
def test_an_even_grid_of_uniforms_reproduces_the_softmax_to_one_draw(vocabulary):
    logits = torch.randn(vocabulary, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2
    # an interval of length p holds the grid's points p * DRAWS to within one
    assert (frequencies(logits, Sampling(1)) - logits.softmax(-1)).abs().max() <= 1.01 / DRAWS


def test_tokens_of_probability_zero_are_never_drawn_at_any_uniform():
    logits = torch.full((700,), -math.inf)
    logits[[3, 300, 600]] = torch.tensor([0.0, 1.0, -30.0])
    edges = torch.tensor([0.0, 5e-324, 2**-53, 0.5, BELOW_ONE - 2**-53, BELOW_ONE], dtype=torch.float64)
    draws = torch.cat([edges, GRID])
    tokens, logprobs = choose(logits.expand(len(draws), -1), draws, Sampling(1))
    assert set(tokens.tolist()) <= {3, 300, 600}
    assert logprobs.isfinite().all()
    assert tokens[0] == 3
    assert tokens[5] == 600


def test_uniforms_at_the_border_of_two_blocks_never_draw_what_has_no_probability():
    # 0 and 1 hold the first block of 256 tokens, 300 all of the second one
    generator = torch.Generator().manual_seed(2)
    logits = torch.full((4000, 301), -math.inf)
    logits[:, 0] = torch.rand(4000, generator=generator) * 4 - 2
    logits[:, 1] = -30 - torch.rand(4000, generator=generator) * 10
    logits[:, 300] = 0
    probability = (logits - logits.logsumexp(-1, keepdim=True)).exp().double()
    border = probability[:, :256].sum(1) / (probability[:, :256].sum(1) + probability[:, 300])
    for uniform in (border, border.nextafter(torch.zeros(())), border.nextafter(torch.ones(()))):
        tokens, _ = choose(logits, uniform, Sampling(1))
        assert set(tokens.tolist()) <= {0, 1, 300}


def test_the_largest_uniform_draws_the_last_possible_token_however_sums_round():
    # 2,000 rows of 1,400 tokens in five blocks, and a sixth block without any probability
    logits = torch.randn(2000, 1400, generator=torch.Generator().manual_seed(4)) * 3
    logits[:, 1200:] = -math.inf
    tokens, logprobs = choose(logits, torch.full((2000,), BELOW_ONE, dtype=torch.float64), Sampling(1))
    assert tokens.max() < 1200
    assert tokens.min() > 1100
    assert logprobs.isfinite().all()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        # squares of 15, 50, 10, 25 (in 1/100): 225, 2500, 100, 625, together 3450
        (Sampling(1, temperature=0.5), [225 / 3450, 2500 / 3450, 100 / 3450, 625 / 3450]),
        (Sampling(1, top_k=2), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(1, top_k=4), [0.15, 0.5, 0.1, 0.25]),
        (Sampling(1, top_k=99), [0.15, 0.5, 0.1, 0.25]),
        # the token that reaches the sum stays: 0.5 < 0.6 <= 0.75
        (Sampling(1, top_p=0.6), [0, 2 / 3, 0, 1 / 3]),
        (Sampling(1, top_p=0.01), [0, 1, 0, 0]),
        (Sampling(1, top_p=0.8), [0.15 / 0.9, 0.5 / 0.9, 0, 0.25 / 0.9]),
        # top-p of what top-k kept: 0.5 / 0.9 + 0.25 / 0.9 = 0.83 reaches 0.8, though 0.75 does not
        (Sampling(1, top_k=3, top_p=0.8), [0, 2 / 3, 0, 1 / 3]),
        # top-p after temperature: 0.725 reaches 0.7
        (Sampling(1, temperature=0.5, top_p=0.7), [0, 1, 0, 0]),
    ],
)
def test_truncated_distributions_by_hand(sampling, expected):
    assert frequencies(FOUR, sampling).tolist() == pytest.approx(expected, abs=1.01 / DRAWS)


@pytest.mark.parametrize("spread", [0.1, 3.0], ids=["flat", "peaked"])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 0.5), (0, 0.95), (700, 0.0001), (700, 0.9), (2, 1.0), (3000, 1.0)])
def test_truncation_of_a_large_vocabulary_keeps_what_full_sorting_keeps(spread, top_k, top_p):
    logits = torch.randn(5, 4001, generator=torch.Generator().manual_seed(6)) * spread
    ordered, tokens = logits.double().sort(-1, descending=True)
    ordered[:, top_k or 4001 :] = -math.inf
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    ordered[:, 1:][before[:, 1:] >= top_p] = -math.inf
    expected = torch.zeros(5, 4001, dtype=torch.float64).scatter(1, tokens, ordered.softmax(-1))
    uniform = torch.tensor([0.0, 0.3, 0.6, 0.9, BELOW_ONE], dtype=torch.float64)
    drawn, logprobs = choose(logits, uniform, Sampling(1, top_k=top_k, top_p=top_p))
    probability = expected[range(5), drawn]
    assert logprobs.tolist() == pytest.approx(probability.log().tolist(), abs=1e-4)
    # inversion in the order of the vocabulary
    upper = expected.cumsum(-1)[range(5), drawn]
    assert (uniform < upper + 1e-5).all()
    assert (upper - probability - 1e-5 <= uniform).all()


@pytest.mark.parametrize("damage", [math.nan, math.inf])
@pytest.mark.parametrize("sampling", [Sampling(1, temperature=0), Sampling(1), Sampling(1, top_k=2, top_p=0.5)])
def test_scores_that_are_not_finite_are_refused(sampling, damage):
    logits = torch.zeros(3, 700)
    logits[1, 400] = damage
    with pytest.raises(NonFiniteError, match="diverged"):
        choose(logits, torch.zeros(3, dtype=torch.float64), sampling)


def test_greedy_takes_the_most_likely_token_and_reports_the_models_own_log_probability():
    tokens, logprobs = choose(FOUR[None], torch.tensor([0.99]), Sampling(1, temperature=0, top_p=0.1))
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(math.log(0.5))


def test_rows_are_drawn_independently_of_each_other():
    logits = torch.randn(5, 300, generator=torch.Generator().manual_seed(3))
    uniform = torch.tensor([0.1, 0.9, 0.5, 0.0, BELOW_ONE], dtype=torch.float64)
    together, _ = choose(logits, uniform, Sampling(1, top_p=0.9))
    alone = [choose(logits[i : i + 1], uniform[i : i + 1], Sampling(1, top_p=0.9))[0].item() for i in range(5)]
    assert together.tolist() == alone


def test_a_stream_is_its_own_prefix_and_uniform():
    key = stream_keys([(1, 2, 3)], seed=0)[0]
    numbers = uniforms(key, 20_000)
    assert uniforms(key, 10) == numbers[:10]
    assert 0 <= min(numbers) <= max(numbers) < 1
    counts = np.bincount((np.array(numbers) * 20).astype(int), minlength=20)
    # chi-square of 19 degrees of freedom: 69 is exceeded once in ten million
    assert ((counts - 1000) ** 2 / 1000).sum() < 69


def test_keys_depend_on_seed_prompt_and_repetition_not_on_place():
    a, b = (1, 2), (12,)
    keys = stream_keys([a, b, a], seed=4)
    assert len(set(keys)) == 3
    assert stream_keys([b, a, a], seed=4) == [keys[1], keys[0], keys[2]]
    assert not set(keys) & set(stream_keys([a, b, a], seed=5))


def test_penalties_are_taken_off_what_was_written_once_or_for_each_time() -> None:
    """Token 1 twice and token 2 once, presence 0.5 and frequency 0.25: off come 0.5 + 2·0.25 and 0.5 + 0.25."""
    sampling = Sampling(4, presence_penalty=0.5, frequency_penalty=0.25)
    found = penalize(torch.zeros(2, 4), [[1, 2, 1], []], sampling)
    assert found.tolist() == [[0.0, -1.0, -0.75, 0.0], [0.0] * 4]
