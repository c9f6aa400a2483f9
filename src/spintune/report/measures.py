"""Estimates of models and of their differences, with 95 % intervals, on the same held-out examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spintune.evaluation.statistics import Interval, bootstrap, wilson
from spintune.report.facts import ModelFacts, RunFacts
from spintune.report.table import Cell


@dataclass(frozen=True)
class MeasureColumn:
    """A measure as the tables show it.

    Attributes:
        better: which way is better; None for what only describes.
        factor: shown as so many times the value: 100 for shares in percent.
        digits: shown behind the point.
    """

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    factor: float = 1.0
    digits: int = 3


NLL = MeasureColumn("nll_per_token", "held-out loss", "nats a token", "lower")
ROUGE_L = MeasureColumn("rouge_l", "ROUGE-L", "F-measure", "higher")
EXACT_MATCH = MeasureColumn("exact_match", "exact match", "% of answers", "higher", 100, 1)
MEASURES = (
    NLL,
    ROUGE_L,
    EXACT_MATCH,
    MeasureColumn("answer_tokens", "answer length", "tokens", None, 1, 1),
    MeasureColumn("finished", "finished", "% of answers", None, 100, 1),
)


@dataclass(frozen=True)
class Contender:
    """A model of one of the runs in a comparison."""

    run: RunFacts
    model: ModelFacts
    label: str


def contenders(runs: Sequence[RunFacts]) -> list[Contender]:
    """Every model of the runs."""
    return [Contender(run, model, label_of(run, model.name, len(runs))) for run in runs for model in run.models]


def label_of(run: RunFacts, name: str, runs: int) -> str:
    """A model's name; with several runs, the run's name is in front."""
    return name if runs == 1 else f"{run.name} / {name}"


# Estimates ----------------------------------------------------------------------------------------------------------


def measured(contender: Contender, measure: MeasureColumn) -> tuple[str, ...]:
    """Ids of the held-out examples on which a model was measured, in order."""
    model = contender.model
    return tuple(model.likely if measure is NLL else model.judged)


def shared(models: Sequence[Contender], measure: MeasureColumn) -> tuple[str, ...]:
    """Held-out examples on which all were measured, in the order of the first."""
    common = set.intersection(*(set(measured(one, measure)) for one in models)) if models else set()
    return tuple(id for id in measured(models[0], measure) if id in common) if common else ()


def comparable(models: Sequence[Contender], measure: MeasureColumn, ids: Sequence[str]) -> bool:
    """Whether the measure means the same for all: nats a token need the same tokens."""
    tokens = [[one.model.likely[id].tokens for id in ids] for one in models] if measure is NLL else []
    return all(counts == tokens[0] for counts in tokens)


def estimate(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> Interval:
    """A model's mean over held-out examples, with its 95 % interval."""
    known = (one.run.results.heldout or {}).get(one.model.name, {}).get(measure.key)
    return interval_of(_values(one, measure, ids), _weights(one, measure, ids), known)


def difference(one: Contender, other: Contender, measure: MeasureColumn, ids: Sequence[str]) -> Interval:
    """The paired mean difference, first minus second, on the same held-out examples, with its 95 % interval."""
    values = [a - b for a, b in zip(_values(one, measure, ids), _values(other, measure, ids), strict=True)]
    known = None
    if one.run is other.run:
        results = one.run.results.differences or {}
        known = results.get(f"{one.model.name} - {other.model.name}", {}).get(measure.key)
        reverse = results.get(f"{other.model.name} - {one.model.name}", {}).get(measure.key)
        known = known or (negative(reverse) if reverse else None)
    return interval_of(values, _weights(one, measure, ids), known)


def interval_of(values: Sequence[float], weights: Sequence[float] | None, known: Interval | None) -> Interval:
    """The interval ``known`` of results.json if it is of these values, else their bootstrap.

    It is of other values where the run went on and measured anew.
    """
    mean = math.fsum(values) / (len(values) if weights is None else math.fsum(weights))
    if known and math.isclose(mean, known.mean, rel_tol=1e-9, abs_tol=1e-12):
        return known
    return bootstrap(values, weights)


def negative(interval: Interval) -> Interval:
    """The interval of the difference the other way round."""
    return Interval(-interval.mean, -interval.high, -interval.low)


def _values(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> list[float]:
    if measure is NLL:
        return [one.model.likely[id].nll for id in ids]
    name = {"answer_tokens": "tokens"}.get(measure.key, measure.key)
    return [float(getattr(one.model.judged[id], name)) for id in ids]


def _weights(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> list[int] | None:
    return [one.model.likely[id].tokens for id in ids] if measure is NLL else None


# Ranking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Models in the order of a measure on the same held-out examples.

    Attributes:
        first: the one with the best mean.
        tied: those that it cannot be told from, the best mean first.
        behind: those that it is better than, the best mean first.
        gains: by how much ``first`` is better than each other, by label; above 0 is better.
    """

    measure: MeasureColumn
    items: int
    first: Contender
    tied: tuple[Contender, ...]
    behind: tuple[Contender, ...]
    gains: Mapping[str, Interval]


def rank(models: Sequence[Contender], measure: MeasureColumn, ids: Sequence[str]) -> Ranking:
    """Ranks models by a measure that has a better side."""
    sign = -1 if measure.better == "lower" else 1
    first, *others = sorted(models, key=lambda one: -sign * estimate(one, measure, ids).mean)
    gains = {}
    for other in others:
        gain = difference(first, other, measure, ids)
        gains[other.label] = gain if sign == 1 else negative(gain)
    tied = tuple(other for other in others if gains[other.label].low <= 0)
    behind = tuple(other for other in others if gains[other.label].low > 0)
    return Ranking(measure, len(ids), first, tied, behind, gains)


# Numbers ------------------------------------------------------------------------------------------------------------


def cell(found: Interval, measure: MeasureColumn, items: int | None = None, note: str = "") -> Cell:
    """A mean over so many items with its interval; give no ``items`` for intervals that are no bootstrap's."""
    ends = found
    if items and measure.factor == 100 and found.low == found.high:
        ends = wilson(found.mean * items, items)  # resampling answers that are all alike says nothing
    low, high = (shown(end, measure, measure.digits) for end in (ends.low, ends.high))
    return Cell(shown(found.mean, measure, measure.digits), f"{low} to {high}", note=note)


def verdict(found: Interval, measure: MeasureColumn) -> str:
    """What a difference says: better, worse, more or less; empty where its interval includes 0."""
    if found.low <= 0 <= found.high:
        return ""
    up = found.mean > 0
    if measure.better is None:
        return "more" if up else "less"
    return "better" if up == (measure.better == "higher") else "worse"


def decimals(intervals: Sequence[Interval], measure: MeasureColumn) -> int:
    """Digits behind the point that show two figures of the narrowest interval, so that columns line up."""
    widths = [(one.high - one.low) / 2 * measure.factor for one in intervals if one.high > one.low]
    if not widths:
        return measure.digits
    return max(measure.digits, min(6, 1 - math.floor(math.log10(min(widths)))))


def shown(value: float, measure: MeasureColumn, digits: int, sign: bool = False) -> str:
    """A value as text, with a real minus sign. What rounds to 0 has no sign."""
    text = f"{value * measure.factor:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")
