"""Requests to a teacher or a judge, its replies, what they may cost, and the interface of a teacher.

A teacher of your own is any object with a ``name``, an ``identity`` and ``ask``::

    class Shouting:
        name = "shouting"
        identity = {"kind": "shouting", "version": 1}

        def ask(self, requests):
            for index, request in enumerate(requests):
                yield index, Reply(request.messages[-1].content.upper())

Pass it to :func:`spintune.synthesis.pipeline.synthesize`, or make it known to recipes with
:func:`spintune.teachers.registry.register_teacher`. For a plain function of the request, there is
:class:`spintune.teachers.scripted.ScriptedTeacher`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

import orjson

from spintune.records import Message
from spintune.typed_json import JsonObject

Ending = Literal["stop", "length", "refused"]

# A chat template adds markers to each message, and some templates add a system prompt. [tokens]
_TEMPLATE_TOKENS_PER_MESSAGE = 16
_TEMPLATE_TOKENS = 256


@dataclass(frozen=True)
class Usage:
    """Requests made, and tokens by the provider's own count."""

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
    """One question to a teacher. Equal requests get equal replies; ``draw`` tells repetitions of a request apart.

    All fields are part of the key of a stored reply, so a new field would make every stored reply unusable.

    Attributes:
        messages: the conversation; it ends with a user message.
        begin: how the answer begins. A model on this machine and a completions endpoint continue it; a chat endpoint
            does not see it. A reply may or may not repeat it.
        max_tokens: longest answer. [tokens]
        stop: texts that end the answer and are not part of it.
        draw: number among otherwise equal requests.
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
        """The most that one attempt to answer can use, for any tokenizer.

        A token stands for at least one byte, so the UTF-8 length bounds the prompt; the rest is for a chat template.
        Four bytes of English make about one token, so most of the ceiling is free again once the answer has come.

            >>> Request((Message("user", "hello"),), max_tokens=10).ceiling
            Usage(requests=0, prompt_tokens=277, completion_tokens=10)
        """
        texts = [self.begin, *(message.content for message in self.messages)]
        template = _TEMPLATE_TOKENS + _TEMPLATE_TOKENS_PER_MESSAGE * len(self.messages)
        return Usage(0, sum(len(text.encode()) for text in texts) + template, self.max_tokens)

    def to_json(self) -> JsonObject:
        """The request as plain values. Optional fields of a message stay out: keys of stored replies depend on this."""
        values: JsonObject = orjson.loads(orjson.dumps(self))
        return values


@dataclass(frozen=True)
class Reply:
    """A teacher's answer.

    Attributes:
        ending: "length" if it reached ``max_tokens``, "refused" if the provider withheld it (content filter).
        prompt_tokens, completion_tokens: the provider's count; None if it gave none.
        lost: earlier attempts that were interrupted and may have been charged.
        reasoning: what the teacher thought before its answer; never part of ``text``.
        left_out: parameters of the request that the server refuses, so that it was asked without them.
    """

    text: str
    ending: Ending = "stop"
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    lost: int = 0
    reasoning: str = ""
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Failure:
    """A request without a usable answer, after all retries.

    Attributes:
        reason: a short name, by which failures are counted.
        lost: attempts that may have been charged; 0 if the provider refused each of them.
    """

    reason: str
    detail: str = ""
    lost: int = 0


Outcome = Reply | Failure


_BYTES_OF_A_TOKEN = 3  # few enough for a fair estimate in most languages; English has 4 to 5
_MOST_BYTES_OF_A_TOKEN = 8  # on average over a text; a provider that counts fewer tokens does not count


def usage_of(request: Request, outcome: Outcome) -> Usage:
    """What an outcome used.

    Where the provider gave no count, it is estimated from the texts, at most as the ceiling: a token for 3 bytes. Where
    it gave one that is too small for the texts (a token for 8 bytes), that counts.
    """
    ceiling = request.ceiling
    used = Usage(requests=1) + ceiling * outcome.lost
    if isinstance(outcome, Failure):
        return used
    asked = _size(request.begin, *(message.content for message in request.messages))
    thought, said = _size(outcome.reasoning), _size(outcome.text)
    template = _TEMPLATE_TOKENS_PER_MESSAGE * len(request.messages)
    most = request.max_tokens + thought // _BYTES_OF_A_TOKEN
    return used + Usage(
        prompt_tokens=_counted(outcome.prompt_tokens, asked, asked // _BYTES_OF_A_TOKEN + template + 1),
        completion_tokens=_counted(
            outcome.completion_tokens, thought + said, min(most, (thought + said) // _BYTES_OF_A_TOKEN + 1)
        ),
    )


def counts_too_few(request: Request, reply: Reply) -> bool:
    """Whether a provider's count of tokens is missing, or too small for the texts."""
    used = usage_of(request, replace(reply, lost=0))
    return (used.prompt_tokens, used.completion_tokens) != (reply.prompt_tokens, reply.completion_tokens)


def _counted(count: int | None, size: int, estimate: int) -> int:
    return estimate if count is None else max(count, size // _MOST_BYTES_OF_A_TOKEN)


def _size(*texts: str) -> int:
    return sum(len(text.encode(errors="replace")) for text in texts)


class Teacher(Protocol):
    """Answers requests."""

    @property
    def name(self) -> str:
        """What people read, and what the provenance of an example says: the model, and where it runs."""

    @property
    def identity(self) -> Mapping[str, object]:
        """What an answer depends on besides the request, as JSON values; no secrets.

        Replies are stored under identity and request: a teacher with another identity is asked again.
        """

    def ask(self, requests: Sequence[Request]) -> Iterable[tuple[int, Outcome]]:
        """Yields the outcome of each request with its index, in any order.

        Each outcome is stored as soon as it is yielded. A generator is closed when nobody waits for the rest.

        Raises:
            TeacherError: asking on is useless (no key, no such model or address).
            BudgetError: the next request could pass the budget; the outcomes before it were yielded.
        """
