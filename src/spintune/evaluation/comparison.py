"""Which of several models is better at what, on the same items, and how small a difference could have been found.

Each measure of each pair of models is a paired test. Holm's method adjusts all p-values together, so at the level 0.05
one in twenty comparisons of equal models finds a difference anywhere, however many measures it has.

==============  ============================  ====================================================================
measure         test                          interval of the difference (95 %)
==============  ============================  ====================================================================
right or wrong  exact McNemar                 paired bootstrap
score           random signs of differences   paired bootstrap
ratio of sums   the same, of the numerators   paired bootstrap of numerator and denominator together
==============  ============================  ====================================================================

Scores are tested by random signs (Fisher 1935: if the models are equal, each item's difference is as likely to have the
other sign); McNemar's test is the case of right and wrong. Both take the sizes of the differences as given, so a
measure that is equal on every item cannot differ, and Holm's method does not count it. The bootstrap's own p-value is
too small for few items: with 18 items and five measures it found a difference between equal models in 8 of 100
comparisons after Holm, the signs in 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spintune.errors import DataError
from spintune.evaluation.random_signs import MAX_DRAWS, SOME_DRAWS, random_signs
from spintune.evaluation.statistics import Interval, holm, mcnemar, minimum_detectable_difference, resampled_means

MIN_ITEMS = 10
"""Fewer items are not compared. Even six that all favor one model are only just significant."""

POWER = 0.8
"""Probability of finding a difference of the size that ``Difference.detectable`` gives."""

_SMALL = 0.005
"""Above this, p-values of SOME_DRAWS draws are good enough."""


@dataclass(frozen=True)
class MeasuredItems:
    """One measure of one model, item by item.

    Attributes:
        values: by the item's id: a score, or 1 for right and 0 for wrong, or the numerator of a ratio.
        better: which values are better; None for neither, as for lengths.
        right_or_wrong: whether all values are 0 or 1.
        weights: denominators of a ratio of sums, by id, such as tokens for nats per token; None for a mean.

    Raises ValueError for values that are not finite, for values other than 0 and 1 that should be right or wrong, and
    for weights that are not above 0 or of other items.
    """

    values: Mapping[str, float]
    better: Literal["higher", "lower"] | None = "higher"
    right_or_wrong: bool = False
    weights: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(value) for value in self.values.values()):
            raise ValueError("a value is not finite")
        if self.right_or_wrong and (self.weights is not None or not set(self.values.values()) <= {0, 1}):
            raise ValueError("right or wrong is 1 or 0, without weights")
        if self.weights is not None and (
            self.weights.keys() != self.values.keys() or min(self.weights.values(), default=1) <= 0
        ):
            raise ValueError("a ratio needs a weight above 0 for each of its items, and for no others")


Table = Mapping[str, MeasuredItems]
"""The measures of one model, by name."""


@dataclass(frozen=True)
class Difference:
    """One measure of two models on the same items.

    Attributes:
        items: number of items.
        values: of the first and the second model.
        difference: first minus second, with its own 95 % interval.
        p: p-value of "no difference", by itself.
        adjusted: the p-value after Holm's method over the whole comparison.
        finding: what ``adjusted`` says about the first model at the level of the comparison; "different" for a measure
            of which neither direction is better, None without a significant difference.
        detectable: the smallest difference that would have been found with a probability of 80 %, at the level that the
            most significant of all measures has to reach, with items that vary as they do here; None when no
            difference could have been found, because too few items differ at all.
    """

    measure: str
    first: str
    second: str
    items: int
    values: tuple[float, float]
    difference: Interval
    p: float
    adjusted: float
    finding: Literal["better", "worse", "different"] | None
    detectable: float | None


@dataclass(frozen=True)
class Comparison:
    """Models compared on the items that all of them have.

    Attributes:
        items: common items, by measure.
        sizes: items of each model, by measure; those that not all models have were not used.
        left_out: why a measure was not compared, by measure.
        conclusions: a sentence for each pair of models.
        notes: a sentence for each limit of the comparison: items that not all models have, measures left out.
    """

    names: tuple[str, ...]
    level: float
    items: dict[str, int]
    sizes: dict[str, dict[str, int]]
    left_out: dict[str, str]
    differences: tuple[Difference, ...]
    conclusions: tuple[str, ...]
    notes: tuple[str, ...]


def compare(
    named: Mapping[str, Table],
    level: float = 0.05,
    against: str | None = None,
    min_items: int = MIN_ITEMS,
    seed: int = 0,
) -> Comparison:
    """Compares every two models, or each with the one called ``against``, in all measures that they share.

    Models measured on different items, such as other held-out splits, are compared on the common ones. A measure is
    left out, with the reason, when a model lacks it, when it has too few common items, or when its weights differ (nats
    per token of different tokenizers).

    Raises ValueError for fewer than two models or an unknown ``against``; DataError when no measure is left.
    """
    if len(named) < 2 or (against is not None and against not in named):
        raise ValueError(f"two models or more, and one of them to compare with; given: {', '.join(named)}; {against}")
    named = _read_alike(named)
    shared, left_out = _shared_measures(named, min_items)
    pairs = list(combinations(named, 2)) if against is None else [(name, against) for name in named if name != against]
    # for small p-values: the smallest that this many draws can give must stay significant after Holm
    draws = min(MAX_DRAWS, max(SOME_DRAWS, math.ceil(4 * len(pairs) * len(shared) / level)))
    found = {
        measure: _tests({name: table[measure] for name, table in named.items()}, pairs, items, draws, seed)
        for measure, items in shared.items()
    }
    tests = {(*pair, measure): found[measure][pair] for pair in pairs for measure in shared}
    differences = _differences(named, tests, level)
    counts = {measure: len(items) for measure, items in shared.items()}
    sizes = {name: {measure: len(table[measure].values) for measure in shared} for name, table in named.items()}
    return Comparison(
        names=tuple(named),
        level=level,
        items=counts,
        sizes=sizes,
        left_out=left_out,
        differences=differences,
        conclusions=tuple(
            _conclusion([one for one in differences if (one.first, one.second) == pair]) for pair in pairs
        ),
        notes=(
            *_scopes(counts, sizes),
            *(f"{measure} is left out: {reason}" for measure, reason in left_out.items()),
            *_too_many(len(tests), level),
        ),
    )


def _read_alike(named: Mapping[str, Table]) -> dict[str, Table]:
    """Right or wrong is a measure only where it is for all: the scores of a poor model may happen to be all 0."""
    scores = {name for table in named.values() for name, one in table.items() if not one.right_or_wrong}
    return {
        model: {
            name: replace(one, right_or_wrong=one.right_or_wrong and name not in scores) for name, one in table.items()
        }
        for model, table in named.items()
    }


def _shared_measures(named: Mapping[str, Table], min_items: int) -> tuple[dict[str, list[str]], dict[str, str]]:
    """The common items of each measure that can be compared, and why each other one cannot."""
    shared: dict[str, list[str]] = {}
    left_out: dict[str, str] = {}
    for measure in dict.fromkeys(measure for table in named.values() for measure in table):
        items = _common(named, measure)
        if reason := _obstacle(named, measure, items, min_items):
            left_out[measure] = reason
        else:
            shared[measure] = items
    if not shared:
        reasons = "; ".join(f"{measure}: {reason}" for measure, reason in left_out.items()) or "no measures at all"
        raise DataError(f"{listed(list(named))} cannot be compared ({reasons}); measure them on the same items")
    return shared, left_out


def _differences(
    named: Mapping[str, Table], tests: Mapping[tuple[str, str, str], _Test], level: float
) -> tuple[Difference, ...]:
    """The tests with p-values adjusted by Holm's method over all that could find a difference."""
    family = {place: test for place, test in tests.items() if test.differing}
    p_values = holm({str(number): test.p for number, test in enumerate(family.values())})
    adjusted = dict.fromkeys(tests, 1.0) | dict(zip(family, p_values.values(), strict=True))
    return tuple(
        Difference(
            measure=place[2],
            first=place[0],
            second=place[1],
            items=test.items,
            values=test.values,
            difference=test.difference,
            p=test.p,
            adjusted=adjusted[place],
            finding=_finding(named[place[0]][place[2]], test.difference.mean, adjusted[place] <= level),
            detectable=test.detectable(level / max(1, len(family))),
        )
        for place, test in tests.items()
    )


