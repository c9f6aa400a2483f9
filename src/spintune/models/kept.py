"""Models in the cache: folders that were unpacked or converted once, each with the digests of its files.

A folder is used only when this user or root alone can have written it, and its files are those that were written. A
file with the size, times and inode that it had when it was last hashed counts as unchanged; any other is hashed again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
from collections.abc import Callable
from pathlib import Path

from spintune.cached_folders import cached_folder, own_room, require_own
from spintune.errors import RunError, StorageError
from spintune.storage import digest_file, is_temporary, read_json, storage_errors, write_json
from spintune.typed_json import JsonObject

log = logging.getLogger(__name__)

RECORD = "spintune-digests.json"
"""What a folder was made from, and the digest of each of its files; it is written last."""
CHECKED = "spintune-checked.json"
"""Size, times and inode of each file when its digest was last found right."""
_OWN = {RECORD, CHECKED}

_checked: dict[Path, JsonObject] = {}


def kept_model(room: Path, name: str, source: JsonObject, make: Callable[[Path], None]) -> Path:
    """The folder ``name`` in ``room``. It is made if there is none, and made again, with a warning, if it has changed.

    Args:
        source: what the model is made from; a folder made from something else is not used.
        make: writes the model into a folder that exists and is empty.

    Raises StorageError, and whatever ``make`` raises.
    """
    with storage_errors(room):
        folder = own_room(room) / name
    if os.path.lexists(folder):
        flaw = find_flaw(folder, source)
        if flaw is None:
            return folder
        log.warning("%s %s; it is made again", folder, flaw)
    with cached_folder(folder, lambda found: find_flaw(found, source) is None) as temporary:
        make(temporary)
        files = {file.name: digest_file(file) for file in sorted(temporary.iterdir())}
        write_json(temporary / RECORD, {"source": source, "files": files})
    if flaw := find_flaw(folder, source):
        raise StorageError(f"{folder} {flaw} as soon as it was written; set XDG_CACHE_HOME to another folder")
    return folder


def find_flaw(folder: Path, source: JsonObject) -> str | None:
    """Why a folder cannot be used, in words that follow its name; None when it can."""
    try:
        require_own(folder.lstat(), folder)
        if not (folder / RECORD).exists():
            return "has no digests of its files"
        record = read_json(folder / RECORD)
        # another process may be writing that it has checked
        facts = {file.name: file.lstat() for file in folder.iterdir() if not is_temporary(file)}
        if not stat.S_ISDIR(folder.lstat().st_mode) or not all(stat.S_ISREG(one.st_mode) for one in facts.values()):
            return "holds links or folders"
        for name, one in facts.items():
            require_own(one, folder / name)
        if record.get("source") != source:
            return "was made from something else"
        digests = record["files"]
        if set(facts) - _OWN != set(digests):
            return "holds other files than were written"
        return _find_change(folder, digests, facts)
    except PermissionError as error:
        return "may have been written by somebody else" if error.errno is None else f"cannot be read ({error.strerror})"
    except (OSError, RunError, LookupError, TypeError, AttributeError) as error:
        return f"is damaged ({type(error).__name__})"


def _find_change(folder: Path, digests: JsonObject, facts: dict[str, os.stat_result]) -> str | None:
    """The change of a file against its digest, in words that follow the folder's name."""
    now: JsonObject = {
        name: [one.st_size, one.st_mtime_ns, one.st_ctime_ns, one.st_ino]
        for name, one in sorted(facts.items())
        if name not in _OWN
    }
    if now in (_checked.get(folder), _read_checked(folder)):
        return None
    for name, digest in digests.items():
        if digest_file(folder / name) != digest:
            return f"has changed ({name})"
    _checked[folder] = now
    with contextlib.suppress(StorageError):  # a folder of root's is hashed once in each process
        write_json(folder / CHECKED, now)
        (folder / CHECKED).chmod(0o644 & stat.S_IMODE(facts[RECORD].st_mode))
    return None


def _read_checked(folder: Path) -> JsonObject | None:
    try:
        return read_json(folder / CHECKED)
    except (OSError, RunError):
        return None
