"""Rows that cannot be read: all of them named in one error, or dropped and counted."""

from __future__ import annotations

from collections import Counter
from typing import Literal

from spintune.errors import DataError, RowError
from spintune.progress import Progress

OnBadRow = Literal["stop", "drop"]

_NAMED = 10  # rows in an error


class BadRows:
    """The rows of one source that cannot be read.

    Attributes:
        dropped: their number, by reason.
    """

    def __init__(self, path: str) -> None:
        self.dropped: Counter[str] = Counter()
        self._path = path
        self._first: list[str] = []

    def add(self, error: DataError) -> None:
        """Counts one row."""
        self.dropped[error.reason if isinstance(error, RowError) else "bad_row"] += 1
        if len(self._first) < _NAMED:
            self._first.append(str(error))

    def settle(self, rows: int, policy: OnBadRow, progress: Progress) -> None:
        """Tells how many of all ``rows`` were dropped, and which was the first.

        Raises DataError, which names the first ten, unless the policy is to drop them; also when no other is left.
        """
        bad = self.dropped.total()
        if not bad:
            return
        first, *others = self._first
        if policy == "drop" and bad < rows:
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(self.dropped.items()))
            progress.note(f"{self._path}: dropped {bad:,} of {rows:,} rows ({reasons}); the first is {first}")
            return
        if bad == 1:
            raise DataError(first)
        advice = "on_bad_row: drop leaves them out" if bad < rows else "no row can be read"
        raise DataError("\n".join([f"{first} (the first of {bad:,} bad rows of {rows:,}; {advice})", *others]))
