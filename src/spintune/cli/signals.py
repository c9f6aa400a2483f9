"""Signals that ask a run to stop. Only the command line handles them: a library leaves its host's handlers alone."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from types import FrameType

from spintune.errors import StoppedBySignal
from spintune.portable import signals
from spintune.progress import StopRequest

STOPPING = ("SIGTERM", "SIGUSR1", "SIGHUP", "SIGBREAK")
"""Signals that end a run at a safe point. Windows has the first and the last, which is Ctrl-Break there."""

_SAME_SECONDS = 1.0
"""A signal that comes again so soon is the same request: timeout(1) sends one to the process and one to its group."""


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Inside, SIGTERM, SIGUSR1 and SIGHUP ask for a stop at the next safe point; the same signal again ends at once.

    Ctrl-C interrupts at once, as elsewhere, but does not tear a training step's update from its records; a second one
    does. Signals that are ignored stay ignored, such as SIGHUP under nohup.
    """
    stop = StopRequest()
    stopping, hang_up = signals(STOPPING), getattr(signal, "SIGHUP", None)
    asked: dict[int, float] = {}

    def finish(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number not in asked:
            asked[number] = now
            stop.ask(StoppedBySignal(f"stopped by {signal.Signals(number).name}"))
        elif number != hang_up and now - asked[number] > _SAME_SECONDS:  # shell and kernel both send SIGHUP
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not stop.is_held or number in asked:
            raise KeyboardInterrupt
        asked[number] = time.monotonic()
        stop.ask(KeyboardInterrupt())
        os.write(2, b"\nending this step; Ctrl-C again stops at once\n")  # print is not reentrant

    handlers = {**dict.fromkeys(stopping, finish), signal.SIGINT: interrupt}
    heeded = {number: handler for number, handler in handlers.items() if signal.getsignal(number) != signal.SIG_IGN}
    before = {number: signal.signal(number, handler) for number, handler in heeded.items()}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
