"""The items of evaluation files, which need not be anything that can be trained on: prompts alone, choices, labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spintune.data.contamination import text_of
from spintune.data.file_rows import FileRow
from spintune.data.formats import AUTO, Format
from spintune.data.formats.turns import is_answer
from spintune.data.row_reader import RowReader
from spintune.data.tables import empty_source, open_tables
from spintune.errors import DataError
from spintune.records import Example

_HEAD = 10  # rows whose keys decide the format


@dataclass(frozen=True)
class EvaluationItem:
    """One item.

    Attributes:
        prompt: what is asked.
        text: what is asked, with the answer and whatever else its row says.
        where: its row.
    """

    prompt: str
    text: str
    where: str


def evaluation_items(path: str) -> Iterator[EvaluationItem]:
    """Every item of a source, in its order.

    Rows in a format of training data give their conversations, where an answer may be null, missing or a number. Any
    other row is one item: its longest text is the prompt. Raises DataError for a source without rows, for a row without
    text, and for the first row that cannot be read.
    """
    empty = True
    for open_table in open_tables(path, "train"):
        table = open_table()
        if not table.total:
            continue
        reader = _reader(path, table.path, [FileRow(values, table.path) for values in table.sample(_HEAD)])
        for number, value in table.rows(reader.keys if reader else None):
            empty = False
            yield from _items(table.row(number, value), reader)
    if empty:
        raise empty_source(path)


def _reader(path: str, table: str, head: list[FileRow]) -> RowReader | None:
    """What reads the conversations of a table; None for rows of no format that training data has."""
    reader = RowReader(path, AUTO, None)
    try:
        reader.begin(table, head)
    except DataError:
        return None
    return reader


def _items(row: FileRow, reader: RowReader | None) -> list[EvaluationItem]:
    if reader:
        found = reader.conversations(_answered(row, reader.format))
        return [_item(Example(one.messages, row.where, one.tools)) for one in found]
    texts = list(_texts(row.values))
    if not texts:
        raise DataError(f"{row.where}: holds no text; delete the row")
    return [EvaluationItem(max(texts, key=len), "\n\n".join(texts), row.where)]


def _item(example: Example) -> EvaluationItem:
    prompt = "\n\n".join(message.content for message in example.prompt)
    return EvaluationItem(prompt, text_of(example), example.source)


def _answered(row: FileRow, format: Format) -> FileRow:
    """The row, with an empty answer where it has none, and a number, such as that of a choice, as a text."""
    keys = max(format.keys, key=lambda keys: sum(row.values.get(key) is not None for key in keys))
    values = {**row.values, **{key: "" for key in keys if row.values.get(key) is None}}
    values |= {key: str(values[key]) for key in keys[1:] if isinstance(values[key], int | float)}
    turns = values[keys[0]] if len(keys) == 1 else None
    if isinstance(turns, list) and turns and not is_answer(turns[-1]):
        values[keys[0]] = [*turns, {"role": "assistant", "content": ""}]
    return FileRow(values, row.where, row.number, row.names)


def _texts(value: object) -> Iterator[str]:
    """All texts in a value, at any depth, in order."""
    if isinstance(value, str):
        if value.strip():
            yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, list):
        for one in value:
            yield from _texts(one)
