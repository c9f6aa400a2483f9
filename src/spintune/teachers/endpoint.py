"""A teacher behind an OpenAI-compatible endpoint: a hosted model, or a server on this machine.

A failed request has one of these reasons. It is counted, stored and shown; only many failures in a row end the run:

=============  ====================================================================================
bad_request    the server refuses this request (status 400 or another of its kind)
rate_limited   status 429, also after all retries
server_error   status 500 or more, also after all retries
timeout        no complete answer in time, also after all retries
disconnected   the connection broke while the request was under way, also after all retries
malformed      the response is not the JSON of an answer: a web page, half a document, no choices, no content
unfinished     the answer's finish_reason is missing, or is none that ends a text
only_reasoning the answer ended in its thought, but not for its length
too_large      the response has more than 4 MB
=============  ====================================================================================
"""

from __future__ import annotations

import asyncio
import functools
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, Self

import httpx2
import openai
from pydantic import SecretStr

from spintune.errors import BudgetError, RecipeError, TeacherError
from spintune.progress import Progress, Silent
from spintune.teachers.addresses import ForbiddenAddressError
from spintune.teachers.budget import Budget, Ledger, LedgerCall
from spintune.teachers.event_loop import event_loop
from spintune.teachers.parameters import Parameters
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Usage, counts_too_few
from spintune.teachers.transport import (
    BODY_LIMIT,
    CALL,
    Connection,
    OutOfBudgetError,
    TooLargeError,
    checked_url,
    key_in,
    proxy_for,
)
from spintune.teachers.wire import ONLY_REASONING, UNFINISHED, one_line, parse_answer, server_says

__all__ = ["Budget", "Endpoint", "EndpointTeacher"]

_MIN_FAILURES_IN_A_ROW = 8
# Fields that the request or the protocol sets. n and best_of would also cost more than was reserved.
_OPTIONAL_FIELDS = {"stop", "presence_penalty", "frequency_penalty"}
_RESERVED_FIELDS = {
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "n", "best_of", "stream", "echo"),
    *_OPTIONAL_FIELDS,
}


@dataclass(frozen=True)
class Endpoint:
    """Address of a teacher, and how to ask it.

    Attributes:
        base_url: the address before ``/chat/completions`` or ``/completions``; it usually ends with ``/v1``.
        style: "chat" sends the messages; "completions" sends their contents, separated by empty lines, and then the
            beginning of the answer.
        key_variable: the environment variable with the key for this host; its name ends with API_KEY. "" sends no key.
            None means OPENAI_API_KEY for api.openai.com, and no key for other hosts.
        concurrency: requests under way at a time.
        timeout_seconds: for one attempt, from connecting to the last byte.
        max_retries: after refusals that may pass (408, 409, 429, 5xx), lost connections and timeouts. The server says
            how long to wait, up to two minutes; if it does not, the waits double from 0.5 s to 8 s.
        extra: more fields of the request's JSON, such as ``{"reasoning_effort": "low"}``; None leaves out a field that
            would be sent otherwise (temperature, top_p, penalties, stop). Answers are cut at stop texts in any case.
        max_tokens_field: newer models of some providers require "max_completion_tokens".
        thinking_tokens: what a reasoning model may think before each answer, on top of the request's ``max_tokens``.

    A parameter that the server refuses by name is left out from then on, or sent by its other name.

    Raises RecipeError for values out of range, and for an ``extra`` that sets a field of the request.
    """

    base_url: str
    model: str
    style: Literal["chat", "completions"] = "chat"
    key_variable: str | None = None
    concurrency: int = 8
    timeout_seconds: float = 300.0
    max_retries: int = 5
    budget: Budget = field(default_factory=Budget)
    extra: Mapping[str, object] = field(default_factory=dict)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    thinking_tokens: int = 0

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout_seconds <= 0 or self.max_retries < 0:
            raise RecipeError(
                "a teacher needs a concurrency of 1 or more, timeout_seconds above 0, max_retries of 0 or more"
            )
        if reserved := sorted(_RESERVED_FIELDS & self._set_by_extra()):
            raise RecipeError(
                f"extra may not set {', '.join(reserved)}: the request sets it, or its cost would not be known"
            )

    def _set_by_extra(self) -> set[str]:
        left_out = {name for name in _OPTIONAL_FIELDS if name in self.extra and self.extra[name] is None}
        return set(self.extra) - left_out


