"""Rows of text cells under a header: comma- and tab-separated files, and spreadsheets. An empty cell is no key."""

from __future__ import annotations

import codecs
import csv
import datetime
import io
import zipfile
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import IO

from spintune.data.tables.content import MAX_ROW, DataFile
from spintune.data.tables.json_rows import not_utf8
from spintune.data.tables.table import Numbered, RowTable, first_line
from spintune.errors import DataError, MissingExtraError, RowError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_OTHER_DELIMITERS = ";\t"  # of spreadsheets that use the comma in numbers

_MAX_SHEETS = 1_000_000_000  # bytes of all sheets, decompressed
_MAX_SHEET_ROWS = 1_048_576  # of Excel

Cells = list[str]


class _Lines:
    """The decoded lines of a file. Where bytes are not UTF-8 it goes on, and remembers what to say about it."""

    def __init__(self, file: DataFile, stream: IO[bytes]) -> None:
        self._file, self._stream = file, stream
        self.damage: RowError | None = None

    def __iter__(self) -> Iterator[str]:
        for number, line in enumerate(self._stream, 1):
            data = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            try:
                text = data.decode()
            except UnicodeDecodeError as error:
                where = f"{self._file.path}:{number}"
                self.damage = self.damage or RowError(not_utf8(where, data[error.start]), "not_utf8")
                text = data.decode(errors="replace")
            yield text


def delimited_table(file: DataFile) -> RowTable:
    """A file of comma- or tab-separated cells, whose first row names the columns.

    A number is that of the line where a row begins; a quoted cell may hold line breaks. Raises DataError for a file
    without a usable header.
    """
    delimiter = _delimiter(file)
    number, header = next(_records(file, delimiter), (0, []))
    if isinstance(header, RowError):
        raise DataError(str(header))
    columns = _columns(f"{file.path}:{number}", header)

    def rows(keys: frozenset[str] | None) -> Iterator[Numbered]:
        for number, cells in islice(_records(file, delimiter), 1, None):
            yield number, cells if isinstance(cells, RowError) else _row(f"{file.path}:{number}", columns, cells)

    total = sum(1 for _ in islice(_records(file, delimiter), 1, None))
    return RowTable(file.path, rows, total, lines=True, columns=tuple(filter(None, columns)))


def _delimiter(file: DataFile) -> str:
    """That of the suffix, unless the first line has none of it and has another."""
    usual = DELIMITERS[file.kind]
    with file.open() as stream:
        head = stream.readline()
    return next((one for one in (usual, *_OTHER_DELIMITERS) if one.encode() in head), usual)


def _records(file: DataFile, delimiter: str) -> Iterator[tuple[int, Cells | RowError]]:
    """The rows that are not blank, with their first lines.

    Raises DataError for a quote that is never closed: all that follows would be one cell.
    """
    csv.field_size_limit(MAX_ROW)  # the usual limit of 131,072 characters belongs to the process
    with file.open() as stream:
        lines = _Lines(file, stream)
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        while True:
            number, where = reader.line_num + 1, f"{file.path}:{reader.line_num + 1}"
            try:
                cells: Cells | RowError = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end of data" in str(error):
                    raise DataError(f"{where}: a quoted cell that begins here is never closed; close it") from error
                if "field larger than" in str(error):
                    raise DataError(f"{where}: a cell of more than {MAX_ROW // 1_000_000} MB; divide it") from error
                cells = RowError(f"{where}: not valid {file.kind[1:].upper()} ({error}); fix or delete it", "bad_cells")
            if lines.damage:
                cells, lines.damage = lines.damage, None
            if isinstance(cells, RowError) or any(map(str.strip, cells)):
                yield number, cells


def _columns(where: str, header: Sequence[str]) -> list[str]:
    """The names in a header; a column without one, such as pandas' index, is not read."""
    names = [name.strip() for name in header]
    twice = next((name for place, name in enumerate(names) if name and name in names[:place]), None)
    if twice is not None:
        raise DataError(f"{where}: two columns are called {twice}; rename or delete one")
    return names


def _row(where: str, columns: Sequence[str], cells: Cells) -> dict[str, str] | RowError:
    if len(cells) != len(columns):
        found = f"{len(cells)} cells under a header of {len(columns)}"
        return RowError(f"{where}: {found}; quote cells with delimiters or line breaks in them", "bad_cells")
    return {name: cell for name, cell in zip(columns, cells, strict=True) if name and cell}


def sheet_table(file: DataFile, sheet: str | None) -> RowTable:
    """One sheet of an .xlsx file, whose first row that is not blank names the columns.

    Without a name it is the only visible sheet that is not blank. Raises DataError, and MissingExtraError when openpyxl
    is not installed.
    """
    sheets = _sheets(file)
    shown = {name: cells for name, (cells, visible) in sheets.items() if cells and visible}
    if sheet is not None:
        if sheet not in sheets:
            raise DataError(f"{file.path}: has no sheet {sheet}; config may be: {', '.join(sheets)}")
        chosen = sheets[sheet][0]
    elif len(shown) > 1:
        raise DataError(f"{file.path}: holds several sheets; choose one by config: {', '.join(shown)}")
    else:
        chosen = next(iter(shown.values()), [])
    if not chosen:
        return RowTable(file.path, lambda keys: iter(()), 0)
    number, header = chosen[0]
    columns = _columns(f"{file.path}: row {number}", header)
    rows: list[Numbered] = [
        (number, {name: cell for name, cell in zip(columns, cells, strict=False) if name and cell})
        for number, cells in chosen[1:]
    ]
    return RowTable(file.path, lambda keys: iter(rows), len(rows), columns=tuple(filter(None, columns)))


def _sheets(file: DataFile) -> dict[str, tuple[list[tuple[int, Cells]], bool]]:
    """The numbered rows of every sheet that are not blank, and whether the sheet is visible."""
    try:
        import openpyxl
    except ImportError as error:
        raise MissingExtraError(
            f"{file.path}: .xlsx files need openpyxl; pip install 'spintune[xlsx]', or save the sheet as .csv"
        ) from error
    try:
        data = io.BytesIO(file.read())
        with zipfile.ZipFile(data) as parts:
            if sum(part.file_size for part in parts.infolist()) > _MAX_SHEETS:
                raise DataError(f"{file.path}: expands to more than {_MAX_SHEETS:,} bytes; save the sheet as .csv")
        book = openpyxl.load_workbook(data, read_only=True, data_only=True)
        found = {}
        for sheet in book.worksheets:
            sheet.reset_dimensions()  # some programs write wrong ones
            # a row's number comes from the file, and the rows before it are made up
            values = islice(sheet.iter_rows(values_only=True), _MAX_SHEET_ROWS)
            rows = ((number, [*map(_text, row)]) for number, row in enumerate(values, 1))
            found[sheet.title] = [row for row in rows if any(row[1])], sheet.sheet_state == "visible"
        return found
    except DataError:
        raise
    except Exception as error:  # a boundary: openpyxl raises what zipfile, its XML parser and its own code raise
        raise DataError(f"{file.path}: not a readable .xlsx file ({first_line(error)}); save it again") from error


def _text(value: object) -> str:
    """What a spreadsheet shows for a cell: "3" for 3.0, "" for a cell without a value."""
    if value is None:
        return ""
    if isinstance(value, str) and "_x" in value:
        from openpyxl.utils.escape import unescape

        text = str(unescape(value))  # the file format writes a carriage return as _x000D_
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # half a pair stands for nothing
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float):
        return f"{value:.15g}"
    if isinstance(value, datetime.datetime) and value.time() == datetime.time():
        return str(value.date())
    return str(value)
