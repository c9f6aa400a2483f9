"""Progress reporting for long work: the library counts, the command line draws."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol


class ProgressTask(Protocol):
    """One counted piece of work."""

    def advance(self, amount: float = 1, **facts: object) -> None:
        """Counts ``amount`` more units as done. ``facts``, such as the loss, are shown beside the bar."""


class Progress(Protocol):
    """Receives the progress of tasks, and notes for the user."""

    def task(self, name: str, total: float, unit: str) -> contextlib.AbstractContextManager[ProgressTask]:
        """Begins a task of ``total`` ``unit``s, which ends with the context."""

    def note(self, text: str) -> None:
        """Shows one line of text."""


class _SilentTask:
    def advance(self, amount: float = 1, **facts: object) -> None:
        pass


class Silent:
    """Shows nothing."""

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        yield _SilentTask()

    def note(self, text: str) -> None:
        pass