class EndpointTeacher:
    """Asks an endpoint many requests at a time, through OpenAI's client and its retries.

    The key goes to the host of ``base_url`` and nowhere else: the last step before the connection adds it, and no
    redirect is followed. Of the environment, only these variables are read: the key's, and for other machines those of
    the proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY) and of certificates (SSL_CERT_FILE, SSL_CERT_DIR).

    Args:
        environment: holds the key's variable, such as ``os.environ``; empty for an endpoint without a key.
        spent: what earlier runs used of the budget.
        progress: is told, once each, what the server refuses and what is strange about its answers.

    Raises TeacherError when the address is not valid, or no key may or can be sent there.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        environment: Mapping[str, str] = MappingProxyType({}),
        spent: Usage = Usage(),  # noqa: B008 -- frozen
        progress: Progress = Silent(),  # noqa: B008 -- it keeps nothing
    ) -> None:
        self._endpoint = endpoint
        self._progress = progress
        self._told: set[str] = set()
        self._parameters = Parameters(endpoint.model, endpoint.style, endpoint.max_tokens_field, endpoint.extra)
        self._url = checked_url(endpoint.base_url)
        self._key_variable = endpoint.key_variable
        if self._key_variable is None:
            self._key_variable = "OPENAI_API_KEY" if self._url.host == "api.openai.com" else ""
        key = key_in(environment, self._key_variable, self._url) if self._key_variable else SecretStr("")
        self._proxy = proxy_for(self._url, environment)
        self._connection = Connection(
            self._url, key, self._proxy, endpoint.concurrency, endpoint.timeout_seconds, endpoint.max_retries
        )
        self._tls = httpx2.create_ssl_context()
        self._ledger = Ledger(endpoint.budget, spent)
        self._in_a_row = 0
        self.on_attempt: Callable[[int, Usage], None] = lambda index, usage: None
        """Is told of each attempt, by the request's index, before it may cost anything; see LedgerCall."""

    @property
    def name(self) -> str:
        return f"{self._endpoint.model} at {self._url.netloc.decode()}"

    @property
    def identity(self) -> dict[str, object]:
        return {
            "kind": "endpoint",
            "base_url": str(self._url),
            "model": self._endpoint.model,
            "style": self._endpoint.style,
            "extra": dict(self._endpoint.extra),
            **({"thinking_tokens": self._endpoint.thinking_tokens} if self._endpoint.thinking_tokens else {}),
        }

    @property
    def usage(self) -> Usage:
        """What was used so far, by earlier runs as well."""
        return self._ledger.spent

    @property
    def dollars(self) -> float:
        """The cost at the budget's prices. [US dollars]"""
        return self._endpoint.budget.cost(self.usage).dollars

    def as_sent(self, request: Request) -> Request:
        """The request as it is sent, and charged: with the tokens of a thought."""
        return replace(request, max_tokens=request.max_tokens + self._endpoint.thinking_tokens)

    def ask(self, requests: Sequence[Request]) -> Generator[tuple[int, Outcome], None, None]:
        """See :class:`spintune.teachers.protocol.Teacher`.

        Requests proceed only while the caller waits for the next outcome, so at most ``concurrency`` of them are under
        way, or answered and not yet yielded. Inside a running event loop, such as a notebook's, they run in a thread.

        Raises also TeacherError when max(8, concurrency) requests in a row fail, counted over all calls.
        """
        with event_loop() as run:
            outcomes = self._outcomes([*map(self.as_sent, requests)])
            try:
                while (found := run(_next(outcomes))) is not None:
                    yield found
            finally:
                run(outcomes.aclose())

    async def _outcomes(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Outcome], None]:
        async with self._connection.client(self._tls) as client, self._calls(requests) as calls:
            while calls.unfinished:
                calls.start(lambda call: self._one(client, call))
                if not calls.under_way:
                    raise BudgetError(self._budget_error_text())
                for index, outcome in calls.settled(await calls.done()):
                    calls.trouble = calls.trouble or self._too_many_failures(outcome)
                    yield index, outcome
                if calls.trouble:  # only now: what finished along with it has been yielded
                    raise calls.trouble

    def _calls(self, requests: Sequence[Request]) -> _Calls:
        calls = [
            (index, LedgerCall(request, self._ledger, functools.partial(self.on_attempt, index)))
            for index, request in enumerate(requests)
        ]
        return _Calls(calls, self._endpoint.concurrency)

    def _too_many_failures(self, outcome: Outcome) -> TeacherError | None:
        """The error for too many failures in a row: one may be the request's fault, many are the teacher's."""
        if isinstance(outcome, Reply):
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row < max(_MIN_FAILURES_IN_A_ROW, self._endpoint.concurrency):
            return None
        last = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
        return TeacherError(
            f"{self._url}: no answer for {self._in_a_row} requests in a row (last: {last}); "
            "check the server and run again"
        )

    def _budget_error_text(self) -> str:
        budget, usage = self._endpoint.budget, self.usage
        price = "" if budget.dollars is None else f" (${self.dollars:,.2f})"
        return (
            f"{self.name}: {usage.requests:,} requests used {usage.tokens:,} tokens{price}, and the budget of {budget} "
            "does not cover what the next one may cost; all replies are kept; raise the budget and run again"
        )

    async def _one(self, client: openai.AsyncOpenAI, call: LedgerCall) -> Outcome:
        """Asks one request. Raises TeacherError when asking others is useless too."""
        CALL.set(call)
        path = "/chat/completions" if self._endpoint.style == "chat" else "/completions"
        while True:
            sent = self._parameters.body(call.request)
            try:
                response = await client.post(path, body=sent, cast_to=httpx2.Response)
            except TooLargeError:
                return Failure("too_large", f"more than {BODY_LIMIT // 1_000_000} MB")
            except ForbiddenAddressError as error:
                raise TeacherError(f"{self._url}: {error}; give another address") from None
            except openai.APIStatusError as error:
                if self._adapted(sent, error):
                    continue
                return self._refusal(error)
            except openai.APIConnectionError as error:
                return self._no_connection(error.__cause__ or error)
            outcome = parse_answer(response.content, self._endpoint.style, call.request.stop)
            if self._stopped_in_thought(outcome, sent):
                call.lose()
                continue
            return self._checked(outcome, call)

    def _adapted(self, sent: Mapping[str, object], error: openai.APIStatusError) -> bool:
        """Whether the error refuses a parameter that the next attempt can do without."""
        if error.status_code not in (400, 422):
            return False
        again, told = self._parameters.adapt(sent, error.body)
        if told:
            self._tell(told)
        return again

    def _stopped_in_thought(self, outcome: Outcome, sent: Mapping[str, object]) -> bool:
        """Whether a stop text ended the thought of a reasoning model. Stop texts are for its answer: cut it here."""
        if "stop" not in sent or not isinstance(outcome, Failure) or outcome.reason != ONLY_REASONING:
            return False
        self._parameters.refuse("stop")
        self._tell("asked without stop, which ended its thought before the answer")
        return True

    def _checked(self, outcome: Outcome, call: LedgerCall) -> Outcome:
        """The outcome with what was left out of its request; a failure counts as charged."""
        if isinstance(outcome, Reply):
            if counts_too_few(call.request, outcome):
                self._tell("counts no tokens, or too few for its texts; they are estimated by the length of the texts")
            return replace(outcome, left_out=self._parameters.left_out(call.request))
        if outcome.reason == UNFINISHED:
            self._tell(f"answers with {outcome.detail} count as failed, because it does not say that they are complete")
        call.lose()
        return outcome

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._progress.note(f"{self.name}: {text}")

    def _refusal(self, error: openai.APIStatusError) -> Outcome:
        """The failure that an error status means for its request. Raises TeacherError if it concerns all requests."""
        says = server_says(error.body)
        quoted = f" (the server says: {says})" if says else ""
        match error.status_code:
            case 401 | 403:
                raise TeacherError(f"{self._url}: status {error.status_code}: {self._about_key()}{quoted}")
            case 402:
                raise TeacherError(
                    f"{self._url}: status 402: the account is out of money{quoted}; top it up, run again"
                )
            case 429 if error.code == "insufficient_quota":
                raise TeacherError(f"{self._url}: the account's quota is used up{quoted}; raise it and run again")
            case 404:
                raise TeacherError(
                    f"{self._url}: status 404: no such model ({self._endpoint.model}) or address{quoted}; "
                    "check the teacher's model and url, which usually ends with /v1"
                )
            case code if 300 <= code < 400:
                target = one_line(error.response.headers.get("location", "another address"))
                raise TeacherError(f"{self._url}: redirects to {target}, which is not followed; give the final url")
            case 408:
                return Failure("timeout", says)
            case 429:
                return Failure("rate_limited", says)
            case code if code >= 500:
                return Failure("server_error", says)
        if error.code == "content_filter":
            return Reply("", "refused", 0, 0)
        return Failure("bad_request", says)

    def _about_key(self) -> str:
        if not self._key_variable:
            return "the server requires a key; export it as a variable ..._API_KEY and give its name as key_variable"
        return f"the server does not accept the key in {self._key_variable}; export the right one"

    def _no_connection(self, cause: BaseException) -> Outcome:
        """The failure of a lost connection. Raises TeacherError if there was no connection at all."""
        match cause:
            case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.ProxyError() | ssl.SSLError():
                through = " through the proxy" if self._proxy else ""
                why = one_line(str(cause)) or type(cause).__name__
                raise TeacherError(
                    f"{self._url}: cannot connect{through} ({why}); check the url and that the server runs"
                ) from None
            case httpx2.TimeoutException():
                return Failure("timeout", f"no answer in {self._endpoint.timeout_seconds:g} s")
            case httpx2.DecodingError():
                return Failure("malformed", "the response cannot be decompressed")
        return Failure("disconnected", one_line(str(cause)))


