"""A real HTTP server on this machine that says whatever a test wants, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import http.server
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from spintune.records import Message
from spintune.teachers.protocol import Request


@pytest.fixture(scope="package", autouse=True)
def no_authorities(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """To read all certificates takes longer than most of these tests, whose server speaks plain HTTP."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("certificates")))
        yield


@dataclass(frozen=True)
class Received:
    """A request as the server saw it."""

    path: str
    headers: dict[str, str]
    body: dict[str, Any]

    @property
    def question(self) -> str:
        """The user's text of a chat request, the whole prompt of the other kind."""
        return self.body["messages"][-1]["content"] if "messages" in self.body else self.body["prompt"]


@dataclass(frozen=True)
class Sent:
    """What the server says. Bytes and text go out as they are, anything else as JSON.

    ``seconds`` is the time before it says anything, ``pause`` the time before each byte of the body, and ``promised``
    more bytes are announced than sent.
    """

    body: Any = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    pause: float = 0.0
    promised: int = 0


def chat(text: str | None, finish_reason: str | None = "stop", prompt: int = 7, completion: int = 3) -> dict[str, Any]:
    """A chat endpoint's answer."""
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason}
    return {"id": "x", "object": "chat.completion", "choices": [choice], "usage": usage}


Respond = Callable[[int, Received], Sent]


class Server:
    """Listens on 127.0.0.1. ``respond`` gets the number of a request (from 0) and what it says."""

    def __init__(self, respond: Respond, port: int = 0) -> None:
        self.received: list[Received] = []
        self.most_under_way = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._connections: list[socket.socket] = []
        self.stopping = threading.Event()
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                outer._connections.append(self.request)
                super().setup()

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                seen = Received(self.path, {k.lower(): v for k, v in self.headers.items()}, json.loads(raw))
                with outer._lock:
                    number = len(outer.received)
                    outer.received.append(seen)
                    outer._under_way += 1
                    outer.most_under_way = max(outer.most_under_way, outer._under_way)
                try:
                    answer = respond(number, seen)
                    if outer.stopping.wait(answer.seconds):  # killed: it says nothing more
                        self.close_connection = True
                        return
                finally:
                    with outer._lock:
                        outer._under_way -= 1
                body = answer.body
                if not isinstance(body, bytes):
                    body = (body if isinstance(body, str) else json.dumps(body)).encode()
                with contextlib.suppress(OSError):
                    self.send_response(answer.status)
                    for name, value in answer.headers.items():
                        self.send_header(name, value)
                    self.send_header("Content-Length", str(len(body) + answer.promised))
                    self.end_headers()
                    for piece in [body] if not answer.pause else [body[i : i + 1] for i in range(len(body))]:
                        outer.stopping.wait(answer.pause)
                        self.wfile.write(piece)
                if answer.promised:
                    self.close_connection = True

            def log_message(self, *_: object) -> None:
                pass

        class Listener(http.server.ThreadingHTTPServer):
            request_queue_size = 128
            block_on_close = False

            def handle_error(self, *_: object) -> None:  # a client that was killed
                pass

        self._listener = Listener(("127.0.0.1", port), Handler)
        self.port = self._listener.server_address[1]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def questions(self) -> list[str]:
        return [seen.question for seen in self.received]

    def wait_for(self, count: int) -> None:
        """Until so many requests have come."""
        until = time.monotonic() + 20
        while len(self.received) < count:
            assert time.monotonic() < until, f"only {len(self.received)} of {count} requests came"
            time.sleep(0.005)

    def stop(self) -> None:
        """As if its process was killed: nobody listens, and all connections break."""
        self.stopping.set()
        self._listener.shutdown()
        self._listener.server_close()
        self._thread.join()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    """Starts servers that end with the test: ``serve(respond)``, or ``serve()`` for one that repeats the question."""
    servers: list[Server] = []

    def start(respond: Respond = lambda number, seen: Sent(chat(seen.question)), port: int = 0) -> Server:
        servers.append(Server(respond, port))
        return servers[-1]

    yield start
    for server in servers:
        if not server.stopping.is_set():
            server.stop()


@pytest.fixture
def sent() -> type[Sent]:
    return Sent


@pytest.fixture
def chat_answer() -> Callable[..., dict[str, Any]]:
    return chat


@pytest.fixture
def questions() -> Callable[..., list[Request]]:
    """Requests with one user message each: "question 0", "question 1", ..."""

    def build(count: int, **options: Any) -> list[Request]:
        return [Request((Message("user", f"question {n}"),), **options) for n in range(count)]

    return build
