"""The items of evaluation files, which need not be anything that can be trained on: prompts alone, choices, labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from spintune.data.columns import OTHER_NAMES
from spintune.data.contamination import text_of
from spintune.data.file_rows import FileRow
from spintune.data.formats import AUTO, Format, RowConversation
from spintune.data.formats.turns import is_answer
from spintune.data.row_reader import RowReader
from spintune.data.tables import empty_source, open_tables
from spintune.errors import DataError
from spintune.records import Example

_HEAD = 10  # rows whose keys decide the format
_QUESTIONS = ("prompt", *OTHER_NAMES["prompt"], "turns")
"""Keys that hold what is asked."""


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

    Rows in a format of training data give their conversations; an answer may be null, missing, or anything else. What
    else a row says, such as choices, belongs to the text. In any other row, what a usual key of questions holds is the
    prompt, else the longest text.

    Raises DataError for a source without rows, and for a row without text or with a number for a question.
    """
    empty = True
    for open_table in open_tables(path, "train"):
        table = open_table()
        if not table.total:
            continue
        reader = _reader(path, table.path, [FileRow(values, table.path) for values in table.sample(_HEAD)])
        for number, value in table.rows(None):
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
    texts = list(_texts(row.values))
    if not texts:
        raise DataError(f"{row.where}: holds no text; delete the row")
    if reader:
        try:
            found = [one for one in reader.conversations(_answered(row, reader.format)) if _prompt(one)]
        except DataError:  # not a row of the format that the first ones have
            if any(isinstance(row.values.get(key), int | float) for key in _QUESTIONS):
                raise
            found = []
        if found:
            said = [text_of(Example(one.messages, tools=one.tools)).strip() for one in found]
            further = [text for text in texts if len(found) == 1 and text not in said[0]]
            return [
                EvaluationItem(_prompt(one), "\n\n".join([text, *further]), row.where)
                for one, text in zip(found, said, strict=True)
            ]
    asked = next((list(_texts(row.values[key])) for key in _QUESTIONS if row.values.get(key)), [])
    return [EvaluationItem("\n\n".join(asked) or max(texts, key=len), "\n\n".join(texts), row.where)]


def _prompt(found: RowConversation) -> str:
    """What a conversation says before its answer; empty where that is nothing but white space."""
    return "\n\n".join(message.content for message in found.messages[:-1]).strip()


def _answered(row: FileRow, format: Format) -> FileRow:
    """The row, with an answer of one text: empty where it has none, and all of them where it has several."""
    keys = max(format.keys, key=lambda keys: sum(row.values.get(key) is not None for key in keys))
    values = dict(row.values)
    for key in keys[1:]:
        if not isinstance(values.get(key), str):
            values[key] = "\n".join(_texts(values.get(key)))
    turns = values.get(keys[0]) if len(keys) == 1 else None
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
