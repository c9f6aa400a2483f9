"""How long work reports that it moves. The command line draws it; the library only counts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, Protocol


class ProgressTask(Protocol):
    """One counted piece of work."""

    def advance(self, amount: float = 1, **facts: Any) -> None:
        """Counts ``amount`` units as done; ``facts`` are shown beside the bar (loss, rate)."""


class Progress(Protocol):
    """Receives what happens, in order."""

    def task(self, name: str, total: float, unit: str) -> contextlib.AbstractContextManager[ProgressTask]:
        """Begins a counted piece of work of ``total`` ``unit``s."""

    def note(self, text: str) -> None:
        """One line for the reader."""


class _SilentTask:
    def advance(self, amount: float = 1, **facts: Any) -> None:
        pass


class Silent:
    """Progress that nobody watches."""

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        yield _SilentTask()

    def note(self, text: str) -> None:
        pass
