"""The way to an endpoint and back: which address may be asked, who gets a key, how much is read."""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import re
import urllib.request
from collections.abc import Mapping

import httpx2
import openai
from pydantic import SecretStr

from spintune.errors import TeacherError
from spintune.teachers.budget import LedgerCall
from spintune.version import __version__

BODY_LIMIT = 4_000_000
# Shorter "keys" are placeholders such as EMPTY, which a reply may well contain.
_SECRET_LENGTH = 16
_REFUSED_CONNECTIONS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)


class OutOfBudgetError(openai.OpenAIError):
    """A retry could pass the budget. The client lets its own errors through."""


class TooLargeError(openai.OpenAIError):
    """A response that goes on and on. The client lets its own errors through."""


# the client makes the attempts, and knows nothing of calls; each call is a task, and so a context, of its own
CALL: contextvars.ContextVar[LedgerCall] = contextvars.ContextVar("call")


class AuthTransport(httpx2.AsyncBaseTransport):
    """The last step before the network, passed once for each attempt.

    It alone has the key. It sends nothing but its own few headers (the client would add what OPENAI_CUSTOM_HEADERS and
    other variables say), gives each attempt a limit in time and size, and hides the key in what comes back.
    """

    def __init__(self, network: httpx2.AsyncBaseTransport, url: httpx2.URL, key: SecretStr, seconds: float) -> None:
        self._network = network
        self._origin = _origin(url)
        self._key = key
        self._seconds = seconds

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        call = CALL.get()
        if not call.reserve():
            raise OutOfBudgetError
        try:
            async with asyncio.timeout(self._seconds):
                response, body = await self._exchange(request)
        except _REFUSED_CONNECTIONS:
            raise
        except TimeoutError as error:
            call.lose()
            raise httpx2.ReadTimeout("no complete answer in time", request=request) from error
        except (httpx2.RequestError, TooLargeError):
            call.lose()
            raise
        headers = {
            name: self._hide(value.encode()).decode()
            for name, value in response.headers.items()
            if name not in ("content-encoding", "content-length", "transfer-encoding")
        }
        return httpx2.Response(response.status_code, headers=headers, content=self._hide(body), request=request)

    async def _exchange(self, request: httpx2.Request) -> tuple[httpx2.Response, bytes]:
        response = await self._network.handle_async_request(self._signed(request))
        try:
            response.request = request
            return response, await _read(response)
        finally:
            await response.aclose()

    def _signed(self, request: httpx2.Request) -> httpx2.Request:
        """A request of its own, with the key: the client's goes into its errors, and shall not hold it."""
        headers = {
            "Accept": "application/json",
            "Accept-Encoding": "gzip",
            "Content-Type": "application/json",
            "User-Agent": f"spintune/{__version__}",
        }
        if self._key.get_secret_value() and _origin(request.url) == self._origin:
            headers["Authorization"] = f"Bearer {self._key.get_secret_value()}"
        return httpx2.Request(
            request.method, request.url, headers=headers, content=request.content, extensions=request.extensions
        )

    def _hide(self, text: bytes) -> bytes:
        secret = self._key.get_secret_value().encode()
        return text.replace(secret, b"[key]") if len(secret) >= _SECRET_LENGTH else text

    async def aclose(self) -> None:
        await self._network.aclose()


async def _read(response: httpx2.Response) -> bytes:
    """The decoded body, up to the limit: a small compressed one may be huge."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > BODY_LIMIT:
            raise TooLargeError
    return bytes(body)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def checked_url(base_url: str) -> httpx2.URL:
    """The address of an endpoint, without a slash at its end.

    Raises TeacherError when it is none, holds more than scheme, host and path, or belongs to a cloud's inner life.
    """
    try:
        url = httpx2.URL(base_url.rstrip("/"))
    except httpx2.InvalidURL as error:
        raise TeacherError(f"teacher's url {base_url!r}: not an address ({error})") from None
    if url.userinfo or url.query or url.fragment:
        # not repeated in the message: this is where people put secrets
        raise TeacherError("teacher's url: give scheme, host and path only; a key belongs in an environment variable")
    if url.scheme not in ("http", "https") or not url.host:
        raise TeacherError(f"teacher's url {base_url!r}: not an address that begins with https:// or http://")
    if (address := _address(url.host)) and address.is_link_local:
        raise TeacherError(
            f"teacher's url {base_url!r}: a link-local address; machines of a cloud keep credentials there"
        )
    return url


def is_loopback(url: httpx2.URL) -> bool:
    address = _address(url.host)
    return url.host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def key_in(environment: Mapping[str, str], variable: str, url: httpx2.URL) -> SecretStr:
    """The key that a variable holds for an address.

    The name of the variable may come from a recipe that somebody else wrote, and so may the address. Therefore no
    variable is read that is not a key by its name, and OpenAI's key goes to OpenAI (or stays on this machine).

    Raises TeacherError when there is no key, or it must not go to this address.
    """
    local = is_loopback(url)
    if not re.fullmatch(r"\w*API_KEY", variable, re.ASCII):
        raise TeacherError(f"key_variable {variable!r}: only variables whose names end with API_KEY are sent anywhere")
    if variable == "OPENAI_API_KEY" and not local and not f".{url.host}".endswith(".openai.com"):
        raise TeacherError(
            f"{url}: OPENAI_API_KEY belongs to openai.com and is not sent to {url.host}; "
            "export the key of that host in another variable ..._API_KEY and name it as key_variable"
        )
    if url.scheme == "http" and not local:
        raise TeacherError(f"{url}: {variable} is not sent over http, where anyone on the way can read it; use https")
    key = environment.get(variable, "").strip()
    if not key:
        raise TeacherError(f"{url}: no key; export {variable}=... and run again")
    if not re.fullmatch(r"[!-~]+", key):
        raise TeacherError(f"{variable}: holds a blank or a character that no key has; export it anew and run again")
    return SecretStr(key)


def proxy_for(url: httpx2.URL, environment: Mapping[str, str]) -> httpx2.Proxy | None:
    """The proxy that the usual variables name for an address; none for this machine itself."""
    values = {name.lower(): value for name, value in environment.items() if name.lower().endswith("_proxy")}
    exempt = {"no": values.get("no_proxy", "")}
    proxy = values.get(f"{url.scheme}_proxy") or values.get("all_proxy")
    if not proxy or is_loopback(url) or urllib.request.proxy_bypass_environment(url.netloc.decode(), exempt):  # type: ignore[attr-defined]
        return None
    try:
        return httpx2.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (httpx2.InvalidURL, ValueError):
        raise TeacherError(f"{url}: what HTTPS_PROXY, HTTP_PROXY or ALL_PROXY holds is no address of a proxy") from None
