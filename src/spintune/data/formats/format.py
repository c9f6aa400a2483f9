"""What a row format is, and what it finds in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from spintune.data.file_rows import FileRow
from spintune.records import Message

Conversation = tuple[Message, ...]


class RowConversation(NamedTuple):
    """A conversation as a row holds it.

    Attributes:
        messages: its turns, the last one an assistant's.
        tools: the tools that the assistant may call, each a JSON object as text.
        unused: why it is well-formed and yet nothing to train on: "negative_label", "untrained"; "" otherwise.
        trimmed: whether turns after the last answer to train on were left out.
        ignored: keys that were there and have no meaning to the format, beyond those that :meth:`Format.ignored` names.
    """

    messages: Conversation
    tools: tuple[str, ...] = ()
    unused: str = ""
    trimmed: bool = False
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Format:
    """A row format.

    Attributes:
        name: what a recipe calls it.
        keys: a row has the format when it has all keys of one of these groups.
        conversations: the conversations that a row holds, each of which ends with an assistant's turn; most formats
            hold one. Raises DataError, which begins with ``row.where``, for a row that holds none.
        reads: the keys that the format uses besides such a group; None when it does not say. Other keys are counted.
    """

    name: str
    keys: tuple[tuple[str, ...], ...]
    conversations: Callable[[FileRow], Iterable[Conversation | RowConversation]]
    reads: frozenset[str] | None = None

    def groups(self, values: Mapping[str, object]) -> list[tuple[str, ...]]:
        """The groups of keys that all have a value in a row."""
        return [group for group in self.keys if all(values.get(key) is not None for key in group)]

    @property
    def all_keys(self) -> frozenset[str] | None:
        """Every key that may be read; None when the format does not say."""
        return None if self.reads is None else self.reads.union(*self.keys)

    def used(self, group: Iterable[str], values: Mapping[str, object]) -> set[str]:
        """The keys with a value that the format uses in a row that has this group."""
        return {key for key in self.reads or () if values.get(key) is not None}.union(group)

    def ignored(self, keys: Iterable[str]) -> list[str]:
        """Those of a row's keys that the format has no use for."""
        if self.reads is None:
            return []
        used = self.reads.union(next((group for group in self.keys if set(group) <= {*keys}), ()))
        return [key for key in keys if key not in used]

    def fits(self, values: Mapping[str, object]) -> bool:
        """Whether a row with these values has the format."""
        return any(all(key in values for key in group) for group in self.keys)

    def read(self, row: FileRow) -> list[RowConversation]:
        """The conversations of a row. Raises DataError for a row that holds none."""
        found = self.conversations(row)
        return [one if isinstance(one, RowConversation) else RowConversation(one) for one in found]

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(', '.join(group) for group in self.keys)})"
