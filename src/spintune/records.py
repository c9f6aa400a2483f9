"""The records that stages hand to each other: frozen, typed, and stored as JSON lines.

==========  =====================================================================
Message     one turn: a role and its text
Example     a conversation that ends in a reference answer (or several of them)
Completion  what a generator returned for one prompt: ids, text, finish reason
Pair        one prompt with a real and a generated response, and what the
            opponent thinks of both
==========  =====================================================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

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
class Pair:
    """One prompt, its real and its generated response, and the opponent's log-probability of each (nats, summed)."""

    example_id: str
    prompt_ids: tuple[int, ...]
    real_ids: tuple[int, ...]
    generated_ids: tuple[int, ...]
    generated_text: str
    real_complete: bool
    generated_complete: bool
    opponent_real: float
    opponent_generated: float

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Pair:
        ids = {key: tuple(row[key]) for key in ("prompt_ids", "real_ids", "generated_ids")}
        return cls(**{**row, **ids})


Record = TypeVar("Record", Example, Completion, Pair)


def write_records(path: Path, records: Iterable[Example | Completion | Pair]) -> None:
    """Writes all records to ``path`` as JSON lines; the file is complete or absent."""
    with atomic_file(path) as file:
        for record in records:
            file.write(orjson.dumps(record.to_json()) + b"\n")


def read_records(path: Path, kind: type[Record]) -> list[Record]:
    """Reads a file of :func:`write_records`.

    Raises RunError with ``path:line`` for a row that is not such a record.
    """
    return list(_records(path, kind))


def _records(path: Path, kind: type[Record]) -> Iterator[Record]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield kind.from_json(orjson.loads(line))
            except (orjson.JSONDecodeError, KeyError, TypeError) as error:
                raise RunError(
                    f"{path}:{number}: not a {kind.__name__} record ({error}); delete the file and run again"
                ) from error
