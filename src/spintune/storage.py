"""Writes files and folders so that each is complete or absent, also after a power failure.

A writer works on a temporary sibling, syncs it to disk, renames it to the final name, and syncs the parent folder. The
sibling's name is random and must be new, so in a folder that others may write nobody can put a link in its place.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import logging
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import orjson

from spintune import portable
from spintune.errors import RunError, StorageError
from spintune.portable import sync
from spintune.progress import ProgressTask

if TYPE_CHECKING:
    from spintune.typed_json import JsonObject

log = logging.getLogger(__name__)

_KEY_END = re.compile(rb'(?<!\\)"[ \t\n\r]*:')

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.spintune-partial", re.DOTALL)


def cache_folder() -> Path:
    """The folder of what can be computed or downloaded again: models, tokens, compiled code."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spintune"


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's errors while writing into StorageError, one clear line."""
    try:
        yield
    except OSError as error:
        raise StorageError(_explain(path, error)) from error
    except Exception as error:  # safetensors and tokenizers wrap a full disk in their own exceptions
        found = re.search(r"\(os error (\d+)\)", str(error))
        if not found:
            raise
        code = int(found[1])
        raise StorageError(_explain(path, OSError(code, os.strerror(code)))) from error


def _explain(path: Path, error: OSError) -> str:
    advice = {
        errno.ENOSPC: "the disk is full; free some space or choose another out=",
        errno.EDQUOT: "the disk quota is used up; free some space or choose another out=",
        errno.EFBIG: "a file would be larger than allowed here (ulimit -f); raise the limit or choose another out=",
        errno.EROFS: "the file system is read-only; choose another out=",
        errno.EACCES: "no permission to write here; choose another out=",
        errno.EPERM: "no permission to write here; choose another out=",
        errno.ENOTDIR: "a part of this path is a file, not a folder; choose another out=",
        errno.EEXIST: "a file exists where a folder is needed; choose another out=",
    }.get(error.errno or 0, f"cannot be written ({error.strerror or error}); choose another out=")
    return f"{path}: {advice}"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a binary file that appears at ``path`` only if the block ends without an exception."""
    temporary = temporary_sibling(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open_unlinked(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                _hold(file.fileno())
                yield file
                file.flush()
                os.fsync(file.fileno())
                if portable.RENAMES_OPEN_FILES:  # it is locked until it has its name
                    temporary.replace(path)
            if not portable.RENAMES_OPEN_FILES:
                temporary.replace(path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def _replace_folder(temporary: Path, path: Path) -> None:
    """Renames a folder over another. rename cannot replace a folder with files in it, so that one is moved first."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = temporary_sibling(path)
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)  # what remains is removed at the next start