def _common(named: Mapping[str, Table], measure: str) -> list[str]:
    """The items that every model has, in the first one's order."""
    tables = [table[measure].values for table in named.values() if measure in table]
    return [item for item in tables[0] if all(item in other for other in tables[1:])]


def _obstacle(named: Mapping[str, Table], measure: str, items: Sequence[str], min_items: int) -> str | None:
    """Why a measure cannot be compared."""
    if lacking := [name for name, table in named.items() if measure not in table]:
        return f"not measured for {listed(lacking)}"
    found = [table[measure] for table in named.values()]
    if len(items) < min_items:
        counts = ", ".join(f"{name} {len(table[measure].values)}" for name, table in named.items())
        return f"{len(items)} items in common ({counts}), but a comparison needs at least {min_items}"
    if len({(one.better, one.weights is None) for one in found}) > 1:
        return "not the same kind of measure for all"
    weights = [[one.weights[item] for item in items] for one in found if one.weights is not None]
    if any(other != weights[0] for other in weights[1:]):
        return "its weights differ, as tokens of different tokenizers do"
    return None


@dataclass(frozen=True)
class _Test:
    values: tuple[float, float]
    difference: Interval
    p: float
    items: int
    spread: float
    """Standard deviation of one item's contribution to the difference."""
    differing: int
    """Items on which the models differ."""
    right_or_wrong: bool

    def detectable(self, level: float) -> float | None:
        """See :class:`Difference`.

        The difference d of right and wrong is no larger than the share of items that differ. Where that share was too
        small for it, it is taken to be d itself: d = c·√(d/n), so d = c²/n. Scores need enough differing items, since
        m of them that all favor one model have p = 2·(1/2)^m.
        """
        found = minimum_detectable_difference(self.spread, self.items, POWER, level)
        if not self.right_or_wrong:
            return found if 2.0 ** (1 - self.differing) <= level else None
        if found >= self.spread**2:
            found = minimum_detectable_difference(1, self.items, POWER, level) ** 2
        return found if found < 1 else None


