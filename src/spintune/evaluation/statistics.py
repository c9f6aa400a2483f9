"""Is one model better than another on the same items, by how much, and how small a difference could be found at all?

======================================  ============================================================
right or wrong on each item             :func:`mcnemar` (exact), :func:`wilson` for one model's rate
a score for each item                   :func:`paired`: bootstrap interval and p-value
a judge's preference for each item      :func:`win_rate`, :func:`length_controlled_win_rate`
several measures or models at once      :func:`holm`
several seeds of one experiment         :func:`over_seeds`
before the experiment                   :func:`minimum_detectable_difference`
======================================  ============================================================

All p-values are two-sided, all intervals are 95 %, and rates are between 0 and 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev

import numpy as np
from numpy.typing import NDArray

from spintune.streams import numpy_stream
from spintune.student_t import t_quantile

_Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval."""

    mean: float
    low: float
    high: float


def bootstrap(
    values: Sequence[float], weights: Sequence[float] | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Mean of ``values`` over items, with the percentile bootstrap's 95 % interval (Efron and Tibshirani 1993).

    With ``weights`` the ratio of sums, sum(values) / sum(weights): nats per token from nats and tokens of each item.
    For a paired comparison pass the differences of two systems on the same items.

    Raises ValueError without items.
    """
    if len(values) == 0:
        raise ValueError("no items to average")
    low, high = np.quantile(resampled_means(values, weights, resamples, seed), [0.025, 0.975])
    mean = np.sum(values, dtype=np.float64) / (len(values) if weights is None else np.sum(weights, dtype=np.float64))
    return Interval(float(mean), float(low), float(high))


def verdict_difference(differences: Sequence[float]) -> Interval:
    """The mean of paired differences of right (1) and wrong (0) answers, with its 95 % interval: the bootstrap's.

    Where all are equal the bootstrap's has no width. There the share of other items is at most that of Wilson's
    interval for none of n, s = z²/(n + z²), and they differ by up to 1 or -1: 10 of 10 that became right give 1 - 2 s =
    0.444 to 1, and 10 that stayed as they were -0.278 to 0.278.

    Raises ValueError without items.
    """
    found = bootstrap(differences)
    if min(differences) < max(differences):
        return found
    share = wilson(0, len(differences)).high
    return Interval(found.mean, found.mean - share * (found.mean + 1), found.mean + share * (1 - found.mean))


def resampled_means(
    values: Sequence[float] | NDArray[np.float64], weights: Sequence[float] | None, resamples: int, seed: int
) -> NDArray[np.float64]:
    """The mean (with weights the ratio of sums) of each of ``resamples`` samples of items, drawn with replacement.

    Args:
        values: of N items, ``[N]``, or several of each, ``[P, N]``, which share the samples.

    Returns ``[resamples]`` or ``[resamples, P]``.
    """
    value_PN = np.asarray(values, dtype=np.float64)
    items = value_PN.shape[-1]
    weight_N = np.ones(items) if weights is None else np.asarray(weights, dtype=np.float64)
    random = numpy_stream(seed)
    ratios = np.empty((resamples, *value_PN.shape[:-1]))
    at_once = max(1, min(256, 2**22 // items))
    for start in range(0, resamples, at_once):
        picks_RN = random.integers(items, size=(min(at_once, resamples - start), items))
        rows = len(picks_RN)
        places = picks_RN + items * np.arange(rows)[:, None]
        count_RN = np.bincount(places.ravel(), minlength=rows * items).reshape(rows, items).astype(np.float64)
        weight_R = count_RN @ weight_N
        ratios[start : start + rows] = ((value_PN @ count_RN.T) / weight_R).T
    return ratios


@dataclass(frozen=True)
class McNemar:
    """Items that only the first and only the second model gets right, and the p-value of "equally many"."""

    only_first: int
    only_second: int
    p: float


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> McNemar:
    """Exact McNemar test (1947) of two models that are right or wrong on the same items.

    Under equality each item on which they differ is a fair coin, so with b and c such items
    p = min(1, 2·P[Bin(b + c, 1/2) <= min(b, c)]). For b = 1, c = 6: 2·(1 + 7)/2⁷ = 0.125.

    Raises ValueError unless both have the same number of items.
    """
    only_first = sum(one and not other for one, other in zip(first, second, strict=True))
    only_second = sum(other and not one for one, other in zip(first, second, strict=True))
    differ = only_first + only_second
    tail, term = 0, 1
    for count in range(min(only_first, only_second) + 1):
        tail += term
        term = term * (differ - count) // (count + 1)
    # exact for thousands of items too: whole numbers until here
    return McNemar(only_first, only_second, min(1.0, 2 * tail / 2**differ))


@dataclass(frozen=True)
class Paired:
    """The mean difference, first minus second, and the p-value of "no difference"."""

    difference: Interval
    p: float


def paired(
    first: Sequence[float],
    second: Sequence[float],
    weights: Sequence[float] | None = None,
    resamples: int = 10_000,
    seed: int = 0,
) -> Paired:
    """Paired bootstrap of two models' scores on the same items (Efron and Tibshirani 1993, chapter 16).

    Resamples items and keeps the pairs together. The p-value inverts the percentile interval: twice the smaller share
    of resamples on one side of 0, (1 + count)/(1 + resamples) each so that it is never 0. ``weights`` as in
    :func:`bootstrap`: with tokens of each item, nats a token.

    Percentile intervals are a little short for few items: at 50 items about 6 of 100 comparisons of equal models come
    out below p = 0.05.

    Raises ValueError without items, and unless both have the same number of them.
    """
    differences = [one - other for one, other in zip(first, second, strict=True)]
    if not differences:
        raise ValueError("no items to compare")
    mean_R = resampled_means(differences, weights, resamples, seed)
    low, high = np.quantile(mean_R, [0.025, 0.975])
    mean = sum(differences) / (len(differences) if weights is None else sum(weights))
    side = min(np.count_nonzero(mean_R <= 0), np.count_nonzero(mean_R >= 0))
    return Paired(Interval(mean, float(low), float(high)), min(1.0, 2 * (1 + int(side)) / (1 + resamples)))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values adjusted for being several (Holm 1979): reject below the level, and any false rejection is as rare.

    The smallest of m is multiplied by m, the next by m − 1, and so on; none falls below a smaller one's.

        >>> holm({"a": 0.01, "b": 0.04, "c": 0.03})
        {'a': 0.03, 'b': 0.06, 'c': 0.06}
    """
    adjusted: dict[str, float] = {}
    least = 0.0
    for rank, name in enumerate(sorted(p_values, key=lambda name: p_values[name])):
        least = max(least, min(1.0, (len(p_values) - rank) * p_values[name]))
        adjusted[name] = least
    return {name: adjusted[name] for name in p_values}


def wilson(successes: float, items: int) -> Interval:
    """A rate with its 95 % score interval (Wilson 1927), sound also near 0 and 1 and for few items.

    (p̂ + z²/2n ± z·√(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n). For 0 of 10: from 0 to z²/(10 + z²) = 0.278.

    Raises ValueError unless 0 <= successes <= items, and items >= 1.
    """
    if items < 1 or not 0 <= successes <= items:
        raise ValueError(f"{successes} of {items} is no rate")
    rate, square = successes / items, _Z**2
    center = rate + square / (2 * items)
    half = _Z * math.sqrt(rate * (1 - rate) / items + square / (4 * items**2))
    low, high = ((center + side * half) / (1 + square / items) for side in (-1, 1))
    # at these two the formula gives 0 and 1, but for rounding
    return Interval(rate, low if successes else 0.0, high if successes < items else 1.0)


def win_rate(preferences: Sequence[float]) -> Interval:
    """How often the first of two models is preferred, with the Wilson interval.

    A preference is 1 for a win of the first, 0 for one of the second, 0.5 for a tie, or a judge's probability between
    them; the mean is (wins + ties/2)/n. No variable in [0, 1] of this mean varies more than wins and losses do, so with
    ties and probabilities the interval is on the safe side.

    Raises ValueError without preferences, or for one outside [0, 1].
    """
    _check_preferences(preferences)
    return wilson(math.fsum(preferences), len(preferences))


_PRECISION = 0.01


@dataclass(frozen=True)
class LengthControlled:
    """The win rate at equal length of both answers, and the effect of length.

    Attributes:
        rate: the controlled rate.
        weight: log-odds of a win per unit of tanh(length difference/its standard deviation); above 0, the judge prefers
            longer answers.
    """

    rate: Interval
    weight: float


def length_controlled_win_rate(
    preferences: Sequence[float], lengths: Sequence[int], other_lengths: Sequence[int]
) -> LengthControlled:
    """The win rate of the first model with the effect of answer length taken out (Dubois et al. 2024).

    AlpacaEval 2's "minimal" form: logistic regression of the preference on 1 and tanh(Δ/sd(Δ)), with Δ the difference
    of lengths (characters in AlpacaEval), read off at Δ = 0. Without its per-instruction difficulties, which need the
    annotations of many other models, so the numbers are not those of its leaderboard.

    Both coefficients have a Gaussian prior of standard deviation 10, so an answer exists when one model always wins or
    length alone decides. The interval is that of the same regression with one tie more at Δ = 0, which keeps it finite
    when one model always wins, as the half counts of Haldane and Anscombe do for odds. Its error is the larger of the
    sandwich estimate (White 1982), which allows preferences that are probabilities, and the inverse curvature: where
    one model always wins, the residuals that the sandwich is made of vanish. Where all differences of length are equal,
    there is nothing to control for.

    Raises ValueError like :func:`win_rate`, and unless all three have the same length.
    """
    _check_preferences(preferences)
    if not len(preferences) == len(lengths) == len(other_lengths):
        raise ValueError("a length of both answers is needed for every preference")
    preference_N = np.asarray(preferences, dtype=np.float64)
    difference_N = np.asarray(lengths, dtype=np.float64) - np.asarray(other_lengths, dtype=np.float64)
    spread = float(difference_N.std())
    length_N = np.tanh(difference_N / spread) if spread else np.zeros_like(difference_N)
    input_N2 = np.stack([np.ones_like(preference_N), length_N], 1)
    weight_2, _ = _logistic_regression(input_N2, preference_N)
    center_2, error = _logistic_regression(np.vstack([input_N2, [1.0, 0.0]]), np.append(preference_N, 0.5))
    low, mean, high = (
        float(1 / (1 + np.exp(-log_odds)))
        for log_odds in (center_2[0] - _Z * error, weight_2[0], center_2[0] + _Z * error)
    )
    # where one model always wins nothing speaks against 1, as in wilson()
    low, high = min(low, mean) if any(preferences) else 0.0, max(mean, high) if min(preferences) < 1 else 1.0
    return LengthControlled(Interval(mean, low, high), float(weight_2[1]))


def _logistic_regression(
    input_N2: NDArray[np.float64], preference_N: NDArray[np.float64]
) -> tuple[NDArray[np.float64], float]:
    """Both coefficients, and the standard error of the first."""
    weight_2 = np.zeros(2)
    for _ in range(100):
        rate_N = 1 / (1 + np.exp(-input_N2 @ weight_2))
        slope_2 = input_N2.T @ (preference_N - rate_N) - _PRECISION * weight_2
        curvature_22 = (input_N2.T * (rate_N * (1 - rate_N))) @ input_N2 + _PRECISION * np.eye(2)
        step_2 = np.linalg.solve(curvature_22, slope_2)
        # Newton's method may overshoot where the curve is flat; log-odds that move by 1 at a time cannot
        weight_2 += step_2 / max(1.0, float(np.abs(step_2).max()))
        if np.abs(step_2).max() < 1e-10:
            break
    inverse_22 = np.linalg.inv(curvature_22)
    spread_22 = (input_N2.T * (preference_N - rate_N) ** 2) @ input_N2
    return weight_2, math.sqrt(max((inverse_22 @ spread_22 @ inverse_22)[0, 0], inverse_22[0, 0]))


def _check_preferences(preferences: Sequence[float]) -> None:
    if len(preferences) == 0:
        raise ValueError("no preferences")
    if not all(0 <= preference <= 1 for preference in preferences):
        raise ValueError("a preference is a number from 0 (second is better) to 1 (first is better)")


def over_seeds(values: Sequence[float]) -> Interval:
    """The mean over independent runs, such as seeds, with Student's t-interval: mean ± t·s/√n.

    For 1, 2, 3: 2 ± 4.303·1/√3.

    Raises ValueError for fewer than two values: one says nothing about how much they vary.
    """
    if len(values) < 2:
        raise ValueError(f"{len(values)} values have no interval; give two or more")
    center = fmean(values)
    half = t_quantile(len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return Interval(center, center - half, center + half)


def minimum_detectable_difference(
    standard_deviation: float, items: int, power: float = 0.8, level: float = 0.05
) -> float:
    """The smallest true difference that a paired test of ``items`` items finds with probability ``power``.

    (z_{1−level/2} + z_power)·sd/√n, with the standard deviation of the differences of single items (Miller 2024). For
    right and wrong answers that is at most √d, where d is the share of items on which the two differ: with d = 0.1 and
    1,319 items, 2.80·√(0.1/1319) = 0.024.

    Raises ValueError unless items >= 1, the standard deviation >= 0, and 0 < level < power < 1.
    """
    if items < 1 or standard_deviation < 0 or not 0 < level < power < 1:
        raise ValueError(
            f"{items} items, standard deviation {standard_deviation}, power {power}, level {level}: "
            "give at least one item, no negative deviation, and 0 < level < power < 1"
        )
    normal = NormalDist()
    return (normal.inv_cdf(1 - level / 2) + normal.inv_cdf(power)) * standard_deviation / math.sqrt(items)
