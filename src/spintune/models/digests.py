"""Digests of model files, which may be large: each is kept in the cache, and the file is read again when it changes."""

from __future__ import annotations

import contextlib
from functools import lru_cache
from pathlib import Path

from spintune.cached_folders import own_room, require_own
from spintune.downloads import shown_progress
from spintune.errors import ModelError, RunError, StorageError
from spintune.progress import Silent
from spintune.storage import digest_file, digest_json, read_json, write_json

_LONG = 10**9  # bytes, from which reading may take more than two seconds

Facts = tuple[int, int, int, int]
"""Size, times and inode of a file."""


def model_digest(path: Path, cache: Path) -> str:
    """SHA-256 of a model's file, kept as long as its size, times and inode stay, where the cache can be written.

    Raises ModelError for a file that cannot be read.
    """
    facts = path.stat()
    now = (facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino)
    room = cache / "digests"
    try:
        kept = own_room(room) / f"{digest_json(str(path.resolve()))[:32]}.json"
    except OSError:
        return _digest(path, now)
    try:
        require_own(kept.lstat(), kept)
        found = read_json(kept)
        if found["file"] == list(now):
            return str(found["sha256"])
    except (OSError, RunError, LookupError, TypeError):
        pass
    digest = _digest(path, now)
    with contextlib.suppress(StorageError):
        write_json(kept, {"file": now, "sha256": digest})
    return digest


@lru_cache
def _digest(path: Path, facts: Facts) -> str:
    """SHA-256 of a file with these facts, read once in this process."""
    size = facts[0]
    progress = shown_progress() if size >= _LONG else Silent()
    with progress.task(f"reading {path.name}", size / 1e6, "MB") as task:
        try:
            return digest_file(path, task)
        except OSError as error:
            raise ModelError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