async def _next(outcomes: AsyncGenerator[tuple[int, Outcome], None]) -> tuple[int, Outcome] | None:
    return await anext(outcomes, None)


class _Calls:
    """The requests of one call to ``ask``: those that wait, and those under way.

    On exit, requests under way are cancelled, and count as charged.

    Attributes:
        trouble: the error to raise once the outcomes that came with it are yielded.
    """

    def __init__(self, calls: Sequence[tuple[int, LedgerCall]], concurrency: int) -> None:
        self._waiting = deque(calls)
        self._concurrency = concurrency
        self.under_way: dict[asyncio.Task[Outcome], tuple[int, LedgerCall]] = {}
        self.trouble: BaseException | None = None

    @property
    def unfinished(self) -> bool:
        return bool(self._waiting or self.under_way)

    def start(self, ask: Callable[[LedgerCall], Coroutine[None, None, Outcome]]) -> None:
        """Starts as many requests as concurrency and budget allow: near the end of a budget fewer, the last singly."""
        waiting = self._waiting
        while waiting and len(self.under_way) < self._concurrency and waiting[0][1].reserve():
            index, call = waiting.popleft()
            self.under_way[asyncio.create_task(ask(call))] = index, call

    async def done(self) -> list[asyncio.Task[Outcome]]:
        """Waits until a request is done, and returns all that are, in their order."""
        done, _ = await asyncio.wait(self.under_way, return_when=asyncio.FIRST_COMPLETED)
        return sorted(done, key=lambda task: self.under_way[task][0])

    def settled(self, done: Sequence[asyncio.Task[Outcome]]) -> Iterator[tuple[int, Outcome]]:
        """Settles requests with the budget one by one, and yields their outcomes."""
        for task in done:
            index, call = self.under_way.pop(task)
            match task.exception():
                case None:
                    yield index, call.settle(task.result())
                case OutOfBudgetError():
                    self._waiting.appendleft((index, call))
                case error:
                    call.release()
                    self.trouble = self.trouble or error

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        for task, (_, call) in self.under_way.items():
            task.cancel()
            if isinstance(self.trouble, TeacherError):  # no key, no connection: not answered, as the others were not
                call.release()
            else:
                call.give_up()
        await asyncio.gather(*self.under_way, return_exceptions=True)
