"""A connection of every rank to the writer that tells of signals, errors and ended processes at once.

Collective operations notice a dead process late or never: NCCL waits ten minutes, gloo until its next message. So a
thread of each rank watches a socket, whatever the process computes. A process that ends closes its socket, also one
that is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypedDict, Unpack

from spintune.portable import signals

GRACE_SECONDS = 5.0
"""What a process has to end by itself, after another one died. [seconds]"""


@dataclass(frozen=True)
class Lost:
    """How another rank ended.

    Attributes:
        error: its line; None when it was killed and could say nothing.
        code: its exit code, where it said one.
    """

    rank: int
    error: str | None = None
    code: int | None = None


class _Message(TypedDict, total=False):
    """A line between two ranks: a signal that came, the writer's end, or an end too early.

    Attributes:
        ended: the writer's exit code.
        lost: the rank that ended with ``error`` and ``code``, if another than the one that says so.
    """

    signal: int
    ended: int
    error: str | None
    code: int | None
    lost: int


@dataclass
class Lifeline:
    """The connections of one process, watched by a thread.

    Attributes:
        rank: of this process.
        peers: a socket for each other rank (on the writer), or for rank 0.
        lost: the first rank that ended early.
        ended: the writer's exit code, once it has said that the run is over.
    """

    rank: int
    peers: dict[int, socket.socket]
    lost: Lost | None = None
    ended: int | None = None
    on_lost: Callable[[Lost], None] = lambda lost: None
    """Called at once when another rank ended early, from the watching thread."""
    on_silence: Callable[[Lost], None] = lambda lost: None
    """Called when this process has not ended by itself some seconds later."""
    _passed: set[int] = field(default_factory=set)
    _noticed: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begins to watch. Signals that a follower gets are passed to the writer, which decides."""
        self._wake, wakes = socket.socketpair()
        if self.rank:
            wakes.setblocking(False)
            self._wakes = wakes  # a closed end would end the other
            signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
        else:
            self._wakes = wakes
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def say(self, **message: Unpack[_Message]) -> None:
        """Sends a message to the peers."""
        line = json.dumps(message).encode() + b"\n"
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(line)

    def wait_for_reason(self, seconds: float = 2.0) -> Lost | None:
        """How another rank ended, for a collective operation that failed; None when none did."""
        until = time.monotonic() + seconds
        while self.lost is None and self.ended is None and time.monotonic() < until:
            time.sleep(0.02)
        self._noticed.set()
        return self.lost

    def finish(self) -> None:
        """All is done: that others end now is no failure."""
        self._over.set()

    def close(self) -> None:
        """Ends the watching."""
        self._over.set()
        if self.rank:
            with contextlib.suppress(ValueError):
                signal.set_wakeup_fd(-1)
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()

    def _watch(self) -> None:
        selector = selectors.DefaultSelector()
        buffers = dict.fromkeys(self.peers, b"")
        for rank, peer in self.peers.items():
            selector.register(peer, selectors.EVENT_READ, rank)
        selector.register(self._wake, selectors.EVENT_READ, None)
        while not self._over.is_set():
            for key, _ in selector.select(0.5):
                if key.data is None:
                    self._pass_signals(self._wake.recv(64))
                    continue
                try:
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                except OSError:
                    data = b""
                if not data:
                    selector.unregister(key.fileobj)
                    self._gone(key.data)
                    continue
                *lines, buffers[key.data] = (buffers[key.data] + data).split(b"\n")
                for line in lines:
                    self._hear(key.data, json.loads(line))

    def _pass_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in signals(("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")):
                self.say(signal=number)

    def _hear(self, rank: int, message: _Message) -> None:
        if "signal" in message:
            number = message["signal"]
            if number not in self._passed:  # each rank of a job gets it
                self._passed.add(number)
                os.kill(os.getpid(), number)
        elif "ended" in message:
            self.ended = message["ended"]
        elif "error" in message:
            self._lose(Lost(message.get("lost", rank), message["error"], message["code"]))

    def _gone(self, rank: int) -> None:
        """A peer's socket is closed: it ended."""
        if self._over.is_set():
            return
        self._lose(Lost(rank, code=self.ended))

    def _lose(self, lost: Lost) -> None:
        if self.lost is None and not self._over.is_set():
            self.lost = lost
            if not self.rank:  # followers are not connected to each other
                self.say(lost=lost.rank, error=lost.error, code=lost.code)
            self.on_lost(lost)
            threading.Thread(target=self._insist, daemon=True).start()

    def _insist(self) -> None:
        """Ends this process, should it be held in an operation that no one answers any more."""
        seconds = GRACE_SECONDS if self.ended is None else 0.2
        if not self._noticed.wait(seconds) and not self._over.is_set():
            self.on_silence(self.lost or Lost(0))


def listen(host: str, followers: int) -> tuple[socket.socket, int]:
    """A socket for so many followers, and its port."""
    server = socket.create_server((host, 0), backlog=followers)
    return server, server.getsockname()[1]


def accept(server: socket.socket, followers: int, secret: str) -> dict[int, socket.socket]:
    """The connections of all followers, by rank."""
    peers: dict[int, socket.socket] = {}
    while len(peers) < followers:
        peer, _ = server.accept()
        peer.settimeout(30)
        with contextlib.suppress(OSError, ValueError):
            told, _, rank = peer.makefile("rb").readline(256).decode().strip().partition(" ")
            if told == secret:
                peer.settimeout(None)
                peers[int(rank)] = peer
                continue
        peer.close()
    server.close()
    return peers


def connect(host: str, port: int, rank: int, secret: str) -> socket.socket:
    """A follower's connection to the writer."""
    peer = socket.create_connection((host, port), timeout=60)
    peer.settimeout(None)
    peer.sendall(f"{secret} {rank}\n".encode())
    return peer