def _tests(
    measured: Mapping[str, MeasuredItems], pairs: Sequence[tuple[str, str]], items: Sequence[str], draws: int, seed: int
) -> dict[tuple[str, str], _Test]:
    """The tests of one measure for pairs of models. Samples and signs are drawn once and serve all pairs."""
    some = next(iter(measured.values()))
    value_MN = np.array([[one.values[item] for item in items] for one in measured.values()], dtype=np.float64)
    weights = None if some.weights is None else [some.weights[item] for item in items]
    weight_N = np.ones(len(items)) if weights is None else np.asarray(weights, dtype=np.float64)
    mean_M = value_MN.sum(1) / weight_N.sum()
    mean_MR = np.ascontiguousarray(resampled_means(value_MN, weights, SOME_DRAWS, seed).T)
    place = {name: number for number, name in enumerate(measured)}
    place_P2 = np.array([[place[first], place[second]] for first, second in pairs])
    p_P = _p_values(value_MN, place_P2, some.right_or_wrong, draws, seed)
    tests = {}
    for pair, (one, other), p in zip(pairs, place_P2, p_P, strict=True):
        difference_N = value_MN[one] - value_MN[other]
        mean = float(difference_N.sum() / weight_N.sum())
        gap_R = mean_MR[one] - mean_MR[other] if difference_N.any() else np.zeros(1)
        low, high = np.quantile(gap_R, [0.025, 0.975])
        center = 0.0 if some.right_or_wrong else mean
        error_N = difference_N - center * weight_N
        freedom = max(1, len(items) - (0 if some.right_or_wrong else 1))
        tests[pair] = _Test(
            values=(float(mean_M[one]), float(mean_M[other])),
            difference=Interval(mean, min(float(low), mean), max(float(high), mean)),  # equal ones, but for rounding
            p=float(p),
            items=len(items),
            spread=math.sqrt(float(error_N @ error_N) / freedom) / float(weight_N.mean()),
            differing=int(np.count_nonzero(difference_N)),
            right_or_wrong=some.right_or_wrong,
        )
    return tests


