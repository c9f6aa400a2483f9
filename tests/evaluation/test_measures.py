"""Measures against the packages and formulas that define them."""

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from spintune.evaluation.statistics import Interval, bootstrap
from spintune.metrics import exact_match
from spintune.text.rouge import rouge_l

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "rasbt_instructions_1100.json"
scorer = RougeScorer(["rougeL"], use_stemmer=False)


def reference_rouge(reference: str, answer: str) -> float:
    return scorer.score(reference, answer)["rougeL"].fmeasure


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the cat sat", "the cat") == pytest.approx(0.8)  # 2·1·(2/3) / (1 + 2/3)
    assert rouge_l("a b c d", "d c b a") == 0.25
    assert rouge_l("It's 3.5!", "it s 3 5") == 1
    assert rouge_l("", "") == rouge_l("a", "") == rouge_l("?", "?") == 0


def test_rouge_l_equals_rouge_score_on_real_answers() -> None:
    """Answers of one instruction data set against each other, with the neighbour's words mixed in."""
    if SHARED.exists():
        texts = [row["output"] for row in json.loads(SHARED.read_text()) if row["output"].isascii()][:400]
    else:
        words = ["The", "quick,", "fox's", "3.5", "jumps;", "over-the", "dog?", "No:", "2x", "a_b", "it", "isn't"]
        texts = [" ".join(random.Random(seed).choices(words, k=seed % 40)) for seed in range(400)]
    draw = random.Random(0)
    different = 0
    for text, other in itertools.pairwise(texts):
        mixed = " ".join(word for word in (text + " " + other).split() if draw.random() < 0.6)
        expected = reference_rouge(text, mixed)
        assert rouge_l(text, mixed) == pytest.approx(expected, abs=1e-12)
        assert rouge_l(text, other) == pytest.approx(reference_rouge(text, other), abs=1e-12)
        different += 0 < expected < 1
    assert different > 300


few_words = st.lists(st.sampled_from(["a", "b", "C", "c,", "1", "-", "a.b", "a_b"]), max_size=12).map(" ".join)
ascii_texts = few_words | st.text(st.characters(codec="ascii"), max_size=40)


@settings(deadline=None)
@given(reference=ascii_texts, answer=ascii_texts)
def test_rouge_l_equals_rouge_score_on_any_ascii_text(reference: str, answer: str) -> None:
    assert rouge_l(reference, answer) == pytest.approx(reference_rouge(reference, answer), abs=1e-12)


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("a b", " a\n b ", True),
        ("a b", "ab", False),
        ("a", "A", False),
        ("a.", "a", False),
        ("", " ", True),
        ("a\u00a0b", "a b", True),
    ],
)
def test_exact_match_forgives_white_space_only(reference: str, answer: str, equal: bool) -> None:
    assert exact_match(reference, answer) == equal


# Intervals -----------------------------------------------------------------------------------------------------------


def coverage(hits: Sequence[bool]) -> None:
    """The share of intervals that hold the truth is 95 %, within three standard errors of so many repeats."""
    error = math.sqrt(0.95 * 0.05 / len(hits))
    assert abs(np.mean(hits) - 0.95) < 3 * error


def test_the_interval_holds_the_true_mean_95_times_in_100() -> None:
    """300 samples of 100 from a uniform distribution, whose mean is 1/2."""
    random_numbers = np.random.default_rng(1)
    intervals = [bootstrap(random_numbers.uniform(size=100), resamples=1000, seed=repeat) for repeat in range(300)]
    coverage([interval.low <= 0.5 <= interval.high for interval in intervals])


def test_the_interval_of_a_ratio_holds_the_true_ratio_95_times_in_100() -> None:
    """Items of 1 to 50 tokens, each token costing 2 nats and a little noise: 2 nats a token."""
    random_numbers = np.random.default_rng(2)
    hits = []
    for repeat in range(300):
        tokens = random_numbers.integers(1, 51, size=100)
        interval = bootstrap(random_numbers.normal(2 * tokens, np.sqrt(tokens)), tokens, resamples=1000, seed=repeat)
        hits.append(interval.low <= 2 <= interval.high)
    coverage(hits)


def test_the_interval_is_as_wide_as_normal_theory_says() -> None:
    values = np.random.default_rng(3).normal(5, 2, size=400)
    interval = bootstrap(values)
    assert interval.mean == pytest.approx(values.mean())
    expected = 2 * 1.959964 * values.std(ddof=1) / math.sqrt(400)
    assert interval.high - interval.low == pytest.approx(expected, rel=0.1)


def test_weights_make_a_ratio_of_sums_and_not_a_mean_of_ratios() -> None:
    """10 nats on 1 token and 10 on 9: 20/10 = 2 nats a token, while the mean of 10 and 10/9 is 5.6."""
    interval = bootstrap([10, 10], [1, 9])
    assert interval.mean == 2
    assert (interval.low, interval.high) == (pytest.approx(10 / 9), pytest.approx(10))
    same = bootstrap([2, 8, 4], [1, 4, 2])
    assert (same.low, same.mean, same.high) == (2, 2, 2)


def test_intervals_are_a_function_of_their_arguments() -> None:
    values = list(np.random.default_rng(4).normal(size=30))
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values)
    assert bootstrap([3.0]) == Interval(3, 3, 3)


def test_no_items_are_an_error() -> None:
    with pytest.raises(ValueError, match="no items"):
        bootstrap([])
