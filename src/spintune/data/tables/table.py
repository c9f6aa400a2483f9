"""The rows of one file or data set, whatever its kind."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from spintune.data.file_rows import FileRow
from spintune.errors import RowError
from spintune.typed_json import JsonObject

Numbered = tuple[int, object]
"""A row's number, from 1, and its value; a RowError in place of a value that cannot be read. In files of lines the
number is that of the line, in spreadsheets that of the sheet's row."""

Reader = Callable[[frozenset[str] | None], Iterator[Numbered]]
"""Begins to read rows, of which only these keys are wanted; None means all."""

_SAMPLED = 1000  # rows at the beginning of a file among which sample() looks for usable ones


@dataclass(frozen=True)
class RowTable:
    """The rows of one file or data set. They may be read more than once.

    Attributes:
        path: the file, or what the user named.
        rows: reads the rows, or of columnar files only some of their keys. Raises DataError where the file as a whole
            cannot be read further.
        total: how many rows there are; infinite where that is not known.
        lines: whether numbers are lines of the file.
        columns: the keys that a row may have, where the file says so.
        streamed: whether rows come from afar, so that none is read in vain.
    """

    path: str
    rows: Reader
    total: float
    lines: bool = False
    columns: tuple[str, ...] = ()
    streamed: bool = False

    def row(self, number: int, value: object) -> FileRow:
        """A row with its place. Raises RowError when it cannot be read or is not an object."""
        if isinstance(value, RowError):
            raise value
        return FileRow.of(value, f"{self.path}:{number}" if self.lines else f"{self.path}: row {number}", number)

    def sample(self, count: int) -> list[JsonObject]:
        """The first objects among the rows, to recognize their format by. Each has every column as a key."""
        empty: JsonObject = dict.fromkeys(self.columns)
        values = (value for _, value in itertools.islice(self.rows(None), _SAMPLED))
        objects = (value for value in values if isinstance(value, dict))
        found = [{**empty, **value} for value in itertools.islice(objects, count)]
        if found or not self.columns:
            return found
        # no row decodes as a whole; it may in the columns that are needed
        for column in self.columns:
            _, value = next(self.rows(frozenset({column})), (0, None))
            empty |= value if isinstance(value, dict) else {}
        return [empty]


TableOpener = Callable[[], RowTable]
"""Opens one file of a source. Raises DataError."""


def first_line(error: Exception) -> str:
    """The first line of another library's message, without punctuation at its end."""
    return (str(error).strip().splitlines() or [""])[0].rstrip(".:; ")


def either(names: Sequence[str]) -> str:
    """Names in words: "a, b or c"."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
