"""The row formats of instruction data, and how each becomes a conversation.

=========  ===========================================================  ==================================
alpaca     ``instruction``, ``output``, optional ``input``              Stanford Alpaca and its descendants
chat       ``messages: [{role, content}]``                              UltraChat, OpenAI
sharegpt   ``conversations: [{from, value}]``                           ShareGPT, Vicuna
prompt     ``prompt``, ``completion`` (or ``prompt``, ``response``)     T0 tasks of Self-Instruct, TRL
qa         ``question``, ``answer``                                     GSM8K
seeds      ``instruction``, ``instances: [{input, output}]``            Self-Instruct seed tasks
spin       ``real``, ``generated``: lists of ``{role, content}``        SPIN's own data; the real side is read
preference ``prompt``, ``chosen``, ``rejected``: texts or messages      TRL, LLaMA-Factory; the chosen side is read
=========  ===========================================================  ==================================

Text is kept verbatim, white space included, with one exception: ``prompt`` rows lose an ``<|endoftext|>`` that ends
their answer, because there it is the previous tokenizer's stop token written out, not text.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from spintune.errors import DataError
from spintune.records import Message, Role

Conversation = tuple[Message, ...]

AUTO = "auto"

_END_OF_TEXT = "<|endoftext|>"
NO_INPUT = "<noinput>"  # how text-davinci-003 said "this task needs no input" in the Alpaca data

_CHAT_ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}
_SHAREGPT_ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
}

_KINDS = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list", dict: "an object"}


@dataclass(frozen=True)
class FileRow:
    """One object of a file. ``where`` (``file:line`` or ``file: row N``) begins every error about it."""

    values: dict[str, Any]
    where: str

    @classmethod
    def of(cls, value: Any, where: str) -> FileRow:
        """Raises DataError when ``value`` is not an object with keys."""
        if not isinstance(value, dict):
            raise DataError(f"{where}: the row is {kind_of(value)}, not an object with keys; mend or delete the row")
        return cls(value, where)

    def text(self, key: str, what: str) -> str:
        """The text under ``key``; ``what`` says what the row lacks without it ("an answer").

        Raises DataError when the key is missing, null, or anything but text.
        """
        value = self.values.get(key)
        if value is None:
            state = "is null" if key in self.values else "is missing"
            raise DataError(f"{self.where}: a row without {what} ('{key}' {state}); fill it in or delete the row")
        if isinstance(value, str):
            return value
        advice = "quote it" if isinstance(value, bool | int | float) else "give it as one text"
        raise DataError(f"{self.where}: '{key}' is {kind_of(value)}, not a text; {advice}")

    def objects(self, key: str, what: str) -> Iterator[FileRow]:
        """The objects of the list under ``key``.

        Raises DataError when the key is missing or null, the list is empty, or anything in it is not an object.
        """
        value = self.values.get(key)
        if value is None or value == []:
            state = "is empty" if value == [] else "is null" if key in self.values else "is missing"
            raise DataError(f"{self.where}: a row without {what} ('{key}' {state}); fill it in or delete the row")
        if not isinstance(value, list):
            raise DataError(f"{self.where}: '{key}' is {kind_of(value)}, not a list; give it as a list of objects")
        for number, item in enumerate(value, 1):
            yield FileRow.of(item, f"{self.where}: {key} {number}")


@dataclass(frozen=True)
class Format:
    """A way to write examples down. A row has the format when it has all keys of one of ``needs``."""

    name: str
    needs: tuple[tuple[str, ...], ...]
    conversations: Callable[[FileRow], Iterator[Conversation]]

    def fits(self, values: dict[str, Any]) -> bool:
        return any(all(key in values for key in keys) for keys in self.needs)

    def __str__(self) -> str:
        return f"{self.name} ({' or '.join(', '.join(keys) for keys in self.needs)})"


def kind_of(value: Any) -> str:
    """A JSON value's type in a reader's words."""
    return "null" if value is None else _KINDS.get(type(value), f"a {type(value).__name__}")


def format_named(name: str) -> Format:
    """The format of that name. Raises DataError, with a suggestion, when there is none."""
    for known in FORMATS:
        if known.name == name:
            return known
    names = [known.name for known in FORMATS]
    close = difflib.get_close_matches(name, names, 1)
    advice = f"did you mean '{close[0]}'?" if close else f"use {AUTO}, {', '.join(names)}"
    raise DataError(f"unknown data format '{name}'; {advice}")


def recognise(rows: Iterable[dict[str, Any]]) -> Format | None:
    """The format of the first row that has one, or None."""
    return next((known for values in rows for known in FORMATS if known.fits(values)), None)


def drop_reason(conversation: Conversation) -> str | None:
    """Why a well-formed conversation is of no use: "empty_prompt", "empty_answer", or None when it is of use.

    White space alone is empty. In a conversation of several turns one empty user or assistant turn is enough, since a
    player would learn to read or write it; an empty system message is a choice and stays.
    """
    empty = {message.role for message in conversation if not message.content.strip()}
    return "empty_prompt" if "user" in empty else "empty_answer" if "assistant" in empty else None


def _turn(prompt: str, answer: str) -> Conversation:
    return Message("user", prompt), Message("assistant", answer)


def _instruction(row: FileRow, task: FileRow) -> str:
    """The user message of an instruction with an optional input.

    An empty instruction stays empty, whatever the input, so that the row is counted as one without a prompt.
    """
    instruction = row.text("instruction", "a prompt")
    context = "" if task.values.get("input") is None else task.text("input", "an input")
    no_context = context.strip().lower() in ("", NO_INPUT)
    return instruction if no_context or not instruction.strip() else f"{instruction}\n\n{context}"


def _alpaca(row: FileRow) -> Iterator[Conversation]:
    yield _turn(_instruction(row, row), row.text("output", "an answer"))


def _seeds(row: FileRow) -> Iterator[Conversation]:
    for instance in row.objects("instances", "an answer"):
        yield _turn(_instruction(row, instance), instance.text("output", "an answer"))


def _prompt(row: FileRow) -> Iterator[Conversation]:
    key = "response" if "response" in row.values and "completion" not in row.values else "completion"
    prompt = row.text("prompt", "a prompt")
    yield _turn(prompt, row.text(key, "an answer").removesuffix(_END_OF_TEXT))


def _qa(row: FileRow) -> Iterator[Conversation]:
    yield _turn(row.text("question", "a prompt"), row.text("answer", "an answer"))


def _chat(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(turns_of(row, "messages"), row)


def _sharegpt(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(_turns(row, "conversations", "from", "value", _SHAREGPT_ROLES), row)


def _spin(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(turns_of(row, "real"), row)


def _preference(row: FileRow) -> Iterator[Conversation]:
    yield _with_prompt(preferred(row, "chosen"), row)


def preferred(row: FileRow, side: str) -> Conversation:
    """The conversation that ends in one side of a preference row: prompt and answer are texts or lists of messages."""
    prompt, answer = row.values.get("prompt"), row.values.get(side)
    before = turns_of(row, "prompt", answered=False) if isinstance(prompt, list) else None
    if isinstance(answer, list):
        said = turns_of(row, side)
        if before is None and said[0].role == "assistant":
            before = (Message("user", row.text("prompt", "a prompt")),)
    else:
        said = (Message("assistant", row.text(side, "an answer")),)
        before = before or (Message("user", row.text("prompt", "a prompt")),)
    # some preference data repeats the prompt in both sides
    return said if before is None or said[: len(before)] == before else (*before, *said)


def turns_of(row: FileRow, key: str, answered: bool = True) -> Conversation:
    """The messages under ``key``. Raises DataError for unknown roles, and where they do not end with an answer."""
    return _turns(row, key, "role", "content", _CHAT_ROLES, answered)


def _turns(
    row: FileRow, key: str, role_key: str, text_key: str, roles: dict[str, Role], answered: bool = True
) -> Conversation:
    messages = []
    for turn in row.objects(key, "an answer"):
        role = turn.text(role_key, "a role")
        if role not in roles:
            raise DataError(f"{turn.where}: unknown role '{role}'; use {', '.join(roles)}")
        messages.append(Message(roles[role], turn.text(text_key, "a text")))
    if answered and messages[-1].role != "assistant":
        raise DataError(
            f"{row.where}: a row without an answer (its last turn is the {messages[-1].role}'s); "
            "end it with an assistant turn or delete the row"
        )
    return tuple(messages)


def _with_prompt(conversation: Conversation, row: FileRow) -> Conversation:
    if all(message.role != "user" for message in conversation):
        raise DataError(f"{row.where}: a row without a prompt (no user turn); add one or delete the row")
    return conversation


# In the order of recognition: chat data often carries a `prompt` beside its `messages`.
FORMATS: tuple[Format, ...] = (
    Format("chat", (("messages",),), _chat),
    Format("sharegpt", (("conversations",),), _sharegpt),
    Format("seeds", (("instruction", "instances"),), _seeds),
    Format("alpaca", (("instruction", "output"),), _alpaca),
    Format("prompt", (("prompt", "completion"), ("prompt", "response")), _prompt),
    Format("qa", (("question", "answer"),), _qa),
    Format("spin", (("real", "generated"),), _spin),
    Format("preference", (("prompt", "chosen", "rejected"),), _preference),
)
