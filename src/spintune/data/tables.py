"""Numbered rows of JSON, JSON lines and parquet files, of built-in data, and of data sets on the Hugging Face hub."""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.resources
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path

import orjson

from spintune.data.file_rows import FileRow, kind_of
from spintune.data.formats import recognize
from spintune.errors import DataError
from spintune.storage import digest_file

_BUILTIN = "builtin:"
_SUFFIXES = (".json", ".jsonl", ".parquet")
# A missing `data/train.csv` is a file that does not exist, not a hub data set of that name.
_FILE_SUFFIXES = (*_SUFFIXES, ".arrow", ".csv", ".gz", ".ndjson", ".tsv", ".txt", ".xlsx", ".yaml", ".zip", ".zst")
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_BATCH = 1000  # rows of a parquet file that are decoded together

Numbered = tuple[int, object]
"""A row's number, from 1, and its value. In JSON lines the number is that of the line."""


@dataclass(frozen=True)
class RowTable:
    """The rows of a source, to be read once.

    Attributes:
        path: what the user named.
        total: how many rows there are.
        lines: whether numbers are lines of the file.
    """

    path: str
    rows: Iterator[Numbered]
    total: int
    lines: bool = False

    def row(self, number: int, value: object) -> FileRow:
        """A row with its place. Raises DataError when it is not an object."""
        return FileRow.of(value, f"{self.path}:{number}" if self.lines else f"{self.path}: row {number}", number)


def open_table(path: str, split: str) -> RowTable:
    """The rows of a file, of built-in data (``builtin:NAME``) or of a hub data set, at least one.

    Raises DataError for a source that does not exist, cannot be read, or is empty. Damaged rows raise it when they are
    reached.
    """
    file = Path(path).expanduser()
    hub_id = _HUB_ID.fullmatch(path)
    if path.startswith(_BUILTIN):
        table = _json_table(path, _builtin(path))
    elif file.is_dir():
        raise DataError(f"{path} is a folder; name a {_either(_SUFFIXES)} file in it")
    elif file.exists():
        table = _file_table(path, file)
    elif hub_id and file.suffix.lower() not in _FILE_SUFFIXES:
        table = _hub_table(path, hub_id["name"], hub_id["revision"], split)
    else:
        raise DataError(f"data file {path} does not exist; {_suggestion(file)}")
    if not table.total:
        raise DataError(f"{path}: empty; give a file with at least one row")
    return table


def rows_of(path: str | Path, split: str = "train") -> Iterator[FileRow]:
    """The rows of a source, whatever their keys. Raises DataError as :func:`open_table` does."""
    table = open_table(str(path), split)
    for number, value in table.rows:
        yield table.row(number, value)


def line_rows(path: Path) -> Iterator[FileRow]:
    """The rows of a file of JSON lines, which is never taken for one document. Raises DataError."""
    try:
        path.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    table = _lines_table(str(path), path, 0)
    for number, value in table.rows:
        yield table.row(number, value)


def source_digest(path: str) -> str | None:
    """SHA-256 of a source's content; None for a hub data set, which its name and revision identify."""
    file = Path(path).expanduser()
    if path.startswith(_BUILTIN):
        return hashlib.sha256(_builtin(path).read_bytes()).hexdigest()
    return digest_file(file) if file.is_file() else None


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


def _file_table(path: str, file: Path) -> RowTable:
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path}: '{suffix or file.name}' is not a supported data file; use {_either(_SUFFIXES)}")
    try:
        file.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return _parquet_table(path, file) if suffix == ".parquet" else _json_table(path, file)


def _json_table(path: str, file: Path | Traversable) -> RowTable:
    """One JSON document or JSON lines, by the bytes and not by the file's name.

    If the first line is complete JSON and more lines follow, the file holds JSON lines, which are read one by one. A
    document has to be in memory as a whole.
    """
    lines = _lines(file)
    first_number, first = next(lines, (0, b""))
    count = sum(1 for _ in lines) + (first_number > 0)
    if not count:
        return RowTable(path, iter(()), 0)
    if count > 1 and _is_json(first):
        return _lines_table(path, file, count)
    data = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    _check_utf8(path, data)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # damaged either way: its name and first byte decide whose line number helps
        if path.lower().endswith(".jsonl") and not first.lstrip().startswith(b"["):
            return _lines_table(path, file, count)
        raise _invalid_json(f"{path}:{error.lineno}", error) from error
    if isinstance(document, dict) and recognize([document]):
        return RowTable(path, iter([(first_number, document)]), 1, lines=True)
    rows = _rows_in(path, document)
    return RowTable(path, enumerate(rows, 1), len(rows))


def _lines(file: Path | Traversable) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text


def _rows_in(path: str, document: object) -> list[object]:
    """The list that a JSON document is, or the one list of objects in it; else the document is the only row."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds {kind_of(document)}, not rows; give a list of objects")
    lists = {key: value for key, value in document.items() if _is_list_of_objects(value)}
    if len(lists) > 1:
        raise DataError(f"{path}: holds several lists ({', '.join(lists)}); put each in a file of its own")
    return next(iter(lists.values()), [document])


def _is_list_of_objects(value: object) -> bool:
    """One object is enough: the row's own error will say what else is in the list."""
    return isinstance(value, list) and (not value or any(isinstance(item, dict) for item in value))


def _lines_table(path: str, file: Path | Traversable, count: int) -> RowTable:
    def rows() -> Iterator[Numbered]:
        for number, line in _lines(file):
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                _check_utf8(path, line, number)
                raise _invalid_json(f"{path}:{number}", error) from error

    return RowTable(path, rows(), count, lines=True)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _invalid_json(where: str, error: orjson.JSONDecodeError) -> DataError:
    return DataError(f"{where}: not valid JSON ({error.msg}, column {error.colno}); fix or delete the row")


def _check_utf8(path: str, data: bytes, first_line: int = 1) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from error


def _parquet_table(path: str, file: Path) -> RowTable:
    import pyarrow
    import pyarrow.parquet

    def unreadable(error: Exception) -> DataError:
        return DataError(f"{path}: not a readable parquet file ({_first_line(error)}); write it again")

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(error) from error

    def rows() -> Iterator[object]:
        try:
            for batch in table.iter_batches(_BATCH):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(error) from error

    return RowTable(path, enumerate(rows(), 1), table.metadata.num_rows)


def _hub_table(path: str, name: str, revision: str | None, split: str) -> RowTable:
    import datasets

    try:
        data = datasets.load_dataset(name, revision=revision, split=split)
    except Exception as error:  # a boundary: the hub client raises dozens of unrelated types
        raise DataError(
            f"{path}: no such local file, and the hub did not give split '{split}' of a data set of that name "
            f"({type(error).__name__}: {_first_line(error)}); check the name and the network, or download a file of it"
        ) from error
    return RowTable(path, enumerate(data, 1), len(data))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".:; ")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
