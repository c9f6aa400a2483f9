"""Curves and bars as inline SVG: small, without scripts, in colors that the page's style sheet names.

A figure is drawn for a column of about 360 pixels and scales with it. Every series has a slot (0, 1, 2), which stands
for a color and a dash, so that series differ without color, too.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from markupsafe import Markup, escape

from spintune.evaluation.statistics import Interval

WIDTH, HEIGHT = 360, 190
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 10, 20, 30
_GLYPH = 6.1
"""Width of a digit of the axes' text. [pixels]"""

MAX_POINTS = 240
"""Points above which a line is drawn as means of equal stretches, in a band from their lowest to their highest."""
STRETCHES = 120
TELLING_POINTS = 80
"""Points up to which each one tells its value under the pointer."""


@dataclass(frozen=True)
class Series:
    """One line, or single measurements.

    Attributes:
        points: (x, y), x ascending.
        kind: a line through all points, or dots (with error bars, if there are any).
        errors: (low, high) of each dot.
    """

    label: str
    points: Sequence[tuple[float, float]]
    slot: int = 0
    kind: Literal["line", "dots"] = "line"
    errors: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Figure:
    """A drawing with its title, unit, legend and note.

    Attributes:
        legend: (label, slot, kind) of each series, where there are several.
        note: how to read it.
    """

    title: str
    unit: str
    svg: Markup
    legend: tuple[tuple[str, int, str], ...]
    note: str


def draw(
    title: str,
    unit: str,
    series: Sequence[Series],
    names: Sequence[str] = (),
    parts: Sequence[tuple[float, str]] = (),
    level: float | None = None,
    note: str = "",
) -> Figure | None:
    """Draws series over one pair of axes; None when there is nothing to draw.

    Args:
        names: of the places 0, 1, ... on the x axis, instead of numbers.
        parts: where a part of the x axis begins, and its name.
        level: a height to compare with, drawn dashed.
    """
    series = [kept for one in series if (kept := _finite(one)).points]
    if not series:
        return None
    drawing = _Drawing(series, names, parts, level)
    label = ", ".join(filter(None, (title, unit))) + ". " + "; ".join(_told(one, names) for one in series)
    body = Markup("").join(drawing.marks(unit))
    svg = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(WIDTH, HEIGHT, label, body)
    if any(one.kind == "line" and len(one.points) > MAX_POINTS for one in series):
        note = f"{note} A line is the mean of stretches of steps; its band reaches from their lowest to their highest."
    legend = tuple((one.label, one.slot, one.kind) for one in series) if len(series) > 1 else ()
    return Figure(title, unit, svg, legend, note.strip())


def interval_bars(intervals: Sequence[Interval]) -> list[Markup]:
    """Each interval as a drawing, all on one scale, which has a line at 0."""
    low, high = min(0.0, *(one.low for one in intervals)), max(0.0, *(one.high for one in intervals))
    margin = 0.04 * (high - low) or 1.0

    def x(value: float) -> str:
        return f"{100 * (value - low + margin) / (high - low + 2 * margin):.2f}%"

    return [
        Markup('<svg width="100%" height="22" aria-hidden="true" focusable="false">{}{}{}</svg>').format(
            _element("line", "zero", x1=x(0.0), x2=x(0.0), y1="0", y2="22"),
            _element("line", "error s0", x1=x(one.low), x2=x(one.high), y1="11", y2="11"),
            _element("circle", "dot s0", cx=x(one.mean), cy="11", r="4.5"),
        )
        for one in intervals
    ]


def _finite(series: Series) -> Series:
    """Without points that are no numbers, which a diverging run may have."""
    kept = [place for place, (_, y) in enumerate(series.points) if math.isfinite(y)]
    errors = [series.errors[place] for place in kept] if series.errors else ()
    return replace(series, points=[series.points[place] for place in kept], errors=errors)


