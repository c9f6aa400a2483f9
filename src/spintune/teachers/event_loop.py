"""An event loop for calls from code that has none, and from notebooks, which have a running one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


@contextlib.contextmanager
def event_loop() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs coroutines in an event loop of their own; in a thread if the caller's thread has a running loop."""
    runner = asyncio.Runner()
    if not _loop_is_running():
        with runner:
            yield runner.run
        return
    with ThreadPoolExecutor(1) as thread:
        try:
            yield lambda coroutine: thread.submit(runner.run, coroutine).result()
        finally:
            thread.submit(runner.close).result()


def _loop_is_running() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
