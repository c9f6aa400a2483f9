"""Rows of JSON documents and of JSON lines."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Iterator, Sequence

import orjson

from spintune.data.file_rows import kind_of
from spintune.data.formats import recognize
from spintune.data.tables.content import MAX_ROW, DataFile
from spintune.data.tables.table import Numbered, RowTable
from spintune.errors import DataError, RowError
from spintune.storage import repeated_key

JSON_LINES = (".jsonl", ".ndjson")


def json_table(file: DataFile) -> RowTable:
    """One JSON document or JSON lines, by the bytes and not by the file's name.

    If one of the first two lines is complete JSON and more lines follow, the file holds JSON lines, which are read one
    by one. A document has to be in memory as a whole.
    """
    lines = _lines(file)
    head = list(itertools.islice(lines, 2))
    count = len(head) + sum(1 for _ in lines)
    if not head:
        return RowTable(file.path, lambda keys: iter(()), 0)
    number, first = head[0]
    if count > 1 and (_is_json(first) or (first.lstrip().startswith(b"{") and _is_object(head[1][1]))):
        return lines_table(file, count)
    data = file.read().removeprefix(codecs.BOM_UTF8)
    _check_utf8(file.path, data)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # damaged either way: its name and first byte decide whose line number helps
        if file.kind in JSON_LINES and not first.lstrip().startswith(b"["):
            return lines_table(file, count)
        raise DataError(_invalid_json(f"{file.path}:{error.lineno}", error)) from error
    if (key := repeated_key(data, document)) is not None:
        raise _ambiguous(file.path, key)
    if isinstance(document, dict) and _is_row(document, count == 1 and file.kind in JSON_LINES, file.row_keys):
        return RowTable(file.path, lambda keys: iter([(number, document)]), 1, lines=True)
    return listed_table(file.path, _rows_in(file.path, document))


def listed_table(path: str, rows: Sequence[object]) -> RowTable:
    """Rows that are in memory."""
    return RowTable(path, lambda keys: enumerate(rows, 1), len(rows))


def lines_table(file: DataFile, count: int) -> RowTable:
    """A file of ``count`` JSON lines."""

    def rows(keys: frozenset[str] | None) -> Iterator[Numbered]:
        for number, line in _lines(file):
            if len(line) > MAX_ROW:
                yield number, too_large(f"{file.path}:{number}")
                continue
            try:
                value = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                yield number, _damaged(f"{file.path}:{number}", line, error)
            else:
                key = repeated_key(line, value)
                yield number, value if key is None else _ambiguous(f"{file.path}:{number}", key)

    return RowTable(file.path, rows, count, lines=True)


def _lines(file: DataFile) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank, with their numbers. Of one that is too long comes the beginning, also too long."""
    with file.open() as stream:
        large = file.may_exceed(MAX_ROW)
        lines = iter(lambda: stream.readline(MAX_ROW + 1), b"") if large else stream
        for number, line in enumerate(lines, 1):
            rest = line
            while large and len(rest) > MAX_ROW and not rest.endswith(b"\n"):
                rest = stream.readline(MAX_ROW + 1)
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text and not text.isspace():
                yield number, text


def too_large(where: str) -> RowError:
    """The error about a row that is too long to be one."""
    return RowError(f"{where}: a row of more than {MAX_ROW // 1_000_000} MB; divide or delete it", "too_large")


def _is_row(document: dict[str, object], alone_on_a_line: bool, row_keys: frozenset[str]) -> bool:
    """Whether an object is a row itself, and not what holds the list of rows.

    It is with a key that a recipe's columns name. In a file of JSON lines it is, even if a value is a list of objects,
    unless there is nothing else in it.
    """
    only_a_list = len(document) == 1 and all(map(_is_list_of_objects, document.values()))
    known = not row_keys.isdisjoint(document) or recognize([document]) is not None
    return known or (alone_on_a_line and not only_a_list)


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


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _is_object(text: bytes) -> bool:
    return text.lstrip().startswith(b"{") and _is_json(text)


def _ambiguous(where: str, key: str) -> RowError:
    text = f"{where}: the key {key!r:.60} occurs twice in an object, and only one of its values can be read; keep one"
    return RowError(text, "repeated_key")


def _damaged(where: str, line: bytes, error: orjson.JSONDecodeError) -> RowError:
    if (byte := _undecodable(line)) is not None:
        return RowError(not_utf8(where, line[byte]), "not_utf8")
    return RowError(_invalid_json(where, error), "invalid_json")


def _invalid_json(where: str, error: orjson.JSONDecodeError) -> str:
    return f"{where}: not valid JSON ({error.msg}, column {error.colno}); fix or delete the row"


def not_utf8(where: str, byte: int) -> str:
    """The message about a byte that no UTF-8 text has."""
    return f"{where}: not UTF-8 (byte 0x{byte:02x}); save the file as UTF-8"


def _undecodable(data: bytes) -> int | None:
    """The place of the first byte that is not UTF-8."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start
    return None


def _check_utf8(path: str, data: bytes) -> None:
    if (byte := _undecodable(data)) is not None:
        line = data.count(b"\n", 0, byte) + 1
        raise DataError(not_utf8(f"{path}:{line}", data[byte]))
