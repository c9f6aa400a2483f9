"""Fixtures of small run folders; see ``tests/run_folders.py``."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from run_folders import everything, folder, page, whole  # noqa: F401 - pytest finds them here

from spintune.watch.server import build_server, listen


@dataclass
class Site:
    """A server of a folder, on a port of its own."""

    port: int
    open: list[http.client.HTTPConnection] = field(default_factory=list)

    def get(self, path: str, host: str = "", method: str = "GET") -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        self.open.append(connection)
        connection.putrequest(method, path, skip_host=bool(host))
        if host:
            connection.putheader("Host", host)
        connection.endheaders()
        return connection.getresponse()

    def text(self, path: str = "/") -> str:
        return self.get(path).read().decode()


@pytest.fixture
def serve() -> Iterator[Callable[[Path], Site]]:
    """Serves folders; everything ends with the test."""
    with ExitStack() as stack:

        def start(path: Path) -> Site:
            socket, server = listen(0), build_server(path, seconds=0.05)
            site = Site(socket.getsockname()[1])
            thread = threading.Thread(target=server.run, kwargs={"sockets": [socket]})
            thread.start()

            def end() -> None:
                server.should_exit = True
                thread.join(60)
                for connection in site.open:
                    connection.close()
                assert not thread.is_alive()

            stack.callback(end)
            return site

        yield start
