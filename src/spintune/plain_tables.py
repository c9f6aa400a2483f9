"""Tables on the terminal, no wider than it is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from spintune.progress_display import WIDTH_OF_FILES
from spintune.report.table import Cell, MeasureTable
from spintune.terminal import SafeConsole

_ANY_WIDTH, _NARROW = 10_000, 30


class PlainConsole(SafeConsole):
    """Standard output; elsewhere than on a terminal of a fixed width. Nothing in a text is markup."""

    def __init__(self, width: int = WIDTH_OF_FILES) -> None:
        super().__init__(highlight=False, markup=False)
        if not self.is_terminal:
            self.width = width

    def sentence(self, text: str) -> None:
        """Prints text on one line, or on a terminal on as many as its width takes, between words."""
        self.print(text, soft_wrap=not self.is_terminal)


class PlainTable:
    """A table whose first column is text and whose others are numbers.

    The first takes half of the width of a terminal at most. Columns that are too many follow below, behind it, so that
    no number is cut.

    Args:
        wraps: the last column is text, too, of as many lines as it takes.
    """

    def __init__(self, title: str, headings: Sequence[str], wraps: bool = False) -> None:
        self._title, self._headings, self._wraps = title, headings, wraps
        self._rows: list[Sequence[str | Text]] = []

    def add_row(self, *cells: str | Text) -> None:
        """Adds a row, with a cell for each heading."""
        self._rows.append(cells)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(self._title, style="bold")
        begin, count, room = 1, len(self._headings), options.max_width
        while begin < count:
            fewer = range(count, begin + 1, -1)
            end = next((end for end in fewer if self._width(console, begin, end, room) <= room), begin + 1)
            yield self._part(begin, end, room)
            begin = end
        if count == 1:
            yield self._part(1, 1, room)

    def _width(self, console: Console, begin: int, end: int, room: int) -> int:
        part = self._part(begin, end, room)
        if self._wraps and end == len(self._headings):
            part.columns[-1].max_width = _NARROW
        return console.measure(part, options=console.options.update(max_width=_ANY_WIDTH)).maximum

    def _part(self, begin: int, end: int, room: int) -> Table:
        """The first column, which takes half of the width at most, and some others."""
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
        table.add_column(self._headings[0], max_width=max(1, room // 2), overflow="fold")
        for heading in self._headings[begin:end]:
            table.add_column(heading, justify="right", no_wrap=True)
        if self._wraps and end == len(self._headings):
            table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
        for row in self._rows:
            table.add_row(row[0], *row[begin:end])
        return table


def print_tables(found: Iterable[MeasureTable | str]) -> None:
    """Prints tables of measures, intervals under their means, and sentences, in the order in which they come."""
    console = PlainConsole()
    for one in found:
        if isinstance(one, str):
            console.sentence(one)
            continue
        table = PlainTable(one.title, (one.first, *(column.title for column in one.columns)))
        for row in one.rows:
            label = Text(row.label).append(f"\n{row.note}" if row.note else "", style="dim")
            table.add_row(label, *map(_cell, row.cells))
        console.print(table)


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-")
    text = Text(cell.mean + (f" {cell.verdict}" if cell.verdict else ""))
    return text.append(f"\n{cell.interval}" if cell.interval else "", style="dim")
