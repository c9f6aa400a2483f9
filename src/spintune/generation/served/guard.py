"""Runs a server and ends it, with all that it started, when its own standard input ends: however its parent died.

It is run as a script, with the command as arguments, and imports nothing else of this package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
import time

_SECONDS = 15.0
"""Time that the server has to end by itself."""


def main(command: list[str]) -> int:
    """Runs the command until it ends or the parent goes; returns its exit status."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the parent says when it is over
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=_heed_signals)
    while child.poll() is None:
        ready, _, _ = select.select([0], [], [], 0.2)
        if ready and not os.read(0, 1):
            break
    _signal_all(child.pid, signal.SIGTERM)
    deadline = time.monotonic() + _SECONDS
    while child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    _signal_all(child.pid, signal.SIGKILL)  # also what a server that died has left behind
    return child.wait()


def _heed_signals() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _signal_all(group: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
