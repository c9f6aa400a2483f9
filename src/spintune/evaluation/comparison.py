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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from spintune.errors import DataError
from spintune.evaluation.statistics import Interval, holm, mcnemar, minimum_detectable_difference, resampled_means
from spintune.streams import numpy_stream

MIN_ITEMS = 10
"""Fewer items are not compared. Even six that all favor one model are only just significant."""

POWER = 0.8
"""Probability of finding a difference of the size that ``Difference.detectable`` gives."""

_DRAWS = 10_000
_SMALL = 0.005
"""Above this, p-values of _DRAWS draws are good enough."""
_AT_ONCE = 256
"""Pairs of models, and draws, that are in memory together."""


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
    draws = max(_DRAWS, math.ceil(4 * len(pairs) * len(shared) / level))
    found: dict[str, dict[tuple[str, str], _Test]] = {measure: {} for measure in shared}
    for measure, items in shared.items():
        measured = {name: table[measure] for name, table in named.items()}
        for at in range(0, len(pairs), _AT_ONCE):
            found[measure] |= _tests(measured, pairs[at : at + _AT_ONCE], items, draws, seed)
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
        notes=(*_scopes(counts, sizes), *(f"{measure} is left out: {reason}" for measure, reason in left_out.items())),
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
    values = {name: np.array([one.values[item] for item in items], dtype=np.float64) for name, one in measured.items()}
    weights = None if some.weights is None else [some.weights[item] for item in items]
    weight_N = np.ones(len(items)) if weights is None else np.asarray(weights, dtype=np.float64)
    difference_PN = np.stack([values[first] - values[second] for first, second in pairs])
    mean_P = difference_PN.sum(1) / weight_N.sum()
    low_P, high_P = np.quantile(resampled_means(difference_PN, weights, _DRAWS, seed), [0.025, 0.975], axis=0)
    if some.right_or_wrong:
        p_P = np.array([mcnemar(*((values[name] == 1).tolist() for name in pair)).p for pair in pairs])
        spread_P = np.sqrt(np.mean(difference_PN**2, 1))
    else:
        p_P = random_signs(difference_PN, seed=seed)
        small_P = p_P < _SMALL
        if draws > _DRAWS and small_P.any():
            p_P[small_P] = random_signs(difference_PN[small_P], draws, seed)
        spread_P = np.std(difference_PN - mean_P[:, None] * weight_N, axis=1, ddof=1) / weight_N.mean()
    low_P, high_P = np.minimum(low_P, mean_P), np.maximum(high_P, mean_P)  # equal differences, but for rounding
    means = {name: float(value_N.sum() / weight_N.sum()) for name, value_N in values.items()}
    return {
        (first, second): _Test(
            values=(means[first], means[second]),
            difference=Interval(float(mean_P[at]), float(low_P[at]), float(high_P[at])),
            p=float(p_P[at]),
            items=len(items),
            spread=float(spread_P[at]),
            differing=int(np.count_nonzero(difference_PN[at])),
            right_or_wrong=some.right_or_wrong,
        )
        for at, (first, second) in enumerate(pairs)
    }


def random_signs(difference_PN: NDArray[np.float64], draws: int = _DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Two-sided p-values ``[P]`` of paired randomization tests (Fisher 1935, section 21) of sums of differences.

    The share of random signs with which a sum is as far from 0, the observed one among them: (1 + count)/(1 + draws).
    For many draws and differences 1, 1, 1 that is 2/8, and 1 for differences of 0.
    """
    size_P = np.abs(difference_PN).sum(1)
    observed_P = np.abs(difference_PN.sum(1)) - 1e-9 * size_P  # equal sums in another order differ by rounding
    random = numpy_stream(seed)
    count_P = np.zeros(len(difference_PN))
    for start in range(0, draws, _AT_ONCE):
        sign_RN = random.integers(2, size=(min(_AT_ONCE, draws - start), difference_PN.shape[1])) * 2.0 - 1.0
        count_P += np.count_nonzero(np.abs(sign_RN @ difference_PN.T) >= observed_P, axis=0)
    return (1 + count_P) / (1 + draws)


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


def headline(comparison: Comparison) -> str:
    """What a comparison found, in one sentence: about two models all of it, about more the findings alone."""
    if len(comparison.conclusions) == 1:
        return comparison.conclusions[0]
    found = [one for one in comparison.differences if one.finding]
    if not found:
        counts = sorted({one.items for one in comparison.differences})
        items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"{listed(comparison.names)} cannot be told apart with {items} items"
    won = _who_is_better(found)
    if not won:
        pairs = dict.fromkeys(f"{one.first} is different from {one.second}" for one in found)
        return listed(list(pairs))
    level = [names for names in combinations(comparison.names, 2) if not {names, names[::-1]} & won.keys()]
    told = [f"{listed([f'{one} and {other}' for one, other in level])} cannot be told apart"] if level else []
    total = len(comparison.items)
    return "; ".join([*_sentences(won, total), *(told if len(level) <= _LISTED else [])])


_LISTED = 3
"""Measures or pairs of models up to which a sentence names them."""


def _who_is_better(found: Sequence[Difference]) -> dict[tuple[str, str], tuple[str, ...]]:
    """By (better, worse) model: the measures that say so. Those of which neither direction is better are left out."""
    won: dict[tuple[str, str], tuple[str, ...]] = {}
    for one in found:
        names = (one.first, one.second) if one.finding == "better" else (one.second, one.first)
        if one.finding != "different":
            won[names] = (*won.get(names, ()), one.measure)
    return won


def _sentences(won: Mapping[tuple[str, str], tuple[str, ...]], total: int) -> Iterator[str]:
    """Models that are better than the same ones on as many measures share a phrase."""
    by_winner: dict[tuple[str, str], list[str]] = {}
    for (better, worse), measures in won.items():
        on = listed(list(measures)) if len(measures) <= _LISTED else f"{len(measures)} of {total} measures"
        by_winner.setdefault((better, on), []).append(worse)
    together: dict[tuple[str, str], list[str]] = {}
    for (better, on), worse_ones in by_winner.items():
        together.setdefault((listed(worse_ones), on), []).append(better)
    for (worse, on), winners in together.items():
        yield f"{listed(winners)} {'are' if len(winners) > 1 else 'is'} better than {worse} on {on}"


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


def listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
