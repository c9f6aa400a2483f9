"""The connection to an endpoint: which addresses are allowed, who gets a key, and how much is read."""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import re
import ssl
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass

import httpx2
import openai
import orjson
from pydantic import SecretStr

from spintune.errors import TeacherError
from spintune.teachers.addresses import CheckedNetwork, ForbiddenAddressError, IpAddress, forbidden_host
from spintune.teachers.budget import LedgerCall
from spintune.teachers.wire import HiddenError, hidden_error
from spintune.version import __version__

BODY_LIMIT = 4_000_000
_CONNECT_SECONDS = 10.0
KEY_HOSTS = "SPINTUNE_KEY_HOSTS"
"""The environment variable in which the user says which hosts get which keys."""

_PROVIDERS = {
    "ANTHROPIC_API_KEY": "anthropic.com",
    "CEREBRAS_API_KEY": "cerebras.ai",
    "COHERE_API_KEY": "cohere.com",
    "DASHSCOPE_API_KEY": "aliyuncs.com",
    "DEEPINFRA_API_KEY": "deepinfra.com",
    "DEEPSEEK_API_KEY": "deepseek.com",
    "FIREWORKS_API_KEY": "fireworks.ai",
    "GEMINI_API_KEY": "googleapis.com",
    "GOOGLE_API_KEY": "googleapis.com",
    "GROQ_API_KEY": "groq.com",
    "MISTRAL_API_KEY": "mistral.ai",
    "MOONSHOT_API_KEY": "moonshot.ai",
    "NVIDIA_API_KEY": "nvidia.com",
    "OPENAI_API_KEY": "openai.com",
    "OPENROUTER_API_KEY": "openrouter.ai",
    "PERPLEXITY_API_KEY": "perplexity.ai",
    "TOGETHER_API_KEY": "together.xyz",
    "XAI_API_KEY": "x.ai",
}
"""The domain that each provider's documentation pairs with the variable of its key."""

# Shorter "keys" are placeholders such as EMPTY, which may occur in a reply by chance.
_SECRET_LENGTH = 16
_REFUSED_CONNECTIONS = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError)


class OutOfBudgetError(openai.OpenAIError):
    """A retry could pass the budget. Derived from the client's error, because the client passes its own errors on."""


class TooLargeError(openai.OpenAIError):
    """A response that is too large. Derived from the client's error for the same reason."""


# the client makes the attempts without knowing their call; each call runs in a task, and so in a context, of its own
CALL: contextvars.ContextVar[LedgerCall] = contextvars.ContextVar("call")


class AuthTransport(httpx2.AsyncBaseTransport):
    """The last step before the network; every attempt passes it once.

    It alone has the key. It sends only a few headers of its own (the client would add those of OPENAI_CUSTOM_HEADERS
    and other variables), limits each attempt in time and size, and hides the key in responses. A
    response of status 200 that holds an error gets the status of the error, so that the client treats it alike.
    """

    def __init__(self, network: httpx2.AsyncBaseTransport, url: httpx2.URL, key: SecretStr, seconds: float) -> None:
        self._network = network
        self._origin = _origin(url)
        self._key = key
        self._seconds = seconds

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Adds the key, counts the attempt, and sends the request. Raises what the budget or the answer forbids."""
        call = CALL.get()
        if not call.reserve():
            raise OutOfBudgetError
        try:
            async with asyncio.timeout(self._seconds):
                response, body = await self._exchange(request)
            hidden = hidden_error(body) if response.status_code == 200 else None
            answer = self._answer(response, body, hidden, request)
        except (*_REFUSED_CONNECTIONS, ForbiddenAddressError):
            raise
        except TimeoutError as error:
            call.lose()
            raise httpx2.ReadTimeout("no complete answer in time", request=request) from error
        except Exception:  # whatever it is, the server may have answered
            call.lose()
            raise
        if hidden and hidden.charged:
            call.lose()
        return answer

    def _answer(
        self, response: httpx2.Response, body: bytes, hidden: HiddenError | None, request: httpx2.Request
    ) -> httpx2.Response:
        """The response as the client gets it: without the key, and with the status of an error in its body."""
        status = response.status_code
        if hidden:
            status, body = hidden.status, orjson.dumps({"error": hidden.error})
        headers = [
            (name, self._hide(value))
            for name, value in response.headers.raw
            if name.lower() not in (b"content-encoding", b"content-length", b"transfer-encoding")
        ]
        return httpx2.Response(status, headers=headers, content=self._hide(body), request=request)

    async def _exchange(self, request: httpx2.Request) -> tuple[httpx2.Response, bytes]:
        response = await self._network.handle_async_request(self._signed(request))
        try:
            response.request = request
            return response, await _read(response)
        finally:
            await response.aclose()

    def _signed(self, request: httpx2.Request) -> httpx2.Request:
        """A copy of the request with the key. The client's own request goes into its errors, so it must not hold it."""
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
        """Closes the connections."""
        await self._network.aclose()


async def _read(response: httpx2.Response) -> bytes:
    """The decoded body. Raises TooLargeError above the limit, which also stops a small compressed body that is huge."""
    body = bytearray()
    async for piece in response.aiter_bytes():
        body += piece
        if len(body) > BODY_LIMIT:
            raise TooLargeError
    return bytes(body)


