"""Runs work on repetitive texts and compares its processor time on a text with that on a longer one.

Time of this thread's processor, not of the clock, wide margins, and three tries, since a virtual machine counts what
its host took away: a busy machine changes no verdict. Work that takes more than ``GUARD`` seconds is stopped by a
signal, which Python's regular expressions look for while they match.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator, Sequence

SHORT, LONG = 2_000, 8_000  # characters
UNNOTICED = 0.03  # of the longer text; what is quadratic takes more [s]
MOST_GROWTH = 9.0  # from the short to the long text; 4 is linear, 16 is quadratic
GUARD = 1.0  # [s]


class TooSlowError(Exception):
    """The guard ended the work."""


def grows_too_fast(work: Callable[[str], object], text_of: Callable[[int], str]) -> str | None:
    """Says how the work grows, if it grows faster than the text each time; None if it does not."""
    found = None
    for _ in range(3):
        if (found := _growth(work, text_of)) is None:
            return None
    return found


def _growth(work: Callable[[str], object], text_of: Callable[[int], str]) -> str | None:
    last = text_of(LONG)
    try:
        if (late := seconds(work, last)) < UNNOTICED:
            return None
        early = max(min(seconds(work, text_of(SHORT)) for _ in range(3)), 1e-4)
        late = min(late, seconds(work, last))
    except TooSlowError:
        return f"more than {GUARD} s for {LONG} characters"
    if late < UNNOTICED or late < MOST_GROWTH * early:
        return None
    return f"{early:.4f} s for {SHORT} characters, {late:.4f} s for {LONG}"


def seconds(work: Callable[[str], object], text: str) -> float:
    """Processor time of the work. Raises TooSlowError after ``GUARD`` seconds."""

    def stop(*_: object) -> None:
        raise TooSlowError

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, GUARD)
    start = time.thread_time()
    try:
        work(text)
        return time.thread_time() - start
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def repetitive(words: Sequence[str], chars: Sequence[str]) -> Iterator[Callable[[int], str]]:
    """Texts that repeat a character, a word, or a pair, alone and behind the beginnings of what a pattern matches."""
    units = dict.fromkeys([*chars, *words, *(f"{word}\n" for word in words), *(a + b for a in chars for b in chars)])
    for unit in units:
        yield lambda size, unit=unit: unit * (size // len(unit)) + "~"
    for word in words:
        for unit in dict.fromkeys([*chars, "\n ", " \n"]):
            yield lambda size, word=word, unit=unit: f"{word}{unit * (size // len(unit))}~"
    yield lambda size: "".join(words) * (size // max(1, len("".join(words))))
