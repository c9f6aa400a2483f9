"""A teacher behind an OpenAI-compatible endpoint: a hosted model, or a server on this machine.

Failures have these reasons; each is counted, kept and shown, and none stops the run until too many come in a row:

=============  ====================================================================================
bad_request    the server refuses this request (status 400 or another of its kind)
rate_limited   status 429, also after all retries
server_error   status 500 or more, also after all retries
timeout        no complete answer in time, also after all retries
disconnected   the connection broke while the request was under way, also after all retries
malformed      not the JSON of an answer: a web page, a half document, no choices, no content
too_large      more than 4 MB
=============  ====================================================================================
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import httpx2
import openai
from pydantic import SecretStr

from spintune.errors import BudgetError, RecipeError, TeacherError
from spintune.teachers.budget import Budget, Ledger, LedgerCall
from spintune.teachers.protocol import Failure, Outcome, Reply, Request, Usage
from spintune.teachers.transport import (
    BODY_LIMIT,
    CALL,
    AuthTransport,
    OutOfBudgetError,
    TooLargeError,
    checked_url,
    key_in,
    proxy_for,
)
from spintune.teachers.wire import one_line, parse_answer, server_says

__all__ = ["Budget", "Endpoint", "EndpointTeacher"]

_CONNECT_SECONDS = 10.0
_LEAST_PATIENCE = 8
# They belong to the request or to the protocol; n and best_of would also cost more than was reserved.
_OURS = {
    *("model", "messages", "prompt", "max_tokens", "max_completion_tokens", "stop"),
    *("presence_penalty", "frequency_penalty", "n", "best_of", "stream", "echo"),
}


@dataclass(frozen=True)
class Endpoint:
    """Where a teacher is, and how it is asked.

    Attributes:
        base_url: what comes before ``/chat/completions`` or ``/completions``; it usually ends with ``/v1``.
        style: "chat" sends the messages. "completions" sends their contents, with empty lines between, and then how the
            answer begins.
        key_variable: the environment variable that holds the key for this host; its name ends with API_KEY. "" for no
            key. None for OPENAI_API_KEY at api.openai.com, and no key elsewhere.
        concurrency: requests under way at a time.
        timeout_seconds: for one attempt, from connecting to the last byte.
        max_retries: after refusals that may pass (408, 409, 429, 5xx), lost connections and timeouts. The waits are
            those that the server asks for, up to two minutes, else 0.5 s doubling to 8 s.
        extra: more fields of the request's JSON, such as ``{"reasoning_effort": "low"}``; None leaves a field out
            that would be sent otherwise (temperature, top_p).
        max_tokens_field: newer models of some providers want "max_completion_tokens".
    """

    base_url: str
    model: str
    style: Literal["chat", "completions"] = "chat"
    key_variable: str | None = None
    concurrency: int = 8
    timeout_seconds: float = 300.0
    max_retries: int = 5
    budget: Budget = field(default_factory=Budget)
    extra: Mapping[str, Any] = field(default_factory=dict)
    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"

    def __post_init__(self) -> None:
        if self.concurrency < 1 or self.timeout_seconds <= 0 or self.max_retries < 0:
            raise RecipeError(
                "a teacher needs a concurrency of 1 or more, timeout_seconds above 0, max_retries of 0 or more"
            )
        if ours := sorted(_OURS & set(self.extra)):
            raise RecipeError(f"extra may not set {', '.join(ours)}: the request does, or its cost would not be known")


class EndpointTeacher:
    """Asks an endpoint, many requests at a time, through the official client with its retries.

    The key goes to the host of ``base_url`` and nowhere else: it is added to a request on the last step before the
    connection, redirects are not followed, and of the environment nothing else is heeded than the key's variable and,
    for other machines, the proxy (HTTPS_PROXY, HTTP_PROXY, ALL_PROXY, NO_PROXY) and the certificates (SSL_CERT_FILE,
    SSL_CERT_DIR).

    Args:
        environment: where the key's variable is looked up.
        spent: what earlier runs used of the budget.

    Raises:
        TeacherError: the address is none, or no key may be, or can be, sent there.
    """

    def __init__(self, endpoint: Endpoint, environment: Mapping[str, str], spent: Usage = Usage()) -> None:  # noqa: B008
        self._endpoint = endpoint
        self._url = checked_url(endpoint.base_url)
        self._key_variable = endpoint.key_variable
        if self._key_variable is None:
            self._key_variable = "OPENAI_API_KEY" if self._url.host == "api.openai.com" else ""
        self._key = key_in(environment, self._key_variable, self._url) if self._key_variable else SecretStr("")
        self._proxy = proxy_for(self._url, environment)
        self._tls = httpx2.create_ssl_context()
        self._ledger = Ledger(endpoint.budget, spent)
        self._in_a_row = 0

    @property
    def name(self) -> str:
        return f"{self._endpoint.model} at {self._url.netloc.decode()}"

    @property
    def identity(self) -> dict[str, Any]:
        return {
            "kind": "endpoint",
            "base_url": str(self._url),
            "model": self._endpoint.model,
            "style": self._endpoint.style,
            "extra": dict(self._endpoint.extra),
        }

    @property
    def usage(self) -> Usage:
        """What was used so far, that of earlier runs included."""
        return self._ledger.spent

    @property
    def dollars(self) -> float:
        """What it costs at the budget's prices."""
        return self._endpoint.budget.cost(self.usage)

    def ask(self, requests: Sequence[Request]) -> Generator[tuple[int, Outcome], None, None]:
        """See :class:`spintune.teachers.protocol.Teacher`.

        The requests make progress only while the next outcome is waited for, so that never more than ``concurrency``
        of them are under way or answered and not yet yielded. Not to be used inside a running event loop.

        Raises also TeacherError when max(8, concurrency) requests in a row fail, counted over all calls.
        """
        with asyncio.Runner() as runner:
            outcomes = self._outcomes(requests)
            try:
                while (found := runner.run(_following(outcomes))) is not None:
                    yield found
            finally:
                runner.run(outcomes.aclose())

    async def _outcomes(self, requests: Sequence[Request]) -> AsyncGenerator[tuple[int, Outcome], None]:
        waiting = deque((index, LedgerCall(request, self._ledger)) for index, request in enumerate(requests))
        under_way: dict[asyncio.Task[Outcome], tuple[int, LedgerCall]] = {}
        trouble: BaseException | None = None
        async with self._client() as client:
            try:
                while waiting or under_way:
                    # near the end of the budget fewer are under way at a time, and the last ones one by one
                    while waiting and len(under_way) < self._endpoint.concurrency and waiting[0][1].reserve():
                        index, call = waiting.popleft()
                        under_way[asyncio.create_task(self._one(client, call))] = index, call
                    if not under_way:
                        raise BudgetError(self._used_up())
                    done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                    for task in sorted(done, key=lambda task: under_way[task][0]):
                        index, call = under_way.pop(task)
                        match task.exception():
                            case None:
                                outcome = call.settle(task.result())
                                trouble = trouble or self._silence(outcome)
                                yield index, outcome
                            case OutOfBudgetError():
                                waiting.appendleft((index, call))
                            case error:
                                call.release()
                                trouble = trouble or error
                    if trouble:  # only now: what came along with it has been yielded
                        raise trouble
            finally:
                for task, (_, call) in under_way.items():
                    task.cancel()
                    call.give_up()
                await asyncio.gather(*under_way, return_exceptions=True)

    def _silence(self, outcome: Outcome) -> TeacherError | None:
        """One failure says something about its request; many in a row say it about the teacher."""
        if isinstance(outcome, Reply):
            self._in_a_row = 0
            return None
        self._in_a_row += 1
        if self._in_a_row < max(_LEAST_PATIENCE, self._endpoint.concurrency):
            return None
        last = f"{outcome.reason}: {outcome.detail}" if outcome.detail else outcome.reason
        return TeacherError(
            f"{self._url}: no answer for {self._in_a_row} requests in a row (last: {last}); see to it and run again"
        )

    def _used_up(self) -> str:
        budget, usage = self._endpoint.budget, self.usage
        price = "" if budget.dollars is None else f" (${self.dollars:,.2f})"
        return (
            f"{self.name}: {usage.tokens:,} tokens{price} are spent for {usage.requests:,} requests, and the budget of "
            f"{budget} does not cover what the next one may cost; all replies are kept; raise the budget and run again"
        )

    def _client(self) -> openai.AsyncOpenAI:
        limits = httpx2.Limits(max_connections=self._endpoint.concurrency)
        network = httpx2.AsyncHTTPTransport(verify=self._tls, trust_env=False, limits=limits, proxy=self._proxy)
        return openai.AsyncOpenAI(
            api_key="none",  # the key itself is the door's business
            base_url=str(self._url),
            max_retries=self._endpoint.max_retries,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT_SECONDS, self._endpoint.timeout_seconds / 2)),
            http_client=httpx2.AsyncClient(
                transport=AuthTransport(network, self._url, self._key, self._endpoint.timeout_seconds),
                follow_redirects=False,
                trust_env=False,
            ),
        )

    async def _one(self, client: openai.AsyncOpenAI, call: LedgerCall) -> Outcome:
        CALL.set(call)
        path = "/chat/completions" if self._endpoint.style == "chat" else "/completions"
        try:
            response = await client.post(path, body=_body(self._endpoint, call.request), cast_to=httpx2.Response)
        except TooLargeError:
            return Failure("too_large", f"more than {BODY_LIMIT // 1_000_000} MB")
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.APIConnectionError as error:
            return self._no_connection(error.__cause__ or error)
        outcome = parse_answer(response.content, self._endpoint.style)
        if isinstance(outcome, Failure):
            call.lose()
        return outcome

    def _refusal(self, error: openai.APIStatusError) -> Outcome:
        """What a status other than 200 says about the request; or TeacherError, where it says it about all of them."""
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
            return "it wants a key; export one in a variable ..._API_KEY and name that as the teacher's key_variable"
        return f"the key in {self._key_variable} is not accepted; export the right one"

    def _no_connection(self, cause: BaseException) -> Outcome:
        """A lost connection, as outcome; TeacherError when there never was one."""
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
                return Failure("malformed", "its compression is broken")
        return Failure("disconnected", one_line(str(cause)))


async def _following(outcomes: AsyncGenerator[tuple[int, Outcome], None]) -> tuple[int, Outcome] | None:
    return await anext(outcomes, None)


def _body(endpoint: Endpoint, request: Request) -> dict[str, Any]:
    """The request's JSON. Penalties and stop are left out where they do nothing: some models refuse the mere names."""
    body: dict[str, Any] = {"model": endpoint.model}
    if endpoint.style == "chat":
        body["messages"] = [{"role": m.role, "content": m.content} for m in request.messages]
    else:
        body["prompt"] = "\n\n".join(m.content for m in request.messages) + request.begin
    # servers have defaults of their own for these two (generation_config.json), so they are always said
    body |= {"temperature": request.temperature, "top_p": request.top_p}
    body[endpoint.max_tokens_field] = request.max_tokens
    if request.presence_penalty:
        body["presence_penalty"] = request.presence_penalty
    if request.frequency_penalty:
        body["frequency_penalty"] = request.frequency_penalty
    if request.stop:
        body["stop"] = list(request.stop)
    return {name: value for name, value in {**body, **endpoint.extra}.items() if value is not None}
