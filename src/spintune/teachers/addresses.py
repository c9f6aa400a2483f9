"""Which network addresses a teacher is never asked at: those where cloud machines hand out credentials.

Refused are link-local addresses and the known addresses and names of metadata services, however they are written. This
machine and private networks are allowed: servers of one's own are there.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections.abc import Iterable, Iterator

import httpcore2
import openai

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address

_METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "168.63.129.16",  # Azure
            "100.100.100.200",  # Alibaba
            "192.0.0.192",  # Oracle
            "fd00:ec2::254",  # AWS
            "fd20:ce::254",  # Google
            "fd00:42::42",  # Scaleway
        ),
    )
)
_METADATA_NAMES = frozenset(
    ("metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal")
)
_IPV4_INSIDE = tuple(map(ipaddress.IPv6Network, ("::/96", "64:ff9b::/96", "64:ff9b:1::/48")))
"""Networks whose last 32 bits are an IPv4 address: IPv4-compatible addresses and NAT64."""


class ForbiddenAddressError(openai.OpenAIError):
    """A name that leads to a refused address. Derived from the client's error, which the client passes on."""


def forbidden_host(host: str) -> bool:
    """Whether the host of an address, as it is written, is refused."""
    name = host.rstrip(".").lower()
    if name in _METADATA_NAMES:
        return True
    with contextlib.suppress(ValueError):
        return forbidden(ipaddress.ip_address(name))
    with contextlib.suppress(OSError, ValueError):  # 2852039166, 0xa9fea9fe, 169.254.43518, as resolvers read them
        return forbidden(ipaddress.IPv4Address(socket.inet_aton(name)))
    return False


def forbidden(address: IpAddress) -> bool:
    """Whether an address, or an IPv4 address inside it, is refused."""
    return any(one.is_link_local or one in _METADATA for one in _with_ipv4(address))


def _with_ipv4(address: IpAddress) -> Iterator[IpAddress]:
    """The address, and the IPv4 addresses that a gateway would take out of it."""
    yield address
    if isinstance(address, ipaddress.IPv4Address):
        return
    if any(address in network for network in _IPV4_INSIDE):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    yield from (one for one in (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())) if one is not None)


class CheckedNetwork(httpcore2.AsyncNetworkBackend):
    """Connects as the network that it wraps, but to no refused address, whatever a name resolves to.

    All addresses of a name are checked first. The one that was connected to is checked before a byte is sent, since the
    name may have been given another one in between.
    """

    def __init__(self, network: httpcore2.AsyncNetworkBackend) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """Raises ForbiddenAddressError for a refused address, and what the wrapped network raises."""
        with contextlib.suppress(OSError):  # connecting raises it again
            async with asyncio.timeout(timeout):
                found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
            for *_, address in found:
                _check(host, address[0])
        stream = await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        if (peer := stream.get_extra_info("server_addr")) is not None:
            try:
                _check(host, peer[0])
            except ForbiddenAddressError:
                await stream.aclose()
                raise
        return stream

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None
    ) -> httpcore2.AsyncNetworkStream:
        """As the wrapped network."""
        return await self._network.connect_unix_socket(path, timeout, socket_options)

    async def sleep(self, seconds: float) -> None:
        """As the wrapped network."""
        await self._network.sleep(seconds)


def _check(host: str, address: object) -> None:
    if forbidden(ipaddress.ip_address(str(address))):
        raise ForbiddenAddressError(f"{host} leads to {address}, where cloud machines hand out credentials")
