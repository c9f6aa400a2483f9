"""What is asked of a teacher or a judge, what comes back, and what it may cost."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from spintune.records import Message

Ending = Literal["stop", "length", "refused"]

# A chat template adds markers to each message, and some add a system prompt of their own. [tokens]
_TEMPLATE_TOKENS_PER_MESSAGE = 16
_TEMPLATE_TOKENS = 256


@dataclass(frozen=True)
class Usage:
    """How much was asked for, by the provider's own count. Prices are the budget's business."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.completion_tokens

    def __add__(self, other: Usage) -> Usage:
        return Usage(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: Usage) -> Usage:
        return self + other * -1

    def __mul__(self, times: int) -> Usage:
        return Usage(self.requests * times, self.prompt_tokens * times, self.completion_tokens * times)


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

    @property
    def ceiling(self) -> Usage:
        """The most that one attempt to answer can use, without knowing the tokenizer.

        A token stands for at least one byte, so the UTF-8 length bounds the prompt; the rest is room for a chat
        template. Four bytes of English make about one token: most of this comes back once the answer is there.

            >>> Request((Message("user", "hello"),), max_tokens=10).ceiling
            Usage(requests=0, prompt_tokens=277, completion_tokens=10)
        """
        texts = [self.begin, *(message.content for message in self.messages)]
        template = _TEMPLATE_TOKENS + _TEMPLATE_TOKENS_PER_MESSAGE * len(self.messages)
        return Usage(0, sum(len(text.encode()) for text in texts) + template, self.max_tokens)

    def to_json(self) -> dict[str, Any]:
        messages = [{"role": m.role, "content": m.content} for m in self.messages]
        return {**vars(self), "messages": messages, "stop": list(self.stop)}


@dataclass(frozen=True)
class Reply:
    """What a teacher wrote.

    Attributes:
        ending: "length" when it ran out of room, "refused" when the provider withheld it (content filter).
        prompt_tokens, completion_tokens: what the provider counted; None when it did not say.
        lost: attempts before this one that broke off and may have been charged all the same.
    """

    text: str
    ending: Ending
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    lost: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Reply:
        return cls(**row)


@dataclass(frozen=True)
class Failure:
    """A request that got no usable answer, after all retries.

    Attributes:
        reason: a short name to count by.
        lost: attempts that may have been charged all the same; none when the provider refused each of them.
    """

    reason: str
    detail: str = ""
    lost: int = 0

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, row: dict[str, Any]) -> Failure:
        return cls(**row)


Outcome = Reply | Failure


def usage_of(request: Request, outcome: Outcome) -> Usage:
    """What an outcome used. Where nobody counted, the ceiling stands: rather too much than too little."""
    ceiling = request.ceiling
    used = Usage(requests=1) + ceiling * outcome.lost
    if isinstance(outcome, Failure):
        return used
    prompt, completion = outcome.prompt_tokens, outcome.completion_tokens
    return used + Usage(
        prompt_tokens=ceiling.prompt_tokens if prompt is None else prompt,
        completion_tokens=ceiling.completion_tokens if completion is None else completion,
    )


class Teacher(Protocol):
    """Answers requests."""

    @property
    def name(self) -> str:
        """What stands in the provenance of an example: the model, and where it runs."""

    @property
    def identity(self) -> dict[str, Any]:
        """What an answer depends on besides the request; no secrets."""

    def ask(self, requests: Sequence[Request]) -> Generator[tuple[int, Outcome], None, None]:
        """Yields the outcome of each request with its index, in the order in which they come.

        Closing the generator gives up what is under way.

        Raises:
            TeacherError: nothing can come of asking on (no key, no such model or address).
            BudgetError: the next request could pass the budget; outcomes before it were yielded.
        """
