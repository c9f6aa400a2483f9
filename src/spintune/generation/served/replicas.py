"""Servers of one model: prompts are dealt over them, and one that dies is told and its prompts go to the others."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

import httpx2
import openai
import orjson

from spintune.errors import ServerError
from spintune.generation.served.wire import EngineWire, Order, ServedAnswer, WireError
from spintune.teachers.addresses import ForbiddenAddressError
from spintune.teachers.budget import Budget, Ledger, LedgerCall
from spintune.teachers.protocol import Request, Usage
from spintune.teachers.transport import BODY_LIMIT, CALL, Connection, TooLargeError
from spintune.teachers.wire import one_line, server_says
from spintune.typed_json import JsonObject

_TICK_SECONDS = 0.5
_PASSING = (408, 409, 429)
_WATCH_SECONDS, _REFUSALS = 5.0, 3
"""A server is gone when so many connections in a row are refused, one every so often."""


class ReplicaDownError(Exception):
    """A server that does not answer any more; the text says how it failed."""


@dataclass
class Replica:
    """One server.

    Attributes:
        model: that it is asked for, and ``version`` what it calls itself; known after the handshake.
        max_len: tokens of prompt and answer together that it takes; None where it does not say.
        vocabulary: number of its tokens; None where it does not say.
        slots: answers that it writes at once.
    """

    wire: EngineWire
    connection: Connection
    slots: int
    model: str = ""
    version: str = ""
    max_len: int | None = None
    vocabulary: int | None = None
    alive: bool = True
    client: openai.AsyncOpenAI | None = field(default=None, repr=False)

    @property
    def url(self) -> str:
        return str(self.connection.url)

    @property
    def name(self) -> str:
        """As errors call it."""
        return f"{self.wire.engine} at {self.url}"

    async def is_up(self) -> bool:
        """Whether it answers at ``/health``, asked once."""
        try:
            await self.ask("/health", retried=False)
        except ReplicaDownError:
            return False
        except WireError:  # it answers, with no JSON
            pass
        return True

    async def refuses(self) -> bool:
        """Whether nobody listens at its address. Nothing is sent, on a connection beside those that answers use."""
        url = self.connection.url
        if self.connection.proxy is not None:
            return False
        try:
            _, writer = await asyncio.open_connection(url.host, url.port or (443 if url.scheme == "https" else 80))
        except OSError as error:
            return isinstance(error, ConnectionRefusedError)
        writer.close()
        return False

    async def ask(
        self, path: str, body: JsonObject | None = None, optional: bool = False, retried: bool = True
    ) -> object:
        """The JSON that it answers. None where it has no such path and that is ``optional``.

        Raises ReplicaDownError when it cannot be reached or fails, ServerError when it refuses, WireError for no JSON.
        """
        if self.client is None:
            raise RuntimeError("ask inside opened()")
        CALL.set(LedgerCall(Request(()), Ledger(Budget(), Usage())))  # nobody is charged
        client = self.client if retried else self.client.with_options(max_retries=0)
        try:
            if body is None:
                response = await client.get(path, cast_to=httpx2.Response)
            else:
                response = await client.post(path, body=body, cast_to=httpx2.Response)
        except TooLargeError:
            raise WireError(f"a reply of more than {BODY_LIMIT // 1_000_000} MB") from None
        except ForbiddenAddressError as error:
            raise ServerError(f"{self.url}: {error}; give another address") from None
        except openai.APIStatusError as error:
            if error.status_code == 404 and optional:
                return None
            raise self._refusal(error) from None
        except openai.APIConnectionError as error:
            raise ReplicaDownError(_no_connection(error.__cause__ or error, self.connection)) from None
        try:
            return cast(object, orjson.loads(response.content)) if response.content else None
        except orjson.JSONDecodeError:
            raise WireError(f"no JSON: {one_line(response.content.decode(errors='replace'))}") from None

    def _refusal(self, error: openai.APIStatusError) -> Exception:
        says = server_says(error.body)
        quoted = f" (it says: {says})" if says else ""
        status = f"status {error.status_code}{quoted}"
        if error.status_code >= 500 or error.status_code in _PASSING:
            return ReplicaDownError(status)
        if error.status_code in (401, 403):
            return ServerError(
                f"{self.name}: {status}: it wants a key; export it as a variable ..._API_KEY and name that as "
                "generate.key_variable"
            )
        if 300 <= error.status_code < 400:
            return ServerError(f"{self.name}: it redirects, which is not followed; give the final url")
        return ServerError(f"{self.name}: {status}; check generate.url, generate.engine and generate.model")

    async def write(self, order: Order) -> ServedAnswer:
        """The answer to one order. Raises as :meth:`ask` does."""
        return self.wire.answer(await self.ask(self.wire.answer_path, self.wire.request(order, self.model)), order)


def _no_connection(cause: BaseException, connection: Connection) -> str:
    match cause:
        case httpx2.ConnectError() | httpx2.ConnectTimeout() | httpx2.ProxyError() | ssl.SSLError():
            return f"cannot connect ({one_line(str(cause)) or type(cause).__name__})"
        case httpx2.TimeoutException():
            return f"no answer in {connection.timeout_seconds:g} s"
        case httpx2.DecodingError():
            return "a reply that cannot be decompressed"
    return f"the connection broke ({one_line(str(cause)) or type(cause).__name__})"


@contextlib.asynccontextmanager
async def opened(replicas: Sequence[Replica], tls: ssl.SSLContext):  # type: ignore[no-untyped-def]
    """Inside, the replicas have connections."""
    async with contextlib.AsyncExitStack() as stack:
        for replica in replicas:
            replica.client = await stack.enter_async_context(replica.connection.client(tls))
        try:
            yield
        finally:
            for replica in replicas:
                replica.client = None


class Dealer:
    """Deals orders over replicas that are connected. Each gets the next one as soon as it has a free slot.

    Args:
        note: is told of a replica that died.
        tick: is called at least twice a second while servers write; what it raises ends all.
    """

    def __init__(self, replicas: Sequence[Replica], note: Callable[[str], None], tick: Callable[[], None]) -> None:
        self.replicas, self._note, self._tick = replicas, note, tick
        self._under_way: dict[asyncio.Task[ServedAnswer], tuple[int, Replica]] = {}

    async def write(self, orders: Sequence[Order], written: Callable[[int, ServedAnswer], None]) -> None:
        """Tells ``written`` the index of each order and its answer, as they come.

        Raises ServerError when a server answers wrongly, or when none is left.
        """
        waiting = deque(range(len(orders)))
        watches = [asyncio.create_task(self._watch(replica)) for replica in self.replicas]
        try:
            while waiting or self._under_way:
                self._start(orders, waiting)
                done, _ = await asyncio.wait(
                    self._under_way, timeout=_TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    index, replica = self._under_way.pop(task)
                    if (answer := self._settled(task, replica)) is None:
                        waiting.appendleft(index)
                    else:
                        written(index, answer)
                self._tick()
        finally:
            for waiter in (*self._under_way, *watches):
                waiter.cancel()
            await asyncio.gather(*self._under_way, *watches, return_exceptions=True)
            self._under_way.clear()

    async def _watch(self, replica: Replica) -> None:
        """Gives up what a server has under way when nobody listens there: a vLLM that was told to end answers no
        request that it has, and keeps their connections."""
        refusals = 0
        while refusals < _REFUSALS:
            await asyncio.sleep(_WATCH_SECONDS)
            refusals = refusals + 1 if await replica.refuses() else 0
        for task, (_, one) in self._under_way.items():
            if one is replica:
                task.cancel()

    def _start(self, orders: Sequence[Order], waiting: deque[int]) -> None:
        load = {id(replica): 0 for replica in self.replicas if replica.alive}
        for _, replica in self._under_way.values():
            if id(replica) in load:
                load[id(replica)] += 1
        while waiting:
            free = [one for one in self.replicas if one.alive and load[id(one)] < one.slots]
            if not free:
                break
            replica = min(free, key=lambda one: load[id(one)] / one.slots)
            load[id(replica)] += 1
            index = waiting.popleft()
            self._under_way[asyncio.create_task(replica.write(orders[index]))] = index, replica

    def _settled(self, task: asyncio.Task[ServedAnswer], replica: Replica) -> ServedAnswer | None:
        """The answer of a task; None where its server died, and others are left."""
        try:
            if task.cancelled():
                raise ReplicaDownError("nobody listens there any more")
            return task.result()
        except WireError as error:
            raise ServerError(f"{replica.name}: {error}") from None
        except ReplicaDownError as error:
            first, replica.alive = replica.alive, False
            left = [one for one in self.replicas if one.alive]
            if not left:
                raise ServerError(
                    f"{replica.name}: {error}; start it again and run again: finished answers are kept"
                ) from None
            if first:
                self._note(f"{replica.name} died: {error}; its prompts go to {len(left)} other{'s' * (len(left) > 1)}")
            return None