@contextlib.contextmanager
def atomic_folder(path: Path, place: Callable[[Path, Path], None] = _replace_folder) -> Iterator[Path]:
    """Yields a temporary folder that replaces ``path`` only if the block ends without an exception.

    Args:
        place: puts the temporary folder at ``path``.
    """
    temporary = temporary_sibling(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
        handle = portable.open_folder(temporary)
        try:
            if handle is not None:
                _hold(handle)
            yield temporary
            _follow_umask(temporary)
            for name in [temporary, *temporary.rglob("*")]:
                sync(name)
            place(temporary, path)
            sync(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        finally:
            if handle is not None:
                os.close(handle)


def temporary_sibling(path: Path) -> Path:
    """A new name beside ``path``. It is cut to the 255 bytes of a file name, and known to :func:`remove_partials`."""
    return path.with_name(f"{_temporary_start(path)}.{secrets.token_hex(8)}.spintune-partial")


def _temporary_start(path: Path) -> str:
    return "." + os.fsdecode(os.fsencode(path.name)[:200])


def _hold(handle: int) -> None:
    """Locks an unfinished file or folder while this process has it open: :func:`remove_abandoned` leaves it alone."""
    with contextlib.suppress(OSError):  # a file system without locks
        portable.try_lock(handle)


def remove_abandoned(path: Path) -> None:
    """Deletes what killed processes left beside ``path`` of an unfinished file or folder of this name.

    What a living process writes is locked and stays, and everything on a file system without locks.
    """
    with contextlib.suppress(OSError):
        for leftover in [one for one in path.parent.iterdir() if is_temporary(one)]:
            if leftover.name.rsplit(".", 2)[0] == _temporary_start(path) and _is_abandoned(leftover):
                _remove(leftover)


def _is_abandoned(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDONLY | portable.NO_WAIT | portable.NO_LINK)
    except OSError:
        return False
    try:
        portable.try_lock(handle)
    except OSError:
        return False
    finally:
        os.close(handle)
    return True


def is_temporary(path: Path) -> bool:
    """Whether ``path`` has a name that this module gives to unfinished files and folders."""
    return _TEMPORARY.fullmatch(path.name) is not None


def is_note(name: str) -> bool:
    """Whether a file of a model folder is for people, not for loading: a README, a license, a picture, a dot file."""
    path = Path(name)
    pictures_and_pages = (".md", ".rst", ".pdf", ".png", ".jpg", ".jpeg", ".gif", ".svg", ".webp")
    texts = ("README", "LICENSE", "NOTICE")
    return name.startswith(".") or path.suffix.lower() in pictures_and_pages or path.stem.upper() in texts


def open_unlinked(path: Path, flags: int) -> BinaryIO:
    """Opens a file for writing, with permissions by the umask. Raises OSError when ``path`` is a symbolic link."""
    mode = "ab" if flags & os.O_APPEND else "wb"
    return os.fdopen(os.open(path, flags | portable.NO_LINK, 0o666), mode)  # type: ignore[return-value]


def _follow_umask(folder: Path) -> None:
    """Gives everything in a new folder the permissions of the folder itself; safetensors makes its files private."""
    mode = stat.S_IMODE(folder.stat().st_mode)
    for path in folder.rglob("*"):
        path.chmod(mode if path.is_dir() else mode & 0o666)


def write_json(path: Path, value: object) -> None:
    """Writes one indented JSON document; the file is complete or absent."""
    with atomic_file(path) as file:
        file.write(_indented(value))


def write_json_if_changed(path: Path, value: object) -> None:
    """Like :func:`write_json`, but leaves a file with the same content untouched, with its time of change."""
    if not path.is_file() or path.read_bytes() != _indented(value):
        write_json(path, value)


def _indented(value: object) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def read_json(path: Path) -> JsonObject:
    """Reads the JSON object in a file of a run folder. Raises RunError when it is damaged, or has a key twice."""
    try:
        value = orjson.loads(data := path.read_bytes())
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); mend it or run again") from error
    except orjson.JSONDecodeError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and run again") from error
    if not isinstance(value, dict):
        raise RunError(f"{path}: damaged (no JSON object); delete it and run again")
    if (key := repeated_key(data, value)) is not None:
        raise RunError(f"{path}: damaged (the key {key!r:.60} occurs twice in an object); delete it and run again")
    return value


def repeated_key(text: bytes, value: object) -> str | None:
    """A key that an object in JSON text has twice; None where there is none. ``value`` is the text as orjson reads it.

    orjson, like most readers, keeps the last of both and says nothing. Every key has a colon of its own, and but for
    escaped quotes, only keys end in a quote before a colon. Text with as many as ``value`` has keys needs no slower
    look.
    """
    colons = text.count(b":")
    if isinstance(value, dict) and colons == len(value):  # most rows
        return None
    keys = _count_keys(value)
    if colons == keys or (b'\\\\"' not in text and len(_KEY_END.findall(text)) == keys):
        return None
    repeated: list[str] = []

    def look(pairs: list[tuple[str, object]]) -> None:
        names = [name for name, _ in pairs]
        repeated.extend(name for name in dict.fromkeys(names) if names.count(name) > 1)

    with contextlib.suppress(RecursionError):  # deeper than anybody writes by hand
        json.loads(text, object_pairs_hook=look)
    return repeated[0] if repeated else None


def _count_keys(value: object) -> int:
    count, nested = 0, [value]
    for one in nested:  # which grows
        if isinstance(one, dict):
            count += len(one)
            for item in one.values():
                if item.__class__ is dict or item.__class__ is list:
                    nested.append(item)
        elif isinstance(one, list):
            nested += [item for item in one if item.__class__ is dict or item.__class__ is list]
    return count


def write_json_lines(path: Path, rows: Iterable[object]) -> None:
    """Writes one line of JSON for each row, atomically. A row is a plain value or a dataclass."""
    with atomic_file(path) as file:
        for row in rows:
            file.write(json_line(row))


def json_line(row: object) -> bytes:
    """A plain value or a dataclass as one line of JSON.

    Of a dataclass it writes every attribute whose name does not begin with "_". Where a class omits or renames fields,
    pass ``typed_json.to_json(record)``.
    """
    return orjson.dumps(row) + b"\n"


def read_json_lines(path: Path) -> list[JsonObject]:
    """Reads the rows of a file that a run may still be writing: a last line without its newline is left out.

    Raises RunError, which names ``path:line``, for a damaged line.
    """
    rows = []
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run the recipe again") from error
    for number, line in enumerate(lines, 1):
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise RunError(f"{path}:{number}: damaged ({error}); run the recipe again") from error
    return rows


def canonical_json(value: object) -> bytes:
    """A value's JSON without white space, keys sorted: equal for equal values."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest_json(value: object) -> str:
    """SHA-256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_file(path: Path, task: ProgressTask | None = None) -> str:
    """SHA-256 of a file's bytes. A task advances by megabytes, for a file that may be large."""
    with path.open("rb") as file:
        if task is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        sha = hashlib.sha256()
        while block := file.read(1 << 20):
            sha.update(block)
            task.advance(len(block) / 1e6)
    return sha.hexdigest()


def remove_folder(folder: Path) -> None:
    """Removes a folder that nothing needs any more, if it exists. One that stays, on a disk with faults, is told."""
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():  # a fault may have passed
        shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        log.warning("%s could not be removed; nothing uses it, so delete it when you can", folder)


def remove_partials(folder: Path) -> None:
    """Deletes the unfinished files and folders that a killed process left below ``folder``.

    Only names of this module's own making are touched, and links are not followed.
    """
    for leftover in [path for path in folder.rglob(".*.spintune-partial") if is_temporary(path)]:
        _remove(leftover)


def _remove(leftover: Path) -> None:
    if leftover.is_dir() and not leftover.is_symlink():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink(missing_ok=True)
