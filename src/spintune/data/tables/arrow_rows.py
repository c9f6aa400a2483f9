"""Rows of columnar data: Parquet and Arrow files, and data sets of the datasets library. Only needed columns decode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from spintune.data.tables.arrow_sizes import decoded_size, decompressed_sizes, refused_type, shares
from spintune.data.tables.content import MAX_ROW, DataFile
from spintune.data.tables.json_rows import too_large
from spintune.data.tables.table import Numbered, RowTable, first_line
from spintune.errors import DataError, RowError
from spintune.threads import limit_arrow

if TYPE_CHECKING:
    import datasets
    import pyarrow

ARROW = (".arrow", ".feather")
_BATCH = 1000  # rows that are read and decoded together
_FIRST = 100  # of a batch, decoded first: recognizing the format of wide rows needs no more
_MAX_BATCH = 4_000_000_000  # bytes of a batch, at worst
_MAX_DECODED = 50_000_000  # bytes of rows that are decoded together, less than those of the longest row
_MAX_VALUES = 500_000_000  # of a column in a row group; a run of empty ones takes no space in a file

Batches = Callable[[list[str]], Iterator["pyarrow.RecordBatch | pyarrow.Table"]]
"""Reads these columns."""


def parquet_table(file: DataFile) -> RowTable:
    """A Parquet file. Raises DataError when it is none."""
    import pyarrow.parquet

    with _readable(file.path, "parquet"):
        source = _source(file)
        table = pyarrow.parquet.ParquetFile(source)

    def batches(names: list[str]) -> Iterator[pyarrow.RecordBatch]:
        rows = _rows_of_batch(file.path, source, table.metadata, names)
        return _guarded(file.path, "parquet", table.iter_batches(rows, columns=names))

    return _table(file, table.schema_arrow.names, table.metadata.num_rows, batches)


def _rows_of_batch(
    path: str, source: pyarrow.NativeFile, metadata: pyarrow.parquet.FileMetaData, names: Sequence[str]
) -> int:
    """How many rows may be read together.

    A dictionary, or a prefix that strings share, lets a value of 30 MB come a thousand times from a page of 30 MB. No
    value is longer than the page with the dictionary, or than all pages with prefixes, before compression.

    Raises DataError for more values than fit into memory.
    """
    largest = 1
    for group in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(group).column(place)
            if column.path_in_schema.split(".")[0] not in names:
                continue
            if column.num_values > _MAX_VALUES:
                raise DataError(
                    f"{path}: {column.path_in_schema} has {column.num_values:,} values in one row group; "
                    "write it again with smaller row groups"
                )
            if "DELTA_BYTE_ARRAY" in column.encodings:
                largest = max(largest, column.total_uncompressed_size)
            elif column.has_dictionary_page:
                header = source.read_at(24, column.dictionary_page_offset)
                largest = max(largest, _page_size(header) or column.total_uncompressed_size)
    return max(1, min(_BATCH, _MAX_BATCH // largest))


def _page_size(header: bytes) -> int | None:
    """Uncompressed size of a Parquet page, by the beginning of its header in Thrift's compact protocol: type, size."""
    numbers, value, shift = [], 0, 0
    for byte in header.removeprefix(b"\x15"):
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            numbers.append((value >> 1) ^ -(value & 1))
            value = shift = 0
            if len(numbers) == 3:  # type, the header of the next field, size
                return numbers[2] if header[0] == 0x15 and numbers[1] == ~0x0A and numbers[2] > 0 else None
    return None


def arrow_table(file: DataFile) -> RowTable:
    """An Arrow file or stream, or a Feather file. Raises DataError when it is none."""
    import pyarrow

    def batches(names: list[str] | None) -> Iterator[pyarrow.RecordBatch]:
        for batch in _arrow_batches(_source(file)):
            chosen = batch if names is None else batch.select(names)
            _check_offsets(chosen)
            yield chosen

    with _readable(file.path, "Arrow"):
        source = _source(file)
        _check_decompressed(file, source)
        opened = pyarrow.ipc.open_file(source) if _is_arrow_file(source) else pyarrow.ipc.open_stream(source)
        total = sum(batch.num_rows for batch in batches(None))
    return _table(file, opened.schema.names, total, lambda names: _guarded(file.path, "Arrow", batches(names)))


def _check_decompressed(file: DataFile, source: pyarrow.NativeFile) -> None:
    """Refuses compressed buffers that would fill the memory. Raises DataError."""
    total = 0
    try:
        for size in decompressed_sizes(source, _is_arrow_file(source)):
            total += size
            file.check_expansion(total)
            if size > _MAX_BATCH:
                raise DataError(
                    f"{file.path}: {size:,} bytes are to be decompressed at once; write it again with smaller batches"
                )
    except ValueError as error:
        raise OSError(str(error)) from error
    finally:
        source.seek(0)


def dataset_table(path: str, data: datasets.Dataset) -> RowTable:
    """A data set of the datasets library."""

    def batches(names: list[str]) -> Iterator[pyarrow.Table]:
        yield from data.select_columns(names).with_format("arrow").iter(_BATCH)

    file = DataFile(path, Path(path))  # the name is all of it that is used
    return _table(file, data.column_names, len(data), lambda names: _guarded(path, "Arrow", batches(names)))


def stream_table(path: str, data: datasets.IterableDataset, columns: Sequence[str], total: float) -> RowTable:
    """A data set of the datasets library that is read from afar, a piece at a time."""

    def batches(names: list[str]) -> Iterator[pyarrow.Table]:
        yield from data.select_columns(names).with_format("arrow").iter(_BATCH)

    file = DataFile(path, Path(path))
    return replace(_table(file, columns, total, lambda names: _streamed(path, batches(names))), streamed=True)


def _streamed(path: str, batches: Iterator[pyarrow.Table]) -> Iterator[pyarrow.Table]:
    while True:
        try:
            batch = next(batches, None)
        except Exception as error:  # a boundary: of the network, the hub's client, and readers of a dozen formats
            raise DataError(
                f"{path}: the stream broke off ({type(error).__name__}: {first_line(error)}); run again, or leave "
                "stream out to download the data set first"
            ) from error
        if batch is None:
            return
        yield batch


def _source(file: DataFile) -> pyarrow.NativeFile:
    """The file's bytes for random access: mapped, or in memory where they have to be decompressed."""
    import pyarrow

    limit_arrow()
    if file.compression:
        return pyarrow.BufferReader(file.read())
    return pyarrow.memory_map(str(file.file)) if file.kind in ARROW else pyarrow.OSFile(str(file.file))


def _arrow_batches(source: pyarrow.NativeFile) -> Iterator[pyarrow.RecordBatch]:
    import pyarrow

    if _is_arrow_file(source):
        reader = pyarrow.ipc.open_file(source)
        yield from map(reader.get_batch, range(reader.num_record_batches))
    else:
        yield from pyarrow.ipc.open_stream(source)


def _check_offsets(batch: pyarrow.RecordBatch) -> None:
    """Raises ArrowInvalid for values that lie outside of their buffers: reading one would end the process."""
    import pyarrow
    import pyarrow.types as types

    for column in batch.columns:
        if types.is_string(column.type) or types.is_large_string(column.type):  # a text that is no UTF-8 is one bad row
            column = column.view(pyarrow.binary() if types.is_string(column.type) else pyarrow.large_binary())
        try:
            column.validate(full=True)
        except pyarrow.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise


def _is_arrow_file(source: pyarrow.NativeFile) -> bool:
    """Whether it is a file with an index at its end, and not a stream of batches."""
    found: bool = source.read(6) == b"ARROW1"
    source.seek(0)
    return found


@contextlib.contextmanager
def _readable(path: str, kind: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable {kind} file ({first_line(error)}); write it again") from error


def _guarded(
    path: str, kind: str, batches: Iterator[pyarrow.RecordBatch | pyarrow.Table]
) -> Iterator[pyarrow.RecordBatch | pyarrow.Table]:
    while True:
        with _readable(path, kind):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch


def _table(file: DataFile, columns: Sequence[str], total: float, read: Batches) -> RowTable:
    path = file.path

    def rows(keys: frozenset[str] | None) -> Iterator[Numbered]:
        # with none of the keys every row is read, so that its own error says what it lacks
        names = [name for name in columns if keys is None or name in keys] or list(columns)
        number = read_bytes = 0
        for batch in read(names):
            for name in batch.schema.names:
                if refused := refused_type(batch.schema.field(name).type):
                    raise DataError(
                        f"{path}: '{name}' has the type {refused!s:.60}, which is not read; write plain values"
                    )
            decoded = _decoded_bytes(batch)
            read_bytes += decoded
            file.check_expansion(read_bytes)
            start, size = 0, min(_FIRST, max(1, batch.num_rows * _MAX_DECODED // (decoded + 1)))
            while start < batch.num_rows:
                part = batch.slice(start, size)
                if size > 1 and _decoded_bytes(part) > _MAX_DECODED:  # long texts are not evenly spread
                    size = max(1, size // 2)
                    continue
                yield from enumerate(_decoded(path, part, number + start), number + start + 1)
                start, size = start + size, min(_BATCH, size * 10)
            number += batch.num_rows

    twice = next((name for place, name in enumerate(columns) if name in columns[:place]), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice}; rename or delete one")
    return RowTable(path, rows, total, columns=tuple(columns))


def _decoded_bytes(part: pyarrow.RecordBatch | pyarrow.Table) -> int:
    """About what rows take once they are decoded: what values share, once for each."""
    import pyarrow

    size: int = part.nbytes
    for column in part.columns:
        if shares(column.type):
            size += sum(map(decoded_size, column.chunks if isinstance(column, pyarrow.ChunkedArray) else [column]))
    return size


def _decoded(path: str, part: pyarrow.RecordBatch | pyarrow.Table, before: int) -> Sequence[object]:
    """The rows as objects; a RowError in place of one with a value that Python cannot hold."""
    if part.num_rows == 1 and _decoded_bytes(part) > MAX_ROW:
        return [too_large(f"{path}: row {before + 1}")]
    try:
        decoded: list[object] = part.to_pylist()
        return decoded
    except Exception:  # a boundary: text that is not UTF-8, times beyond year 9999, unknown time zones
        return [_decoded_row(f"{path}: row {before + place + 1}", part, place) for place in range(part.num_rows)]


def _decoded_row(where: str, part: pyarrow.RecordBatch | pyarrow.Table, place: int) -> object:
    row = {}
    for name in part.schema.names:
        try:
            row[name] = part.column(name)[place].as_py()
        except Exception as error:
            found = f"{type(error).__name__}: {first_line(error)}"
            return RowError(f"{where}: '{name}' cannot be decoded ({found}); fix or delete the row", "undecodable")
    return row
