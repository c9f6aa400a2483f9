"""The records that stages hand to each other: frozen, typed, and stored as JSON lines.

==========  =====================================================================
Message     one turn: a role and its text
Example     a conversation that ends in a reference answer (or several of them)
Completion  what a generator returned for one prompt: ids, text, finish reason
Answer      one response of a pair, and how likely frozen iterates find it
Pair        one prompt with its real and its generated responses
==========  =====================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self, TypeVar

import orjson

from spintune.errors import RunError
from spintune.storage import atomic_file

Role = Literal["system", "user", "assistant"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant")

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Example:
    """A conversation. ``messages`` ends with the assistant's reference answer.

    ``source`` says where the row came from (``path:line``), for error messages; it is not part of the identity.
    """

    messages: tuple[Message, ...]
    source: str = ""

    @cached_property
    def id(self) -> str:
        """Content address: equal conversations have equal ids, wherever they were read."""
        text = orjson.dumps([[m.role, m.content] for m in self.messages])
        return hashlib.sha256(text).hexdigest()[:16]

    @property
    def prompt(self) -> tuple[Message, ...]:
        """Everything before the last assistant turn."""
        return self.messages[:-1]

    @property
    def answer(self) -> str:
        """The reference answer: the content of the last assistant turn."""
        return self.messages[-1].content

    def to_json(self) -> dict[str, Any]:
        return {
            "messages": [{"role": m.role, "content": m.content} for m in self.messages],
            "source": self.source,
        }

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Example:
        return cls(tuple(Message(m["role"], m["content"]) for m in row["messages"]), row.get("source", ""))


@dataclass(frozen=True)
class Completion:
    """What a generator wrote for one prompt.

    ``ids`` holds every token that was sampled, so it ends with the stop token exactly when ``finish_reason`` is
    "stop": a completion that ran out of room carries no end-of-turn. ``text`` leaves the stop token out.
    ``logprob`` is the sum over ``ids`` of the sampler's own log-probabilities, in nats.
    """

    ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprob: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Completion:
        return cls(tuple(row["ids"]), row["text"], row["finish_reason"], row["logprob"])


@dataclass(frozen=True)
class Answer:
    """One response of a pair, and how likely frozen iterates find it (log-probabilities in nats, summed).

    Attributes:
        ids: its tokens; the last one ends the turn exactly when ``complete``.
        text: the tokens as text, without control tokens.
        complete: False when it was cut for want of room.
        opponent: under the opponent of the iteration that trains on it; None before it was scored.
        base: under iterate 0; None where nothing asks for it.
        sampled: under the distribution it was drawn from, as the generator saw it; None when nobody drew it, or when
            it was cut afterwards.
    """

    ids: tuple[int, ...]
    text: str
    complete: bool
    opponent: float | None = None
    base: float | None = None
    sampled: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Answer:
        return cls(**{**row, "ids": tuple(row["ids"])})


@dataclass(frozen=True)
class Pair:
    """One prompt with its real response and one or more generated ones.

    Attributes:
        example_id: the example that prompt and real response come from.
        real: the reference answer.
        generated: answers of the writer, in the order in which they were drawn.
        first: iterate 0's answer, for losses that look back to it (T-SPIN); else None.
        writer: name of the iterate that wrote ``generated``.
        weight: share in the step's mean loss, relative to other pairs.
    """

    example_id: str
    prompt_ids: tuple[int, ...]
    real: Answer
    generated: tuple[Answer, ...]
    first: Answer | None = None
    writer: str = ""
    weight: float = 1.0

    @property
    def answers(self) -> tuple[Answer, ...]:
        """Everything that is scored for it: the real answer, the generated ones, iterate 0's."""
        return (self.real, *self.generated) if self.first is None else (self.real, *self.generated, self.first)

    def to_json(self) -> dict[str, Any]:
        answers = {"real": self.real.to_json(), "generated": [answer.to_json() for answer in self.generated]}
        return {**vars(self), **answers, "first": self.first and self.first.to_json()}

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Pair:
        return cls(
            example_id=row["example_id"],
            prompt_ids=tuple(row["prompt_ids"]),
            real=Answer.from_json(row["real"]),
            generated=tuple(map(Answer.from_json, row["generated"])),
            first=row["first"] and Answer.from_json(row["first"]),
            writer=row["writer"],
            weight=row["weight"],
        )


class Storable(Protocol):
    """What is stored as a line of JSON."""

    def to_json(self) -> dict[str, Any]: ...

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Self: ...


Record = TypeVar("Record", bound=Storable)


def write_records(path: Path, records: Iterable[Storable]) -> None:
    """Writes all records to ``path`` as JSON lines; the file is complete or absent."""
    with atomic_file(path) as file:
        for record in records:
            file.write(orjson.dumps(record.to_json()) + b"\n")


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Reads a file of :func:`write_records` into memory. ``RecordFile`` leaves it on disk.

    Raises RunError with ``path:line`` for a row that is not such a record.
    """
    with path.open("rb") as file:
        return [parse_record(line, kind, path, number) for number, line in enumerate(file, 1)]


def parse_record(line: bytes, kind: type[Record], path: Path, number: int) -> Record:
    """The record that line ``number`` of a file holds. Raises RunError when it holds none."""
    try:
        return kind.from_json(orjson.loads(line))
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise RunError(
            f"{path}:{number}: not a {kind.__name__} record ({error}); delete the file and run again"
        ) from error
