"""A teacher is asked on this machine, in private networks and elsewhere, but not where credentials are handed out."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from spintune.errors import TeacherError
from spintune.records import Message
from spintune.teachers import addresses
from spintune.teachers.endpoint import Endpoint, EndpointTeacher
from spintune.teachers.protocol import Reply, Request, Usage

REQUEST = Request((Message("user", "hello"),))
Resolved = Callable[[str, list[list[str]]], list[str]]


def teacher_at(url: str) -> EndpointTeacher:
    return EndpointTeacher(Endpoint(url, "gem", max_retries=3), {})


@pytest.mark.parametrize(
    "host",
    [
        *(
            "169.254.169.254",
            "169.254.169.254.",
            "2852039166",
            "0xA9FEA9FE",
            "0xa9.254.0xa9.0xfe",
            "0251.0376.0251.0376",
        ),
        *("169.254.43518", "169.254.1.1", "[fe80::1]", "[::ffff:169.254.169.254]", "[::ffff:a9fe:a9fe]"),
        *("[64:ff9b::169.254.169.254]", "[64:ff9b:1::a9fe:a9fe]", "[::169.254.169.254]", "[2002:a9fe:a9fe::1]"),
        *("metadata.google.internal", "METADATA.google.internal.", "metadata", "instance-data.ec2.internal"),
        *("168.63.129.16", "100.100.100.200", "192.0.0.192", "[fd00:ec2::254]", "[fd20:ce::254]"),
    ],
)
def test_no_spelling_of_such_an_address_is_accepted(host: str) -> None:
    with pytest.raises(TeacherError, match=r"credentials|not an address"):
        teacher_at(f"http://{host}:80/v1")


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "[::1]",
            "localhost",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.9",
            "192.168.1.2",
            "100.64.0.7",
            "[fd12::9]",
        ),
        *("gpu-7", "gpu-7.lan", "8.8.8.8", "[2001:db8::1]", "[64:ff9b::10.1.2.3]", "metadata.example", "[fd12::9]"),
    ],
)
def test_other_addresses_are_allowed(host: str) -> None:
    assert teacher_at(f"http://{host}:8000/v1").name.startswith("gem at ")


@pytest.fixture
def resolve(monkeypatch: pytest.MonkeyPatch) -> Resolved:
    """Gives a name its addresses: ``resolve(name, [first answer, second answer, ...])``; the last one stays."""
    real, asked = socket.getaddrinfo, []

    def answers(name: str, found: list[list[str]]) -> list[str]:
        def getaddrinfo(host: Any, port: Any, *more: Any, **options: Any) -> Any:
            if host not in (name, name.encode()):
                return real(host, port, *more, **options)
            asked.append(name)
            now = found[min(len(asked), len(found)) - 1]
            return [entry for address in now for entry in real(address, port, type=socket.SOCK_STREAM)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        return asked

    return answers


def test_a_name_of_an_allowed_address_is_asked(serve: Any, resolve: Resolved) -> None:
    server = serve()
    resolve("gem.example", [["127.0.0.1"]])
    assert list(teacher_at(f"http://gem.example:{server.port}/v1").ask([REQUEST])) == [
        (0, Reply("hello", "stop", 7, 3))
    ]
    assert server.received[0].headers["host"] == f"gem.example:{server.port}"


@pytest.mark.parametrize("found", [["169.254.169.254"], ["127.0.0.1", "169.254.169.254"], ["::ffff:169.254.169.254"]])
def test_a_name_that_leads_to_such_an_address_is_refused_at_once(
    serve: Any, resolve: Resolved, found: list[str]
) -> None:
    server = serve()
    asked = resolve("gem.example", [found])
    teacher = teacher_at(f"http://gem.example:{server.port}/v1")
    with pytest.raises(TeacherError, match=r"gem\.example leads to .*169\.254\.169\.254, .*; give another address"):
        list(teacher.ask([REQUEST]))
    assert (asked, server.received, teacher.usage) == (["gem.example"], [], Usage())


def test_a_name_that_gets_another_address_in_between_is_sent_nothing(
    resolve: Resolved, monkeypatch: pytest.MonkeyPatch
) -> None:
    received: list[bytes] = []
    with socket.create_server(("127.0.0.2", 0)) as listener:

        def listen() -> None:
            with contextlib.suppress(OSError):
                connection, _ = listener.accept()
                with connection:
                    received.append(connection.recv(1))

        thread = threading.Thread(target=listen, daemon=True)
        thread.start()
        monkeypatch.setattr(addresses, "_METADATA", frozenset([ipaddress.ip_address("127.0.0.2")]))
        resolve("gem.example", [["127.0.0.1"], ["127.0.0.2"]])
        with pytest.raises(TeacherError, match=r"gem\.example leads to 127\.0\.0\.2"):
            list(teacher_at(f"http://gem.example:{listener.getsockname()[1]}/v1").ask([REQUEST]))
        thread.join(10)
    assert received == [b""]
