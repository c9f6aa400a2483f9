"""Folders in a cache, which several processes fill at once, and which hold what a run believes without making it again.

So each is complete when it appears, the first process's stays, and nothing is believed that another user may have
written: a cache may lie where others write as well, such as a team's XDG_CACHE_HOME.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from spintune.errors import StorageError
from spintune.portable import open_folder, user, wait_for_lock
from spintune.storage import atomic_folder, is_temporary, temporary_sibling

_ABANDONED = 24 * 3600  # seconds after which nobody is still writing an unfinished folder
_OTHERS_WRITE = 0o022


def require_own(facts: os.stat_result, path: Path) -> None:
    """Raises PermissionError when anybody but this user and root may have written ``path``."""
    if (mine := user()) is None:  # Windows, where a cache lies in the user's own profile
        return
    if facts.st_uid not in (mine, 0) or (facts.st_mode & _OTHERS_WRITE and not stat.S_ISLNK(facts.st_mode)):
        raise PermissionError(f"{path} may have been written by somebody else")


def own_room(folder: Path) -> Path:
    """Makes a folder for cached folders, in which only this user writes. A link of the user's own is followed.

    Where it belongs to somebody else, this user gets another one beside it.

    Raises OSError when neither can be made.
    """
    try:
        return _own(folder)
    except PermissionError:
        return _own(folder.with_name(f"{folder.name}-{user()}"))


def _own(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    require_own(folder.lstat(), folder) if folder.is_symlink() else None
    mode = folder.stat().st_mode
    if mode & _OTHERS_WRITE and folder.stat().st_uid == user():
        folder.chmod(stat.S_IMODE(mode) & ~_OTHERS_WRITE)
    require_own(folder.stat(), folder)
    return folder


@contextlib.contextmanager
def cached_folder(path: Path, complete: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a temporary folder that becomes ``path`` when the block ends, and that others may read but not write.

    Args:
        complete: whether a folder that is at ``path`` by then can be used; if so it stays, and this one is dropped.

    Raises StorageError.
    """

    def place(temporary: Path, path: Path) -> None:
        with _one_process(path.parent):  # else one removes what another has put there since it looked
            while not _renamed(temporary, path):
                if complete(path):
                    shutil.rmtree(temporary, ignore_errors=True)
                    return
                remove_whole(path)

    try:
        with atomic_folder(path, place) as folder:
            folder.chmod(stat.S_IMODE(folder.stat().st_mode) & ~_OTHERS_WRITE)
            yield folder
    except StorageError as error:
        raise StorageError(str(error).replace("choose another out=", "set XDG_CACHE_HOME to another folder")) from error
    finally:
        _remove_abandoned(path.parent)


@contextlib.contextmanager
def _one_process(folder: Path) -> Iterator[None]:
    """Keeps other processes out of the same block for ``folder``, where the file system has locks."""
    handle = open_folder(folder)
    try:
        if handle is not None:
            with contextlib.suppress(OSError):
                wait_for_lock(handle)
        yield
    finally:
        if handle is not None:
            os.close(handle)


def _renamed(folder: Path, path: Path) -> bool:
    """Renames a folder unless there is something at ``path`` already."""
    try:
        folder.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


def remove_whole(path: Path) -> None:
    """Removes a folder in one step, as other processes see it; also one that is gone, and what is no folder."""
    aside = temporary_sibling(path)
    with contextlib.suppress(FileNotFoundError):
        path.rename(aside)
        if aside.is_dir() and not aside.is_symlink():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.unlink()


def _remove_abandoned(room: Path) -> None:
    """Removes what killed processes left unfinished."""
    with contextlib.suppress(OSError):
        for path in [path for path in room.iterdir() if is_temporary(path)]:
            if time.time() - path.lstat().st_mtime > _ABANDONED:
                shutil.rmtree(path, ignore_errors=True)


def shrink(room: Path, max_bytes: int, newest: Path, idle: float = 0) -> None:
    """Removes the least recently used folders beyond a size, which is by their time of change.

    Args:
        newest: stays in any case.
        idle: what was used in these last seconds stays as well.
    """
    paths = [path for path in room.iterdir() if not is_temporary(path)]
    found = [(used, size, path) for path in paths for used, size in _use(path)]
    remaining = max_bytes
    for used, size, path in sorted(found, reverse=True):
        remaining -= size
        if remaining < 0 and path != newest and time.time() - used >= idle:
            remove_whole(path)


def _use(path: Path) -> Iterator[tuple[float, int]]:
    """Time of the last use and size of a folder; nothing when it is none, or another process removed it meanwhile."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        yield path.stat().st_mtime, sum(file.stat().st_size for file in path.iterdir())


def folder_bytes(folder: Path) -> int:
    """Size of all files below a folder; 0 when there is none."""
    total = 0
    for file in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total += file.lstat().st_size
    return total
