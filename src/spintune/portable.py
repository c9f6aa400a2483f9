"""What operating systems do differently: locks, handles of folders, reading at a place, signals.

Linux and macOS have all of it. Windows locks a file by other means, opens no folders, and lacks some signals and flags.
"""

from __future__ import annotations

import errno
import os
import signal
import socket
import time
from collections.abc import Iterable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]
try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

RENAMES_OPEN_FILES = os.name != "nt"
"""Whether a file can be renamed, and a file replaced, while it is open."""

NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Flags of os.open that refuse a symbolic link, and keep the file from programs that are started."""

NO_WAIT = getattr(os, "O_NONBLOCK", 0)

_FAR = 2**31 - 2  # Windows locks bytes, and keeps others from them, so one behind all content
_CLONE = 0x40049409  # FICLONE of linux/fs.h


def try_lock(handle: int) -> None:
    """Locks an open file, or folder, for this process.

    Raises BlockingIOError where another has it, other OSErrors where the file system has no locks.
    """
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    elif msvcrt is not None:
        place = os.lseek(handle, 0, os.SEEK_CUR)
        os.lseek(handle, _FAR, os.SEEK_SET)
        try:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(error.errno, "locked by another process") from None
            raise
        finally:
            os.lseek(handle, place, os.SEEK_SET)
    else:
        raise OSError(errno.ENOTSUP, "this Python has no file locks")


def wait_for_lock(handle: int) -> None:
    """Like :func:`try_lock`, after any process that has the lock. Raises OSError where there are no locks."""
    if fcntl is not None:
        fcntl.flock(handle, fcntl.LOCK_EX)
        return
    while True:
        try:
            return try_lock(handle)
        except BlockingIOError:
            time.sleep(0.05)


def open_folder(folder: Path) -> int | None:
    """A handle of a folder, to be closed; None where the system has none."""
    if not hasattr(os, "O_DIRECTORY"):
        return None
    return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def sync(path: Path) -> None:
    """Flushes a file, or the names in a folder, to disk. Windows has no such call for folders."""
    if not RENAMES_OPEN_FILES and path.is_dir():
        return
    handle = os.open(path, os.O_RDONLY if RENAMES_OPEN_FILES else os.O_RDWR | NO_LINK)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def clone(copy: int, original: int) -> bool:
    """Lets an empty file share the blocks of another, on btrfs and XFS; False where that cannot be."""
    if fcntl is None:
        return False
    try:
        fcntl.ioctl(copy, _CLONE, original)
    except OSError:  # another file system
        return False
    return True


def read_part(handle: int, size: int, begin: int) -> bytes:
    """Up to ``size`` bytes of a file from ``begin``. Several threads may do so at once where the system can."""
    if hasattr(os, "pread"):
        return os.pread(handle, size, begin)
    os.lseek(handle, begin, os.SEEK_SET)
    return os.read(handle, size)


def write_part(handle: int, data: memoryview, begin: int) -> int:
    """Writes bytes to a file at ``begin``, and returns how many."""
    if hasattr(os, "pwrite"):
        return os.pwrite(handle, data, begin)
    os.lseek(handle, begin, os.SEEK_SET)
    return os.write(handle, data)


def user() -> int | None:
    """The number of this user; None where files do not have owners by number."""
    return os.getuid() if hasattr(os, "getuid") else None


def peak_memory() -> int:
    """The most memory that this process has taken; 0 where nobody knows. [kB]"""
    if resource is None:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // 1024 if os.uname().sysname == "Darwin" else peak


def signals(names: Iterable[str]) -> list[signal.Signals]:
    """The signals of these names that the system has."""
    return [signal.Signals[name] for name in names if name in signal.Signals.__members__]


def notice_silence(connection: socket.socket, idle: int, between: int, probes: int) -> None:
    """Lets a TCP connection fail when the other machine answers nothing any more.

    The system asks it, not its process: one that is busy or stopped still answers.

    Args:
        idle, between: silence before the first question, and between two. [seconds]
        probes: how many questions remain unanswered before the connection fails.
    """
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {
        ("TCP_KEEPIDLE", "TCP_KEEPALIVE"): idle,  # the second is macOS's name
        ("TCP_KEEPINTVL",): between,
        ("TCP_KEEPCNT",): probes,
        ("TCP_USER_TIMEOUT",): 1000 * (idle + between * (probes - 1)),  # of what was sent and not acknowledged
    }
    for names, value in options.items():
        if number := next((getattr(socket, name) for name in names if hasattr(socket, name)), None):
            connection.setsockopt(socket.IPPROTO_TCP, number, value)


def has_limited_addresses() -> bool:
    """Whether this process may only have so many addresses of memory (``ulimit -v``)."""
    return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY
