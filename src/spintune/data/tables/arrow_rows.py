"""Rows of columnar data: Parquet and Arrow files, and data sets of the datasets library. Only needed columns decode."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from spintune.data.tables.content import DataFile
from spintune.data.tables.table import Numbered, RowTable, first_line
from spintune.errors import DataError, RowError
from spintune.threads import limit_arrow

if TYPE_CHECKING:
    import datasets
    import pyarrow

ARROW = (".arrow", ".feather")
_BATCH = 1000  # rows that are read and decoded together
_FIRST = 100  # of a batch, decoded first: recognizing the format of wide rows needs no more

Batches = Callable[[list[str]], Iterator["pyarrow.RecordBatch | pyarrow.Table"]]
"""Reads these columns."""


def parquet_table(file: DataFile) -> RowTable:
    """A Parquet file. Raises DataError when it is none."""
    import pyarrow.parquet

    with _readable(file.path, "parquet"):
        table = pyarrow.parquet.ParquetFile(_source(file))
    return _table(
        file.path,
        table.schema_arrow.names,
        table.metadata.num_rows,
        lambda names: _guarded(file.path, "parquet", table.iter_batches(_BATCH, columns=names)),
    )


def arrow_table(file: DataFile) -> RowTable:
    """An Arrow file or stream, or a Feather file. Raises DataError when it is none."""
    import pyarrow

    def batches(names: list[str] | None) -> Iterator[pyarrow.RecordBatch]:
        for batch in _arrow_batches(_source(file)):
            yield batch if names is None else batch.select(names)

    with _readable(file.path, "Arrow"):
        source = _source(file)
        opened = pyarrow.ipc.open_file(source) if _is_arrow_file(source) else pyarrow.ipc.open_stream(source)
        total = sum(batch.num_rows for batch in batches(None))
    return _table(file.path, opened.schema.names, total, lambda names: _guarded(file.path, "Arrow", batches(names)))


def dataset_table(path: str, data: datasets.Dataset) -> RowTable:
    """A data set of the datasets library."""

    def batches(names: list[str]) -> Iterator[pyarrow.Table]:
        yield from data.select_columns(names).with_format("arrow").iter(_BATCH)

    return _table(path, data.column_names, len(data), lambda names: _guarded(path, "Arrow", batches(names)))


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


def _table(path: str, columns: Sequence[str], total: int, read: Batches) -> RowTable:
    def rows(keys: frozenset[str] | None) -> Iterator[Numbered]:
        # with none of the keys every row is read, so that its own error says what it lacks
        names = [name for name in columns if keys is None or name in keys] or list(columns)
        number = 0
        for batch in read(names):
            start, size = 0, _FIRST
            while start < batch.num_rows:
                yield from enumerate(_decoded(path, batch.slice(start, size), number + start), number + start + 1)
                start, size = start + size, _BATCH
            number += batch.num_rows

    twice = next((name for place, name in enumerate(columns) if name in columns[:place]), None)
    if twice is not None:
        raise DataError(f"{path}: two columns are called {twice}; rename or delete one")
    return RowTable(path, rows, total, columns=tuple(columns))


def _decoded(path: str, part: pyarrow.RecordBatch | pyarrow.Table, before: int) -> Sequence[object]:
    """The rows as objects; a RowError in place of one with a value that Python cannot hold."""
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
