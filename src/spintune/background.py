"""Work of a thread beside the main one, such as writing a checkpoint while training goes on.

Threads are daemons, so that a process that is told to stop at once does. Who ends in good order waits for them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

_under_way: set[Background] = set()


class Background:
    """A function that runs in a thread of its own."""

    def __init__(self, function: Callable[[], None]) -> None:
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(function,), daemon=True)
        _under_way.add(self)
        self._thread.start()

    def _run(self, function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            self._error = error

    @property
    def is_done(self) -> bool:
        """Whether it has ended, well or not."""
        return not self._thread.is_alive()

    def wait(self) -> None:
        """Returns when the function has ended, and raises what it raised. Whoever is interrupted waits no more."""
        _under_way.discard(self)
        self._join()
        if self._error is not None:
            raise self._error

    def _join(self) -> None:
        while self._thread.is_alive():
            self._thread.join(1.0)  # Windows handles signals in between


def wait_for_all(seconds: float | None = None) -> None:
    """Returns when all work of this process has ended, well or not, or after so many seconds."""
    until = None if seconds is None else time.monotonic() + seconds
    for work in list(_under_way):
        if until is None:
            work._join()
        else:
            work._thread.join(max(0.0, until - time.monotonic()))
