"""Tables of models by measures, and numbers as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spintune.evaluation.statistics import Interval, wilson


@dataclass(frozen=True)
class MeasureColumn:
    """A measure as tables show it.

    Attributes:
        better: which way is better; None for what only describes.
        factor: multiplies the value where it is shown: 100 for shares in percent.
        digits: decimals.
    """

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    factor: float = 1.0
    digits: int = 3


@dataclass(frozen=True)
class Cell:
    """A number as text.

    Attributes:
        interval: shown small beside it.
        verdict: better, worse, more or less, where the interval of a difference leaves out 0.
        note: a remark on it.
    """

    mean: str
    interval: str
    verdict: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """A model, or a pair of models, with a cell for each measure; None is what was not measured."""

    label: str
    cells: tuple[Cell | None, ...]
    note: str = ""


@dataclass(frozen=True)
class ColumnGroup:
    """The measures of one evaluation; ``items`` is the largest number that any model has."""

    name: str
    items: int
    measures: tuple[MeasureColumn, ...]


@dataclass(frozen=True)
class MeasureTable:
    """Models, or pairs of models, by measures.

    Attributes:
        first: heading of the labels.
        items: held-out examples that it is of.
        groups: the evaluations that the measures belong to, in the order of ``columns``.
    """

    title: str
    first: str
    columns: tuple[MeasureColumn, ...]
    rows: tuple[Row, ...]
    items: int = 0
    groups: tuple[ColumnGroup, ...] = ()


def cell(found: Interval, measure: MeasureColumn, items: int | None = None, note: str = "") -> Cell:
    """A mean over ``items`` items with its interval; give no ``items`` where the interval is no bootstrap's."""
    ends = found
    if items and measure.factor == 100 and found.low == found.high:
        ends = wilson(found.mean * items, items)  # resampling answers that are all alike says nothing
    mean, low, high = (shown(value, measure, measure.digits) for value in (found.mean, ends.low, ends.high))
    return Cell(mean, f"{low} to {high}", note=note)


def difference_cell(gap: Interval, measure: MeasureColumn, digits: int) -> Cell:
    """A difference with its sign and its interval, and what it says."""
    mean, low, high = (shown(value, measure, digits, sign=True) for value in (gap.mean, gap.low, gap.high))
    return Cell(mean, f"{low} to {high}", verdict(gap, measure))


def verdict(gap: Interval, measure: MeasureColumn) -> str:
    """What a difference says: better, worse, more or less; empty where its interval includes 0."""
    if gap.low <= 0 <= gap.high:
        return ""
    up = gap.mean > 0
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


def numbered(word: str, count: int) -> list[str]:
    """turn 1, turn 2, ..."""
    return [f"{word} {number}" for number in range(1, count + 1)]


def counted(counts: Mapping[str, int]) -> str:
    """Reasons and how often each: ``over limit 55, duplicate 2``."""
    return ", ".join(f"{reason.replace('_', ' ')} {count:,}" for reason, count in sorted(counts.items())) or "none"


def duration(seconds: float) -> str:
    """Seconds for readers: 42 s, 3 min 05 s, 2 h 07 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def byte_size(count: int) -> str:
    """1,234 as 1.2 kB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
