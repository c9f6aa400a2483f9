"""Tables of text, as the page and the model card show them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup


@dataclass(frozen=True)
class Cell:
    """A number as text.

    Attributes:
        interval: shown small beside it.
        verdict: better, worse, more or less, where the interval of a difference leaves out 0.
        note: what else must be known of it.
    """

    mean: str
    interval: str
    verdict: str = ""
    note: str = ""


Content = Cell | str | None
"""What a cell shows; None stands for what is not known."""


@dataclass(frozen=True)
class Column:
    """A heading; ``style`` is the class of its cells in the style sheet."""

    title: str
    unit: str = ""
    style: str = ""


@dataclass(frozen=True)
class Row:
    """A line of a table; ``note`` is shown small beside its label."""

    label: str
    cells: tuple[Content, ...]
    note: str = ""


@dataclass(frozen=True)
class ColumnGroup:
    """Columns of one evaluation; ``items`` is the largest number that any model has."""

    name: str
    items: int
    span: int


@dataclass(frozen=True)
class Table:
    """A table for the page or the card.

    Attributes:
        columns: the first is that of the labels.
        items: examples that it is of.
        style: classes in the style sheet.
        caption: whether the title is shown above the table, or only told to screen readers.
        groups: of all columns but the first.
        total: a last row.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    items: int = 0
    style: str = "numbers"
    caption: Literal["shown", "unseen"] | None = None
    groups: tuple[ColumnGroup, ...] = ()
    total: Row | None = None


def isolated(text: str) -> Markup:
    """A text whose direction moves nothing beside it."""
    return Markup("<bdi>{}</bdi>").format(text)


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
