"""The one module that publishes files: a file or folder is complete or absent, also after a power cut.

A writer works on a temporary sibling, fsyncs it, renames it over the final name, and fsyncs the parent folder.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from spintune.errors import RunError, StorageError

_TEMPORARY = ".partial"


def cache_folder() -> Path:
    """Where what can be made again is kept: models, tokens, compiled code."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spintune"


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the operating system's refusals to write into one clear line."""
    try:
        yield
    except OSError as error:
        raise StorageError(_explain(path, error)) from error
    except Exception as error:  # safetensors and tokenizers report a full disk as exceptions of their own
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
        errno.EEXIST: "a file stands where a folder is needed; choose another out=",
    }.get(error.errno or 0, f"cannot be written ({error.strerror or error}); choose another out=")
    return f"{path}: {advice}"


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Opens a binary file that appears under ``path`` only when the block ends without an exception."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            fsync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Gives a temporary folder that becomes ``path`` (replacing it) only when the block ends without an exception."""
    temporary = path.with_name(path.name + _TEMPORARY)
    with storage_errors(path):
        if temporary.exists():
            shutil.rmtree(temporary)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            for name in [temporary, *temporary.rglob("*")]:
                _fsync(name)
            _replace_folder(temporary, path)
            fsync_folder(path.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def _replace_folder(temporary: Path, path: Path) -> None:
    """Renames a folder over another. rename cannot replace one that is not empty, so the old one steps aside first."""
    if not path.exists():
        temporary.rename(path)
        return
    aside = path.with_name(path.name + ".old" + _TEMPORARY)
    if aside.exists():
        shutil.rmtree(aside)
    path.rename(aside)
    try:
        temporary.rename(path)
    except BaseException:
        aside.rename(path)
        raise
    shutil.rmtree(aside, ignore_errors=True)  # the new folder stands; a rest is removed with the next start


def fsync_folder(path: Path) -> None:
    """Makes the names in a folder durable."""
    _fsync(path)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, value: Any) -> None:
    """Writes one indented JSON document atomically."""
    with atomic_file(path) as file:
        file.write(_indented(value))


def write_json_if_changed(path: Path, value: Any) -> None:
    """Writes one JSON document, unless the file holds it already: who watches the file sees only what is new."""
    if not path.is_file() or path.read_bytes() != _indented(value):
        write_json(path, value)


def _indented(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n"


def read_json(path: Path) -> Any:
    """Reads a JSON document of the run folder. Raises RunError when it is damaged."""
    try:
        return orjson.loads(path.read_bytes())
    except orjson.JSONDecodeError as error:
        raise RunError(f"{path}: damaged ({error}); delete it and run again") from error


def canonical_json(value: object) -> bytes:
    """A value's JSON without white space, keys sorted: equal for equal values."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def digest_json(value: object) -> str:
    """SHA-256 of :func:`canonical_json`."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_folder(path: Path) -> dict[str, str]:
    """SHA-256 of each file below a folder, by relative name."""
    return {str(file.relative_to(path)): digest_file(file) for file in sorted(path.rglob("*")) if file.is_file()}


def remove_partials(folder: Path) -> None:
    """Deletes what a killed process left unfinished below ``folder``."""
    for leftover in sorted(folder.rglob("*" + _TEMPORARY)):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)