def _origin(url: httpx2.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port


def checked_url(base_url: str, whose: str = "teacher") -> httpx2.URL:
    """The address of an endpoint, without a slash at its end. ``whose`` it is, errors say.

    Raises TeacherError when it is not a valid address, has more than scheme, host and path, or is a refused one.
    """
    try:
        url = httpx2.URL(base_url.rstrip("/"))
    except httpx2.InvalidURL as error:
        raise TeacherError(f"{whose}'s url {base_url!r}: not an address ({error})") from None
    if url.userinfo or url.query or url.fragment:
        # the message does not repeat them: they may hold secrets
        raise TeacherError(f"{whose}'s url: give scheme, host and path only; a key belongs in an environment variable")
    if url.scheme not in ("http", "https") or not url.host:
        raise TeacherError(f"{whose}'s url {base_url!r}: give an address that begins with https:// or http://")
    if forbidden_host(url.host):
        raise TeacherError(
            f"{whose}'s url {base_url!r}: cloud machines hand out credentials there; give another address"
        )
    return url


def is_loopback(url: httpx2.URL) -> bool:
    """Whether an address stays on this machine."""
    address = _address(url.host)
    return url.host == "localhost" if address is None else address.is_loopback


def _address(host: str) -> IpAddress | None:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def key_in(environment: Mapping[str, str], variable: str, url: httpx2.URL) -> SecretStr:
    """The key for an address, from an environment variable.

    Variable and address may come from a recipe that somebody else wrote. So only variables that are keys by their name
    are read. A key leaves this machine only for its provider's domain, or for a host that the user paired with it in
    :data:`KEY_HOSTS`.

    Raises TeacherError when there is no key, or it must not go to this address.
    """
    local = is_loopback(url)
    if not re.fullmatch(r"\w*API_KEY", variable, re.ASCII):
        raise TeacherError("key_variable: only variables whose names end with API_KEY are sent anywhere")
    if not local and not any(f".{url.host}".endswith(f".{host}") for host in _hosts_of(variable, environment)):
        owner = f" belongs to {_PROVIDERS[variable]} and" if variable in _PROVIDERS else ""
        raise TeacherError(
            f"{url}: {variable}{owner} is not sent to {url.host}; if it may go there, "
            f"export {KEY_HOSTS}={variable}={url.host} and run again"
        )
    if url.scheme == "http" and not local:
        raise TeacherError(f"{url}: {variable} is not sent over http, where others can read it; use https")
    key = environment.get(variable, "").strip()
    if not key:
        raise TeacherError(f"{url}: no key; export {variable}=... and run again")
    if not re.fullmatch(r"[!-~]+", key):
        raise TeacherError(f"{variable}: holds a space or a character that no key has; export it again and run again")
    return SecretStr(key)


def _hosts_of(variable: str, environment: Mapping[str, str]) -> list[str]:
    """The hosts that a key may go to, with their subdomains."""
    pairs = [pair.strip().partition("=") for pair in environment.get(KEY_HOSTS, "").split(",")]
    paired = [host.strip() for name, _, host in pairs if name.strip() == variable and host.strip()]
    return [*paired, _PROVIDERS[variable]] if variable in _PROVIDERS else paired


@dataclass(frozen=True)
class Connection:
    """How an address is reached.

    Attributes:
        key: sent to ``url`` alone; empty for none.
        concurrency: connections at a time.
        timeout_seconds: for one attempt, from connecting to the last byte.
        max_retries: after refusals that may pass, lost connections and timeouts.
    """

    url: httpx2.URL
    key: SecretStr
    proxy: httpx2.Proxy | None
    concurrency: int
    timeout_seconds: float
    max_retries: int

    def client(self, tls: ssl.SSLContext) -> openai.AsyncOpenAI:
        """OpenAI's client, with its retries, on the transport that alone has the key. :data:`CALL` must be set."""
        network = open_network(tls, self.concurrency, self.proxy)
        return openai.AsyncOpenAI(
            api_key="none",  # AuthTransport adds the key
            base_url=str(self.url),
            max_retries=self.max_retries,
            timeout=httpx2.Timeout(None, connect=min(_CONNECT_SECONDS, self.timeout_seconds / 2)),
            http_client=httpx2.AsyncClient(
                transport=AuthTransport(network, self.url, self.key, self.timeout_seconds),
                follow_redirects=False,
                trust_env=False,
            ),
        )


def open_network(tls: ssl.SSLContext, connections: int, proxy: httpx2.Proxy | None) -> httpx2.AsyncBaseTransport:
    """The network below :class:`AuthTransport`. Without a proxy, which resolves names itself, it checks addresses."""
    limits = httpx2.Limits(max_connections=connections)
    network = httpx2.AsyncHTTPTransport(verify=tls, trust_env=False, limits=limits, proxy=proxy)
    if proxy is None:
        pool = network._pool
        pool._network_backend = CheckedNetwork(pool._network_backend)
    return network


def proxy_for(url: httpx2.URL, environment: Mapping[str, str]) -> httpx2.Proxy | None:
    """The proxy for an address according to the usual environment variables; None for this machine itself."""
    values = {name.lower(): value for name, value in environment.items() if name.lower().endswith("_proxy")}
    exempt = {"no": values.get("no_proxy", "")}
    proxy = values.get(f"{url.scheme}_proxy") or values.get("all_proxy")
    if not proxy or is_loopback(url) or urllib.request.proxy_bypass_environment(url.netloc.decode(), exempt):  # type: ignore[attr-defined]
        return None
    try:
        return httpx2.Proxy(proxy if "://" in proxy else f"http://{proxy}")
    except (httpx2.InvalidURL, ValueError):
        raise TeacherError(f"{url}: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY holds no valid address of a proxy") from None
