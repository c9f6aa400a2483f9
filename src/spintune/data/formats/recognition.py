"""Which format the rows of a source have. Where two would read different conversations, nobody guesses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from spintune.data.file_rows import FileRow
from spintune.data.formats.builtin import BUILTIN_FORMATS
from spintune.data.formats.format import Format, RowConversation
from spintune.errors import DataError, RowError
from spintune.plugins import Table

AUTO = "auto"
"""In the place of a format's name: recognize it by the keys of the first rows."""

_BUILTIN_NAMES = frozenset(format.name for format in BUILTIN_FORMATS)

FORMATS = Table("data format", "spintune.formats", ((format.name, format) for format in BUILTIN_FORMATS))


def register_format(format: Format) -> None:
    """Makes a format known to recipes and to recognition. Raises RecipeError when its name is taken."""
    FORMATS.register(format.name, format)


def all_formats() -> list[Format]:
    """Every format in the order of recognition: users' own first, since they may extend the keys of a built-in one."""
    return [*_own_formats(), *BUILTIN_FORMATS]


def _own_formats() -> list[Format]:
    return [FORMATS[name] for name in FORMATS if name not in _BUILTIN_NAMES]


def recognize(rows: Iterable[Mapping[str, object]]) -> Format | None:
    """The format of the first row that has one, or None."""
    known = all_formats()
    return next((format for values in rows for format in known if format.fits(values)), None)


def choose_format(path: str, rows: Sequence[FileRow]) -> Format:
    """The format of the first rows of a source.

    A format that extends another is preferred to it, and one that a user registered to all.

    Raises DataError when the rows fit none, or when two formats read different conversations in one of them.
    """
    found = recognize(row.values for row in rows)
    if found is None:
        raise _unknown(path, rows)
    if found.name not in _BUILTIN_NAMES:
        return found
    fitting = [(row, readings) for row in rows if (readings := _readings(row))]
    chosen = fitting[0][1][0].format if fitting else found
    for row, readings in fitting:
        mine = next((reading for reading in readings if reading.format is chosen), None)
        if mine is None:
            continue  # reading the row will tell that formats are mixed
        if other := next((other for other in readings if other.conversations != mine.conversations), None):
            raise _undecided(row, mine, other)
    return chosen


@dataclass(frozen=True)
class _Reading:
    """One way to read a row: a format, the keys that make the row one of it, and what it reads then."""

    format: Format
    keys: tuple[str, ...]
    conversations: list[RowConversation] | None

    def extends(self, other: _Reading) -> bool:
        """Whether it has the other's answers, and prompts that hold every line of the other's and more."""
        mine, others = self.conversations or [], other.conversations or []
        return (
            self.conversations != other.conversations
            and len(mine) == len(others) > 0
            and all(map(_holds, mine, others))
        )

    def __str__(self) -> str:
        return f"{self.format.name} ({', '.join(self.keys)})"


def _readings(row: FileRow) -> list[_Reading]:
    """The ways in which built-in formats read a row, without those that another one extends.

    It does when it uses more keys of the row, or when it reads the same answer to a prompt that says more.
    """
    fitting = [
        (format, group, format.used(group, row.values))
        for format in BUILTIN_FORMATS
        for group in format.groups(row.values)
    ]
    found = [
        _Reading(format, group, _conversations(format, row, used))
        for format, group, used in fitting
        if not any(used < others for _, _, others in fitting)
    ]
    return [one for one in found if not any(other.extends(one) for other in found)]


def _holds(one: RowConversation, other: RowConversation) -> bool:
    prompt = _prompt(one)
    return one.messages[-1] == other.messages[-1] and all(
        line.strip() in prompt for line in _prompt(other).splitlines()
    )


def _prompt(conversation: RowConversation) -> str:
    return "\n".join(message.content for message in conversation.messages[:-1])


def _conversations(format: Format, row: FileRow, keys: Collection[str]) -> list[RowConversation] | None:
    values = {key: value for key, value in row.values.items() if key in keys}
    try:
        found = format.read(FileRow(values, row.where, row.number, row.names))
    except DataError:
        return None
    return [one._replace(trimmed=False, ignored=()) for one in found]


def _undecided(row: FileRow, one: _Reading, other: _Reading) -> DataError:
    if one.format is other.format:
        choice = f"name them with columns: {{prompt: {other.keys[0]}, response: {other.keys[1]}}} or the like"
    else:
        choice = f"set format: {one.format.name} or format: {other.format.name}"
    return DataError(f"{row.where}: the keys fit {one} and {other}, which read different conversations; {choice}")


def read_row(format: Format, row: FileRow) -> list[RowConversation]:
    """The conversations of a row. Raises DataError, which says so where the row has another format."""
    try:
        return format.read(row)
    except DataError as error:
        other = None if format.fits(row.values) else recognize([row.values])
        if other is None or other is format:
            raise
        raise RowError(
            f"{row.where}: the row has the keys of format {other.name}, and other rows those of {format.name}; "
            "put rows of each format into a file of their own",
            "other_format",
        ) from error


def _unknown(path: str, rows: Sequence[FileRow]) -> DataError:
    keys = list(dict.fromkeys(str(key) for row in rows for key in row.values))
    if {"message_id", "parent_id"} <= {*keys}:
        return DataError(
            f"{path}: each row is one message of a tree; give the file of whole trees (message_tree_id, prompt with "
            "replies), which format oasst reads"
        )
    if "text" in keys:
        return DataError(
            f"{path}: the rows hold plain text without prompts (keys: {', '.join(keys)}), and answers to prompts are "
            "what spintune trains; split it into prompt and completion, or name the keys with columns: "
            "{prompt: ..., response: ...}"
        )
    known = "; ".join(map(str, all_formats()))
    return DataError(
        f"{path}: the rows fit no known format; keys found: {', '.join(keys) or 'none'}; name them with columns: "
        f"{{prompt: ..., response: ...}}, or rename them to one of: {known}"
    )
