"""Tables on the terminal, no wider than it is."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.table import Table
from rich.text import Text

from spintune.progress_display import WIDTH_OF_FILES
from spintune.report.table import Cell, MeasureColumn, MeasureTable
from spintune.terminal import SafeConsole

_ANY_WIDTH = 10_000


class PlainConsole(SafeConsole):
    """Standard output; elsewhere than on a terminal of a fixed width. Nothing in a text is markup."""

    def __init__(self, width: int = WIDTH_OF_FILES) -> None:
        super().__init__(highlight=False, markup=False)
        if not self.is_terminal:
            self.width = width

    def sentence(self, text: str) -> None:
        """Prints text on one line, or on a terminal on as many as its width takes, between words."""
        self.print(text, soft_wrap=not self.is_terminal)


def print_tables(found: Iterable[MeasureTable | str]) -> None:
    """Prints tables of measures, intervals under their means, and sentences, in the order in which they come."""
    console = PlainConsole()
    for one in found:
        if isinstance(one, str):
            console.sentence(one)
        else:
            for table in _fitting(console, one):
                console.print(table)


def _fitting(console: PlainConsole, whole: MeasureTable) -> Iterator[Table]:
    """A table, or several with some of its columns each, so that no number is cut on a narrow terminal."""
    left = whole.columns
    while left:
        shorter = range(len(left), 1, -1)
        count = next((n for n in shorter if _width(console, _table(whole, left[:n])) <= console.width), 1)
        yield _table(whole, left[:count])
        left = left[count:]


def _width(console: PlainConsole, table: Table) -> int:
    return console.measure(table, options=console.options.update(max_width=_ANY_WIDTH)).maximum


def _table(whole: MeasureTable, columns: Sequence[MeasureColumn]) -> Table:
    """Some columns of a table, with its title over the first ones."""
    begin = whole.columns.index(columns[0])
    table = plain_table("" if begin else whole.title, (whole.first, *(column.title for column in columns)))
    for row in whole.rows:
        label = Text(row.label).append(f"\n{row.note}" if row.note else "", style="dim")
        table.add_row(label, *map(_cell, row.cells[begin : begin + len(columns)]))
    return table


def _cell(cell: Cell | None) -> Text:
    if cell is None:
        return Text("-")
    text = Text(cell.mean + (f" {cell.verdict}" if cell.verdict else ""))
    return text.append(f"\n{cell.interval}" if cell.interval else "", style="dim")


def plain_table(title: str, headings: Sequence[str]) -> Table:
    """An empty table: the first column is text, the others are numbers."""
    table = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, heading in enumerate(headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    return table
