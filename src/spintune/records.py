"""The records that stages exchange: frozen, typed, and stored as JSON lines.

==========  ===========================================================================
Message     one turn: a role and its text, with reasoning and tool calls where it has them
Example     a conversation that ends in a reference answer (or several of them)
Completion  what a generator returns for one prompt: ids, text, finish reason
Answer      one response of a pair, with its log-probabilities under frozen iterates
Pair        one prompt with its real and its generated responses
==========  ===========================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import orjson
from pydantic import ConfigDict, ValidationError

from spintune.errors import RunError
from spintune.storage import write_json_lines
from spintune.typed_json import adapter, first_problem

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

FinishReason = Literal["stop", "length"]

_CLOSED = ConfigDict(extra="forbid")  # a row with an unknown field is of another version


class _OmitDefaults:
    """Base of frozen dataclasses whose optional fields stay out of JSON lines while they have their default.

    A default is an attribute of the class, so the instance need not hold it, and orjson writes what the instance holds.
    """

    _defaults: ClassVar[tuple[tuple[str, object], ...]] = ()

    def __init_subclass__(cls) -> None:
        own = vars(cls)
        cls._defaults = tuple((name, own[name]) for name in own.get("__annotations__", ()) if name in own)

    def __post_init__(self) -> None:
        own = vars(self)
        for name, default in self._defaults:
            if own[name] is default or own[name] == default:
                del own[name]


@dataclass(frozen=True)
class ToolCall:
    """A call of a tool by the assistant. ``arguments`` is a JSON object as text."""

    name: str
    arguments: str
    id: str = ""


@dataclass(frozen=True)
class Message(_OmitDefaults):
    """One turn of a conversation.

    Attributes:
        role: who speaks; "tool" gives the result of a call.
        content: the text, verbatim.
        reasoning: what an assistant thought before the content, without the marks of a template.
        tool_calls: the calls that an assistant's turn makes, after its content.
        call_id: of a tool's turn, the ``id`` of the call that it answers; "" where the data has none.
        name: of a tool's turn, the tool's name; "" where the data has none.
        trained: False keeps an assistant's turn out of the loss.
    """

    role: Role
    content: str
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    trained: bool = True


def plain_message(role: Role, content: str) -> Message:
    """A message without optional fields. Files have millions of them, and this takes a fifth of the time."""
    message = Message.__new__(Message)
    own = vars(message)
    own["role"], own["content"] = role, content
    return message


@dataclass(frozen=True)
class Example(_OmitDefaults):
    """A conversation that ends with the assistant's reference answer.

    ``source`` names the row it comes from (``path:line``), for error messages, and is not part of :attr:`id`.
    ``tools`` are the tools that the assistant may call, each a JSON object as text, as OpenAI's API describes one.
    """

    messages: tuple[Message, ...]
    source: str = ""
    tools: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """Digest of messages and tools: equal conversations have equal ids, wherever they were read."""
        found: str | None = vars(self).get("_id")
        if found is None:  # a cached_property takes a lock, and every row that is read is asked
            found = vars(self)["_id"] = self._digest()  # the underscore keeps it out of the JSON
        return found

    def _digest(self) -> str:
        plain = [[m.role, m.content] if len(vars(m)) == 2 else m for m in self.messages]
        text = orjson.dumps([plain, self.tools] if self.tools else plain)
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The reference answer: the content of the last assistant turn."""
        return self.messages[-1].content

    @property
    def answer_places(self) -> list[int]:
        """The places of the assistant turns to train on. One with no user or tool turn before it answers nothing."""
        asked, places = False, []
        for place, message in enumerate(self.messages):
            asked = asked or message.role in ("user", "tool")
            if asked and message.role == "assistant" and message.trained:
                places.append(place)
        return places


def plain_example(messages: tuple[Message, ...], source: str) -> Example:
    """An example without tools, in a fraction of the time, as :func:`plain_message`."""
    example = Example.__new__(Example)
    own = vars(example)
    own["messages"] = messages
    if source:
        own["source"] = source
    return example


@dataclass(frozen=True)
class Completion:
    """What a generator wrote for one prompt.

    Attributes:
        ids: every sampled token. The last one is a stop token exactly when ``finish_reason`` is "stop"; a completion
            that reached the length limit has none.
        text: the tokens as text, without the stop token.
        logprob: sum of the log-probabilities of ``ids`` under the distribution they were sampled from; of another
            engine's answers, under its model at temperature 1, or None where it does not say. [nats]
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprob: float | None


@dataclass(frozen=True)
class Answer:
    """One response of a pair, with its log-probabilities (sums over tokens, in nats).

    Attributes:
        ids: its tokens; the last one ends the turn exactly when ``complete``.
        text: the tokens as text, without control tokens.
        complete: False if it was cut at the length limit.
        opponent: log-probability under the opponent of the iteration that trains on it; None before scoring.
        base: log-probability under iterate 0; None if the loss does not need it.
        sampled: log-probability under the distribution it was sampled from, as the generator computed it (of another
            engine's answers, under its model at temperature 1); None if it was not sampled, or was cut afterwards, or
            that engine does not say.
    """

    __pydantic_config__ = _CLOSED

    ids: tuple[int, ...]
    text: str
    complete: bool
    opponent: float | None = None
    base: float | None = None
    sampled: float | None = None


@dataclass(frozen=True)
class Pair:
    """One prompt with its real response and one or more generated ones.

    Attributes:
        example_id: the example that prompt and real response come from.
        real: the reference answer.
        generated: answers of the iterate ``writer``, in the order in which they were sampled.
        first: iterate 0's answer, for losses that use it (T-SPIN); else None.
        writer: name of the iterate that wrote ``generated``.
        weight: weight in the step's mean loss, relative to other pairs.
    """

    __pydantic_config__ = _CLOSED

    example_id: str
    prompt_ids: tuple[int, ...]
    real: Answer
    generated: tuple[Answer, ...]
    first: Answer | None = None
    writer: str = ""
    weight: float = 1.0

    @property
    def answers(self) -> tuple[Answer, ...]:
        """All scored answers: the real one, the generated ones, and iterate 0's if there is one."""
        return (self.real, *self.generated) if self.first is None else (self.real, *self.generated, self.first)


Record = TypeVar("Record")


def write_records(path: Path, records: Iterable[object]) -> None:
    """Writes dataclasses as JSON lines. The file is complete or absent."""
    write_json_lines(path, records)


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Reads a file of :func:`write_records` into memory. ``RecordFile`` leaves it on disk.

    Raises RunError, which names ``path:line``, for a row that is not such a record.
    """
    try:
        with path.open("rb") as file:
            return [parse_record(line, kind, path, number) for number, line in enumerate(file, 1)]
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run the recipe again") from error


def parse_record(line: bytes, kind: type[Record], path: Path, number: int) -> Record:
    """The record of type ``kind`` on line ``number`` of a file. Raises RunError when it is not one."""
    try:
        record: Record = adapter(kind).validate_json(line)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = first_problem(error, "the line")
        raise RunError(
            f"{path}:{number}: not a {kind.__name__} record ({problem}); delete the file and run again"
        ) from error
    return record
