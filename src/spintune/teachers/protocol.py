"""What is asked of a teacher or a judge, and what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from spintune.records import Message

Ending = Literal["stop", "length", "refused"]


@dataclass(frozen=True)
class Request:
    """One question to a teacher. Equal requests have equal replies, so ``draw`` tells repeated ones apart.

    Attributes:
        messages: the conversation; it ends with a user message.
        begin: how the answer begins. A teacher that can continues it (a completions endpoint, a model on this machine);
            a chat endpoint is only told what the messages tell it. A reply may or may not repeat it.
        max_tokens: room for the answer. [tokens]
        stop: texts that end the answer; they are not part of it.
        draw: number among equal requests.
    """

    messages: tuple[Message, ...]
    begin: str = ""
    max_tokens: int = 1024
    temperature: float = 1.0
    top_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop: tuple[str, ...] = ()
    draw: int = 0

    def to_json(self) -> dict[str, Any]:
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return {**vars(self), "messages": messages, "stop": list(self.stop)}


@dataclass(frozen=True)
class Reply:
    """What a teacher wrote.

    Attributes:
        ending: "length" when it ran out of room, "refused" when the provider withheld it (content filter).
        prompt_tokens, completion_tokens: what the provider counted; None when it did not say.
    """

    text: str
    ending: Ending
    prompt_tokens: int | None = None
    completion_tokens: int | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Reply:
        return cls(**row)


@dataclass(frozen=True)
class Failure:
    """A request that got no usable answer, after all retries; ``reason`` is a short name to count by."""

    reason: str
    detail: str = ""


Outcome = Reply | Failure


class Teacher(Protocol):
    """Answers requests."""

    @property
    def name(self) -> str:
        """What stands in the provenance of an example: the model, and where it runs."""

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the request; no secrets."""

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        """Yields the outcome of each request with its index, in the order in which they come.

        Raises:
            TeacherError: nothing can come of asking on (no key, no such model or address).
            BudgetError: the next request would pass the budget; outcomes before it were yielded.
        """
