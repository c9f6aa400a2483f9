"""Reads the rows of one source: renames their keys, gives them to a format, and counts what had no use."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from spintune.data.columns import ColumnMap, Columns
from spintune.data.file_rows import FileRow
from spintune.data.formats import AUTO, BUILTIN_FORMATS, FORMATS, Format, RowConversation, choose_format, read_row
from spintune.data.tables import is_builtin
from spintune.errors import DataError
from spintune.progress import Progress

_NAMED = 8  # ignored keys in a line


class RowReader:
    """Reads the rows of one source, whose first rows decide the format unless a recipe does.

    Args:
        path: the source, for errors.
        format: a name, or "auto".
        columns: which keys hold what, see :mod:`spintune.data.columns`.

    Attributes:
        format: what the rows are read as.

    Raises RecipeError for an unknown format, DataError for one that does not go with the columns.
    """

    def __init__(self, path: str, format: str, columns: Columns | None) -> None:
        self._path, self._columns = path, ColumnMap(columns) if columns else None
        decided = self._columns.format if self._columns else None
        if decided and format not in (AUTO, decided):
            raise DataError(f"{path}: columns decide the format ({decided}), not format: {format}; leave format out")
        self._named = bool(decided) or format != AUTO
        # until it is recognized any format leads to the error about rows that are no objects
        self.format: Format = FORMATS[decided or format] if self._named else BUILTIN_FORMATS[0]
        self._recognized_in = ""
        self._trimmed = 0
        self._shapes: Counter[tuple[str, ...]] = Counter()
        self._noticed: Counter[str] = Counter()
        self._mapped: set[str] = set()

    def begin(self, path: str, head: Sequence[FileRow]) -> None:
        """Recognizes the format of a file of the source by the first of its rows that are objects.

        Raises DataError for rows of no format, of two, or of another one than those of the files before.
        """
        if self._named or not head:
            return
        found = choose_format(path, [self._columns.row(row) for row in head] if self._columns else head)
        if self._recognized_in and found is not self.format:
            raise DataError(
                f"{path}: its rows have the format {found.name}, those of {self._recognized_in} {self.format.name}; "
                "make them two sources"
            )
        self.format, self._recognized_in = found, self._recognized_in or path

    @property
    def keys(self) -> frozenset[str] | None:
        """The keys that may be read; None when the format does not say."""
        return self._columns.keys(self.format) if self._columns else self.format.all_keys

    def conversations(self, row: FileRow) -> list[RowConversation]:
        """The conversations of a row. Raises DataError for a row that holds none."""
        keys = tuple(row.values)
        if self._columns:
            row = self._columns.row(row)
            self._mapped.update(row.names or ())
        conversations = read_row(self.format, row)
        for found in conversations:
            self._trimmed += found.trimmed
            if found.ignored:
                self._noticed.update(found.ignored)
        self._shapes[keys] += 1
        return conversations

    def passed_over(self, columns: Sequence[str], rows: int) -> None:
        """Counts the columns of a file that were not even decoded."""
        seen = {key for keys in self._shapes for key in keys}
        if (keys := self.keys) is not None:
            self._noticed.update({column: rows for column in columns if column not in keys and column not in seen})

    def settle(self, progress: Progress) -> tuple[int, Counter[str]]:
        """Tells how many conversations were cut after their last answer to train on, and which keys had no use.

        Returns both, the keys with the number of rows or turns that had them. Raises DataError when a key of the
        columns was in no row.
        """
        if self._columns:
            self._columns.check(self._path, self._mapped, {key for keys in self._shapes for key in keys})
        ignored = Counter(self._noticed)
        for keys, count in self._shapes.items():
            unused = self._columns.ignored(keys, self.format) if self._columns else self.format.ignored(keys)
            ignored.update(dict.fromkeys(unused, count))
        parts = []
        if self._trimmed:
            parts.append(f"{self._trimmed:,} conversations cut after their last answer to train on")
        if ignored:
            parts.append(f"keys without a use: {named(ignored)}")
        if parts and not is_builtin(self._path):  # what comes with this package is known
            progress.note(f"{self._path}: {'; '.join(parts)}")
        return self._trimmed, ignored


def named(ignored: Mapping[str, int]) -> str:
    """Keys with their numbers, the most frequent ones first."""
    first = ", ".join(f"{key} ({count:,})" for key, count in Counter(ignored).most_common(_NAMED))
    others = len(ignored) - _NAMED
    return first + (f" and {others} others" if others > 0 else "")
