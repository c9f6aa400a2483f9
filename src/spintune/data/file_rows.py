"""Objects as files of rows hold them, with one-line errors that name the row."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from spintune.errors import DataError, RowError
from spintune.typed_json import JsonObject

NO_INPUT = "<noinput>"  # how text-davinci-003 wrote "this task needs no input" in the Alpaca data
_NO_INPUTS = frozenset(("", "noinput", "no input", "none", "n/a", "null"))

_ABSENT = object()
_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class FileRow:
    """One object of a file.

    Attributes:
        values: its keys and values.
        where: ``file:line`` or ``file: row N``, with which every error about it begins.
        number: the line or row, from 1; 0 for an object inside a row.
        names: what the file calls keys that a recipe's ``columns`` renamed, for errors.
    """

    values: JsonObject
    where: str
    number: int = 0
    names: Mapping[str, str] | None = None

    @classmethod
    def of(cls, value: object, where: str, number: int = 0) -> FileRow:
        """Raises RowError when ``value`` is not an object with keys."""
        if not isinstance(value, dict):
            found = kind_of(value)
            raise RowError(f"{where}: the row is {found}, not an object with keys; fix or delete the row", "no_object")
        return cls(value, where, number)

    def text(self, key: str, what: str) -> str:
        """The text under ``key``; ``what`` says what the row lacks without it ("an answer").

        Raises DataError when the key is missing, null, or anything but text.
        """
        value = self.values.get(key)
        if value is None:
            raise self._without(key, what)
        if isinstance(value, str):
            return value
        advice = "quote it" if isinstance(value, bool | int | float) else "give it as one text"
        raise self.wrong(key, "a text", advice)

    def objects(self, key: str, what: str) -> Iterator[FileRow]:
        """The objects of the list under ``key``.

        Raises DataError when the key is missing or null, the list is empty, or anything in it is not an object.
        """
        value = self.values.get(key)
        if value is None or value == []:
            raise self._without(key, what)
        if not isinstance(value, list):
            raise self.wrong(key, "a list", "give it as a list of objects")
        for number, item in enumerate(value, 1):
            yield FileRow.of(item, f"{self.where}: {key} {number}")

    def wrong(self, key: str, expected: str, advice: str) -> RowError:
        """The error that the value under ``key`` is missing or not what is ``expected``."""
        found = kind_of(self.values[key]) if key in self.values else "missing"
        reason = "wrong_type" if key in self.values else f"missing_{key}"
        return RowError(f"{self.where}: '{self.named(key)}' is {found}, not {expected}; {advice}", reason)

    def named(self, key: str) -> str:
        """What the file calls a key."""
        return key if self.names is None else self.names.get(key, key)

    def _without(self, key: str, what: str) -> RowError:
        state = "is empty" if self.values.get(key) == [] else "is null" if key in self.values else "is missing"
        message = f"{self.where}: a row without {what} ('{self.named(key)}' {state}); fill it in or delete the row"
        return RowError(message, f"missing_{what.split()[-1]}")  # missing_answer, missing_prompt

    def lookup(self, key: str, purpose: str = "") -> object:
        """The value under ``key``; a dot in it leads into an object (``choices.text``).

        Raises DataError, with a suggestion, when there is none. ``purpose`` ("field answer") says what needs the value.
        """
        value = self.find(key, _ABSENT)
        if value is _ABSENT:
            close = difflib.get_close_matches(key, self.values, 1)
            hint = f"did you mean {close[0]}?" if close else f"the row has: {', '.join(map(str, self.values))}"
            raise DataError(f"{self.where}: no '{key}'{purpose and f' for {purpose}'}; {hint}")
        return value

    def find(self, key: str, otherwise: object = None) -> object:
        """The value that :meth:`lookup` finds under ``key``, or ``otherwise``."""
        if key in self.values:
            return self.values[key]
        value: object = self.values
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                return otherwise
            value = value[part]
        return value

    def task_input(self) -> str:
        """The ``input`` of an instruction; "" where it is missing, null, blank, or says that there is none."""
        text = "" if self.values.get("input") is None else self.text("input", "an input")
        return "" if is_no_input(text) else text


def is_no_input(text: str) -> bool:
    """Whether a text only says that a task needs no input: blank, ``<noinput>``, "N/A", "None", "No input."."""
    return not text or (len(text) < 40 and text.strip().strip("()[]<>.\"'").lower() in _NO_INPUTS) or text.isspace()


def kind_of(value: object) -> str:
    """The type of a JSON value in plain words: "null", "a number", "an object"."""
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def instruction_prompt(instruction: str, task_input: str) -> str:
    """One prompt of an instruction and its input, which may be empty."""
    return f"{instruction}\n\n{task_input}" if task_input else instruction