def _p_values(
    value_MN: NDArray[np.float64], place_P2: NDArray[np.int64], right_or_wrong: bool, draws: int, seed: int
) -> NDArray[np.float64]:
    if right_or_wrong:
        verdicts = (value_MN == 1).tolist()
        return np.array([mcnemar(verdicts[one], verdicts[other]).p for one, other in place_P2])
    p_P = random_signs(value_MN, place_P2, seed=seed)
    small_P = p_P < _SMALL
    if draws > SOME_DRAWS and small_P.any():
        p_P[small_P] = random_signs(value_MN, place_P2[small_P], draws, seed)
    return p_P


def _finding(
    measure: MeasuredItems, difference: float, significant: bool
) -> Literal["better", "worse", "different"] | None:
    if not significant:
        return None
    if measure.better is None:
        return "different"
    return "better" if (difference > 0) == (measure.better == "higher") else "worse"


# Words and tables ----------------------------------------------------------------------------------------------------

HEADER = ("measure", "models", "items", "first", "second", "difference", "95 % interval", "p", "p (Holm)", "finding")


def table_rows(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row of texts for each difference, under :data:`HEADER`."""
    return [
        (
            one.measure,
            f"{one.first} - {one.second}",
            str(one.items),
            *(f"{value:.4g}" for value in one.values),
            f"{one.difference.mean:+.3g}",
            f"{one.difference.low:+.3g} to {one.difference.high:+.3g}",
            *(f"{p:.2g}" for p in (one.p, one.adjusted)),
            one.finding or "not told apart",
        )
        for one in comparison.differences
    ]


def _conclusion(found: Sequence[Difference]) -> str:
    """All findings about two models as one sentence."""
    first, second = found[0].first, found[0].second
    parts: list[str] = []
    for finding, preposition in (("better", "than"), ("worse", "than"), ("different", "from")):
        if measures := [one.measure for one in found if one.finding == finding]:
            of = "" if parts else f" of {len(found)} measure{'s' if len(found) > 1 else ''}"
            parts.append(f"{finding} {preposition} {second} on {len(measures)}{of} ({', '.join(measures)})")
    decided = f"{first} is {listed(parts)}" if parts else ""
    undecided = [one for one in found if one.finding is None]
    if not undecided:
        return decided
    counts = sorted({one.items for one in undecided})
    items = f"{counts[0]} items" if len(counts) == 1 else f"{counts[0]} to {counts[-1]} items"
    told = f"cannot be told apart with {items}{_would_be_seen(undecided)}"
    return (
        f"{decided}; the other{'s' if len(undecided) > 1 else ''} {told}" if decided else f"{first} and {second} {told}"
    )


def _would_be_seen(found: Sequence[Difference]) -> str:
    seen = [f"{one.detectable:.2g} in {one.measure}" for one in found if one.detectable is not None]
    alike = [one.measure for one in found if one.detectable is None]
    said = [f"a difference of {listed(seen)} would have been found with {POWER * 100:g} % power"] if seen else []
    said += [f"too few items differ in {listed(alike)} to tell"] if alike else []
    return f" ({'; '.join(said)})"


def _scopes(items: Mapping[str, int], sizes: Mapping[str, Mapping[str, int]]) -> list[str]:
    """A sentence for the measures of which not all items are common, those with equal counts together."""
    scopes: dict[str, list[str]] = {}
    for measure, count in items.items():
        if any(size[measure] > count for size in sizes.values()):
            counts = listed([f"{name} has {size[measure]}" for name, size in sizes.items()])
            scopes.setdefault(f"the {count} items that all have ({counts})", []).append(measure)
    return [f"{listed(measures)}: compared on {scope}" for scope, measures in scopes.items()]


def _too_many(tests: int, level: float) -> list[str]:
    if tests <= level * MAX_DRAWS:
        return []
    return [
        f"{tests:,} comparisons are too many for scores to differ significantly: name fewer models, or use --against"
    ]


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
