"""All conversations of a source, also those that nothing can be trained on: evaluation data, often without answers."""

from __future__ import annotations

from collections.abc import Iterator

from spintune.data.file_rows import FileRow
from spintune.data.formats import AUTO, Format
from spintune.data.formats.turns import is_answer
from spintune.data.row_reader import RowReader
from spintune.data.tables import empty_source, open_tables
from spintune.records import Example

_HEAD = 10  # rows whose keys decide the format


def all_conversations(path: str) -> Iterator[Example]:
    """Every conversation of a source, in its order, in any format that training data may have.

    An answer that is null or missing is empty. Raises DataError for a source without rows, and for the first row that
    cannot be read.
    """
    reader, empty = RowReader(path, AUTO, None), True
    for open_table in open_tables(path, "train"):
        table = open_table()
        if not table.total:
            continue
        reader.begin(table.path, [FileRow(values, table.path) for values in table.sample(_HEAD)])
        for number, value in table.rows(reader.keys):
            empty, row = False, table.row(number, value)
            for found in reader.conversations(_answered(row, reader.format)):
                yield Example(found.messages, row.where, found.tools)
    if empty:
        raise empty_source(path)


def _answered(row: FileRow, format: Format) -> FileRow:
    """The row, with an empty answer where it has none."""
    keys = max(format.keys, key=lambda keys: sum(row.values.get(key) is not None for key in keys))
    values = {**row.values, **{key: "" for key in keys if row.values.get(key) is None}}
    turns = values[keys[0]] if len(keys) == 1 else None
    if isinstance(turns, list) and turns and not is_answer(turns[-1]):
        values[keys[0]] = [*turns, {"role": "assistant", "content": ""}]
    return FileRow(values, row.where, row.number, row.names)
