"""Measures of one answer against its reference, and intervals over many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spintune.data import rouge
from spintune.data.words import split_words
from spintune.streams import numpy_stream


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F-measure of two texts (Lin 2004), as the ``rouge_score`` package defines it.

    The longest common subsequence of words, over both lengths: "the cat sat" against "the cat" has an LCS of 2,
    precision 2/2, recall 2/3, F = 0.8. 0 when either has no words.
    """
    return rouge.rouge_l(split_words(answer, "reference"), split_words(reference, "reference"))


def exact_match(reference: str, answer: str) -> bool:
    """Equal up to white space at the ends and runs of it inside."""
    return reference.split() == answer.split()


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"mean": self.mean, "low": self.low, "high": self.high}


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``values`` over items, with the percentile bootstrap's 95 % interval (Efron and Tibshirani 1993).

    With ``weights`` the ratio of sums, sum(values) / sum(weights): nats a token from nats and tokens of each item. For
    a paired comparison give the differences of two systems on the same items.
    """
    if len(values) == 0:
        raise ValueError("no items to average")
    low, high = np.quantile(resampled_means(values, weights, resamples, seed), [0.025, 0.975])
    mean = np.sum(values, dtype=np.float64) / (len(values) if weights is None else np.sum(weights, dtype=np.float64))
    return Interval(float(mean), float(low), float(high))


def resampled_means(
    values: Sequence[float], weights: Sequence[float] | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    """The mean (or with weights the ratio of sums) of each of so many samples of items, drawn with replacement."""
    value_N = np.asarray(values, dtype=np.float64)
    weight_N = np.ones_like(value_N) if weights is None else np.asarray(weights, dtype=np.float64)
    random = numpy_stream(seed)
    ratios = np.empty(resamples)
    for start in range(0, resamples, 256):
        picks = random.integers(len(value_N), size=(min(256, resamples - start), len(value_N)))
        ratios[start : start + len(picks)] = value_N[picks].sum(1) / weight_N[picks].sum(1)
    return ratios