def _told(series: Series, names: Sequence[str]) -> str:
    """A series in words, for those who cannot see it."""
    (first_x, first), (last_x, last) = series.points[0], series.points[-1]
    if names:
        return series.label + " " + ", ".join(f"{names[round(x)]} {_short(y)}" for x, y in series.points)
    if len(series.points) == 1:
        return f"{series.label} {_short(first)} at step {first_x:g}"
    return f"{series.label} from {_short(first)} at step {first_x:g} to {_short(last)} at {last_x:g}"


class _Drawing:
    """Axes that hold everything, and the marks on them."""

    def __init__(
        self,
        series: Sequence[Series],
        names: Sequence[str],
        parts: Sequence[tuple[float, str]],
        level: float | None,
    ) -> None:
        self.series, self.names, self.parts, self.level = series, names, parts, level
        heights = [y for one in series for _, y in one.points]
        heights += [end for one in series for pair in one.errors for end in pair if math.isfinite(end)]
        heights += [] if level is None else [level]
        self.y_ticks = ticks(min(heights), max(heights), 4)
        self.y_digits = _digits(self.y_ticks)
        step = self.y_ticks[1] - self.y_ticks[0]
        self.bottom = min(min(heights) - step / 5, self.y_ticks[0])
        self.top = max(max(heights) + step / 5, self.y_ticks[-1])
        across = [x for one in series for x, _ in one.points]
        low, high = (-0.5, len(names) - 0.5) if names else (min(across), max(across))
        self.first, self.last = (low, high) if high > low else (low - 1, high + 1)
        self.left = _LEFT + _GLYPH * max(len(_number(tick, self.y_digits)) for tick in self.y_ticks) + 4

    def x(self, value: float) -> float:
        room = WIDTH - _RIGHT - self.left
        return self.left + room * (value - self.first) / (self.last - self.first)

    def y(self, value: float) -> float:
        room = HEIGHT - _BOTTOM - _TOP
        return _TOP + room * (self.top - value) / (self.top - self.bottom)

    def marks(self, unit: str) -> Iterator[Markup]:
        yield from self._axes()
        for one in self.series:
            if one.kind == "line":
                yield from self._line(one)
        for one in self.series:
            if one.kind == "dots":
                yield from self._dots(one)
        for one in self.series:
            if len(one.points) <= TELLING_POINTS:
                yield from self._told_points(one, unit)

    def _axes(self) -> Iterator[Markup]:
        right, floor = WIDTH - _RIGHT, HEIGHT - _BOTTOM
        for tick in self.y_ticks:
            if self.bottom <= tick <= self.top:
                yield _element("line", "grid", x1=self.left, x2=right, y1=self.y(tick), y2=self.y(tick))
                yield _text(_number(tick, self.y_digits), self.left - 6, self.y(tick) + 4, "end")
        for begin, name in self.parts:
            place = self.x(begin)
            if begin > self.first:
                yield _element("line", "part", x1=place, x2=place, y1=_TOP - 4, y2=floor)
            yield _text(name, place + 3, _TOP - 6, "start")
        if self.names:
            for place, name in enumerate(self.names):
                yield _text(_fitting(name, len(self.names)), self.x(place), floor + 15, "middle")
        else:
            for tick in ticks(self.first, self.last, 5, whole=True):
                if self.first <= tick <= self.last:
                    yield _text(_number(tick, 0), self.x(tick), floor + 14, "middle")
            yield _text("step", right, HEIGHT - 3, "end")
        if self.level is not None:
            yield _element("line", "level", x1=self.left, x2=right, y1=self.y(self.level), y2=self.y(self.level))

    def _line(self, series: Series) -> Iterator[Markup]:
        points, band = thinned(series.points)
        if band:
            outline = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in reversed(band)]
            yield _element("polygon", f"band s{series.slot}", points=self._path(outline))
        yield _element("polyline", f"line s{series.slot}", points=self._path(points))
        if len(points) == 1:
            yield self._dot(series, points[0])

    def _dots(self, series: Series) -> Iterator[Markup]:
        for point, (low, high) in zip(series.points, series.errors, strict=False):
            place = self.x(point[0])
            yield _element("line", f"error s{series.slot}", x1=place, x2=place, y1=self.y(low), y2=self.y(high))
        for point in series.points:
            yield self._dot(series, point)

    def _dot(self, series: Series, point: tuple[float, float]) -> Markup:
        return _element("circle", f"dot s{series.slot}", cx=self.x(point[0]), cy=self.y(point[1]), r=3.2)

    def _told_points(self, series: Series, unit: str) -> Iterator[Markup]:
        for place, (x, y) in enumerate(series.points):
            where = self.names[round(x)] if self.names else f"step {x:g}"
            told = f"{where}: {series.label} {_short(y)} {unit}"
            if series.errors:
                told += " ({} to {})".format(*map(_short, series.errors[place]))
            title = Markup("<title>{}</title>").format(told)
            yield _element("circle", "told", title, cx=self.x(x), cy=self.y(y), r=7)

    def _path(self, points: Sequence[tuple[float, float]]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


# Data ---------------------------------------------------------------------------------------------------------------


def thinned(
    points: Sequence[tuple[float, float]],
) -> tuple[Sequence[tuple[float, float]], Sequence[tuple[float, float, float]]]:
    """The points, or means of equal stretches when there are many; and of each stretch (x, lowest, highest).

    1,000 points become 120 of 8 or 9 points each.
    """
    count = len(points)
    if count <= MAX_POINTS:
        return points, ()
    means, band = [], []
    for number in range(STRETCHES):
        part = points[count * number // STRETCHES : count * (number + 1) // STRETCHES]
        heights = [y for _, y in part]
        place = sum(x for x, _ in part) / len(part)
        means.append((place, sum(heights) / len(part)))
        band.append((place, min(heights), max(heights)))
    return means, band


def ticks(low: float, high: float, about: int, whole: bool = False) -> list[float]:
    """Round numbers, 1, 2 or 5 times a power of ten apart, from at or below ``low`` to at or above ``high``.

    >>> ticks(0.61, 0.69, 4)
    [0.6, 0.62, 0.64, 0.66, 0.68, 0.7]
    """
    size = max(abs(low), abs(high))
    # of values that are equal but for rounding, ticks would be equal too
    span = high - low if high - low > 1e-9 * size else size or 1.0
    power = 10.0 ** math.floor(math.log10(span / about))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor * about >= span * 0.999)
    if whole:
        step = max(1.0, step)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    if first == last:
        first, last = first - 1, last + 1
    digits = max(0, -math.floor(math.log10(step)))
    return [round(step * number, digits) for number in range(first, last + 1)]


def _digits(values: Sequence[float]) -> int:
    step = min(b - a for a, b in itertools.pairwise(values))
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _number(value: float, digits: int) -> str:
    """As short as it can be read: 12k, 0.25, 2e−5."""
    if abs(value) >= 10_000 and digits == 0:
        return f"{value / 1000:g}k".replace("-", "−")
    if digits > 4 and value:
        return re.sub(r"e([+-])0*", r"e\1", f"{value:.1e}").replace(".0e", "e").replace("-", "−")
    if digits > 4:
        return "0"
    return f"{value:.{digits}f}".replace("-", "−")


def _short(value: float) -> str:
    return f"{value:.4g}".replace("-", "−")


# SVG ----------------------------------------------------------------------------------------------------------------


_NOTHING = Markup("")


def _element(tag: str, style: str, inside: Markup = _NOTHING, **attributes: float | str) -> Markup:
    written = Markup("").join(
        Markup(' {}="{}"').format(name, f"{value:.1f}" if isinstance(value, float) else value)
        for name, value in attributes.items()
    )
    return Markup('<{} class="{}"{}>{}</{}>').format(tag, style, written, inside, tag)


def _text(text: str, x: float, y: float, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _fitting(name: str, places: int) -> str:
    room = int((WIDTH - 60) / places / _GLYPH)
    return name if len(name) <= room else name[: max(1, room - 1)] + "…"
