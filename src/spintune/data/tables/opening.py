"""Opens whatever a user names as data."""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.resources
from collections.abc import Callable, Iterator
from importlib.resources.abc import Traversable
from pathlib import Path

from spintune.data.file_rows import FileRow
from spintune.data.tables.arrow_rows import ARROW, arrow_table, parquet_table
from spintune.data.tables.cells import DELIMITERS, delimited_table, sheet_table
from spintune.data.tables.content import DataFile
from spintune.data.tables.hub import HUB_ID, hub_table, is_saved, refuse_address, saved_table
from spintune.data.tables.json_rows import json_table, lines_table
from spintune.data.tables.places import FILE_SUFFIXES, KINDS, Note, files_of_folder, files_of_pattern, is_pattern
from spintune.data.tables.table import RowTable, TableOpener, either
from spintune.errors import DataError, RowError
from spintune.hub import missing_path
from spintune.storage import digest_file, digest_json

_BUILTIN = "builtin:"
_STREAM_IS_FOR = "stream is for hub data sets; files are read a piece at a time without it"
_CONFIG_IS_FOR = "config is for hub data sets and .xlsx files"

_READERS: dict[str, Callable[[DataFile], RowTable]] = {
    ".json": json_table,
    ".jsonl": json_table,
    ".ndjson": json_table,
    ".parquet": parquet_table,
    **dict.fromkeys(DELIMITERS, delimited_table),
    **dict.fromkeys(ARROW, arrow_table),
}


def _no_note(text: str) -> None:
    pass


def open_tables(
    path: str,
    split: str,
    config: str | None = None,
    note: Note = _no_note,
    row_keys: frozenset[str] = frozenset(),
    stream: bool = False,
) -> list[TableOpener]:
    """What opens the tables of a source, one for each file; built-in data (``builtin:NAME``) and hub data are one.

    Args:
        split: of a hub data set, a folder of ``save_to_disk``, or a folder whose file names tell splits.
        config: of a hub data set, or the sheet of an .xlsx file.
        note: receives a line about files that are passed over.
        row_keys: keys that rows are known to have; a JSON document with one of them is a row.
        stream: whether a hub data set is read where it is, and not downloaded before.

    Raises DataError for a source that does not exist or is of no known kind. A table that cannot be read raises it when
    it is opened, and one that is damaged further on when the reading comes there.
    """
    refuse_address(path)
    if is_builtin(path):
        if config is not None or stream:
            raise DataError(f"{path}: {_STREAM_IS_FOR if stream else _CONFIG_IS_FOR}; leave it out")
        return [functools.partial(json_table, DataFile(path, _builtin(path), row_keys))]
    file, there, is_folder = _look(path)
    if there and not is_folder and not stream:
        return [functools.partial(_file_table, DataFile(path, file, row_keys), config)]
    if not there and _may_be_hub_id(path):
        if reason := missing_path(path):
            raise DataError(f"data {path} does not exist: {reason}")
        return [functools.partial(hub_table, path, split, config, stream)]
    if stream and (there or is_pattern(path)):
        raise DataError(f"{path}: {_STREAM_IS_FOR}; leave it out")
    if not there and not is_pattern(path):
        raise DataError(f"data file {path} does not exist; {_suggestion(file)}")
    if config is not None:
        raise DataError(f"{path}: {_CONFIG_IS_FOR}; leave it out, or give the subfolder that you mean")
    if is_folder and is_saved(file):
        return [functools.partial(saved_table, path, file, split)]
    files = files_of_folder(path, split, note) if is_folder else files_of_pattern(path, note)
    return [functools.partial(_file_table, DataFile(str(one), one, row_keys), None) for one in files]


def is_builtin(path: str) -> bool:
    """Whether a source is data that comes with this package."""
    return path.startswith(_BUILTIN)


def rows_of(path: str | Path, split: str = "train") -> Iterator[FileRow]:
    """The rows of a source, whatever their keys.

    Raises DataError for a source that cannot be read or is empty, and for the first damaged row.
    """
    for row in rows_or_errors(path, split):
        if isinstance(row, RowError):
            raise row
        yield row


def rows_or_errors(path: str | Path, split: str = "train") -> Iterator[FileRow | RowError]:
    """As :func:`rows_of`, with the error in place of each damaged row."""
    empty = True
    for open_table in open_tables(str(path), split):
        table = open_table()
        for number, value in table.rows(None):
            empty = False
            try:
                yield table.row(number, value)
            except RowError as error:
                yield error
    if empty:
        raise empty_source(str(path))


def line_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a file of JSON lines, which is never taken for one document. Raises DataError."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    table = lines_table(DataFile(str(path), path), 0)
    for number, value in table.rows(None):
        yield table.row(number, value)


def empty_source(path: str) -> DataError:
    """The error about a source without rows."""
    return DataError(f"{path}: empty; give a file with at least one row")


def source_digest(path: str, split: str = "train") -> str | None:
    """SHA-256 of a source's content; None for a hub data set, which its name and revision identify.

    Of a folder or pattern it covers the names and contents of all files that are read.
    """
    if is_builtin(path):
        return hashlib.sha256(_builtin(path).read_bytes()).hexdigest()
    file, there, is_folder = _look(path)
    if file.is_file():
        return digest_file(file)
    if is_folder:
        files = sorted(file.rglob("*.arrow")) if is_saved(file) else files_of_folder(path, split, _no_note)
        return digest_json([[one.relative_to(file).as_posix(), digest_file(one)] for one in files])
    if not there and is_pattern(path):
        return digest_json([[one.as_posix(), digest_file(one)] for one in files_of_pattern(path, _no_note)])
    return None


def _look(path: str) -> tuple[Path, bool, bool]:
    """Where a path leads, whether anything is there, and whether that is a folder."""
    try:
        file = Path(path).expanduser()
        return file, file.exists(), file.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # no permission for the folder, a name too long, an unknown ~
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path}: cannot be read ({reason}); check the path") from error


def _file_table(file: DataFile, sheet: str | None) -> RowTable:
    if file.kind not in KINDS:
        name = file.compression or file.kind or file.file.name
        raise DataError(f"{file.path}: '{name}' is not a supported data file; use {either(KINDS)}")
    file.check()
    if file.kind == ".xlsx":
        return sheet_table(file, sheet)
    if sheet is not None:
        raise DataError(f"{file.path}: {_CONFIG_IS_FOR}; leave it out")
    return _READERS[file.kind](file)


def _may_be_hub_id(path: str) -> bool:
    return HUB_ID.fullmatch(path) is not None and Path(path).suffix.lower() not in FILE_SUFFIXES


def _builtin(path: str) -> Traversable:
    folder = importlib.resources.files("spintune.data") / "builtin"
    known = {_BUILTIN + file.name.removesuffix(".jsonl"): file for file in folder.iterdir()}
    if path not in known:
        raise DataError(f"there is no built-in data {path}; use one of: {', '.join(sorted(known))}")
    return known[path]


def _suggestion(file: Path) -> str:
    if not file.parent.is_dir():
        return f"its folder {file.parent} does not exist either; check the path"
    names = sorted(other.name for other in file.parent.iterdir() if other.is_file())
    close = difflib.get_close_matches(file.name, names, 1)
    return f"did you mean {file.with_name(close[0])}?" if close else "check the path"
