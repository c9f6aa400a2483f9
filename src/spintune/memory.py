"""Memory: how much there is, and how to tell that it ran out. What to do then is in :mod:`spintune.remedies`."""

from __future__ import annotations

import contextlib
import errno
import re
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

from spintune.control_groups import MEMBERSHIP, MOUNT, groups_of
from spintune.errors import OutOfMemoryError

_SIGNS = re.compile(
    r"(can't|cannot) allocate memory|out of memory|bad_alloc|not enough memory"
    r"|could not create a (primitive|memory object)$",  # oneDNN, which does not say why
    re.I,
)

_NO_THREAD = "can't start new thread"
"""Python's words where a thread gets no memory for its stack, and where the system allows no more threads."""

_MORE_THAN_A_STACK = 64 << 20
"""More than a thread's stack, and more than an allocator keeps to hand out again. [bytes]"""

_LONGEST = 160
"""What is shown of a library's message. [characters]"""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that led to it, says so: Python's, torch's, oneDNN's, or the system's."""
    return _root(error) is not None


def _root(error: BaseException | None) -> BaseException | None:
    """The error that says that memory ran out, among an error and those that led to it."""
    while error is not None:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
            return error
        foreign = isinstance(error, RuntimeError | OSError) or type(error).__module__.startswith("safetensors")
        if foreign and (_SIGNS.search(str(error)) or (str(error) == _NO_THREAD and not _is_free(_MORE_THAN_A_STACK))):
            return error
        error = error.__cause__ if error.__suppress_context__ or error.__cause__ else error.__context__
    return None


def _is_free(size: int) -> bool:
    """Whether the system would give this process so many bytes more."""
    try:
        bytearray(size)
    except MemoryError:
        return False
    return True


def words_of(error: BaseException) -> str:
    """What a library said when memory ran out, on one line."""
    return " ".join(str(_root(error)).split())[:_LONGEST]


@contextlib.contextmanager
def memory_errors(told: Callable[[Exception], OutOfMemoryError]) -> Iterator[None]:
    """Turns whatever says that memory ran out into one clear line: that of :mod:`spintune.remedies`."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OutOfMemoryError) or not is_out_of_memory(error):
            raise
        raise told(error) from error


def release_frames(error: BaseException) -> None:
    """Frees what the functions that ended with an error held, such as the activations of a step."""
    seen: BaseException | None = error
    while seen is not None:
        traceback.clear_frames(seen.__traceback__)
        seen = seen.__cause__ or seen.__context__


def available_memory() -> int | None:
    """Bytes that this process may still take: of the machine, or within its control group. None: nobody knows."""
    found = []
    meminfo = _read(Path("/proc/meminfo"))
    if match := re.search(r"^MemAvailable:\s+(\d+) kB", meminfo, re.M):
        found.append(int(match[1]) * 1024)
    found += _left_in_groups()
    return min(found, default=None)


_NAMES = (  # limit, use, and what of it can be dropped; version 2 and 1
    ("memory.max", "memory.current", "inactive_file"),
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
)


def _left_in_groups(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> Iterator[int]:
    """What each control group around the process leaves. Files that were read once can be dropped, so they are free."""
    for folder in groups_of("memory", mount, membership):
        for names in _NAMES:
            limit, used = _read(folder / names[0]).strip(), _read(folder / names[1]).strip()
            idle = re.search(rf"^{names[2]} (\d+)$", _read(folder / "memory.stat"), re.M)
            if limit.isdigit() and used.isdigit():
                yield max(0, int(limit) - int(used) + (int(idle[1]) if idle else 0))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
