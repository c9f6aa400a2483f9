"""A connection of every rank to the writer that tells of signals, errors and ended processes at once.

Collective operations notice a dead process late or never: NCCL waits ten minutes, gloo until its next message. So a
thread of each rank watches a socket, whatever the process computes. A process that ends closes its socket, also one
that is killed. A machine that has no power or no network any more closes nothing: TCP's keepalive notices it.
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

from spintune.errors import RankError
from spintune.portable import notice_silence, signals

GRACE_SECONDS = 5.0
"""What a process has to end by itself, after another one died. [seconds]"""

STUCK_SECONDS = 120.0
"""What a rank has to take notice of a signal. It cannot while it waits for another rank. [seconds]"""

LAST_SECONDS = 30.0
"""What saving has, where it may need a rank that does not answer. [seconds]"""

CONNECT_SECONDS = 60.0
"""How long the writer and a follower try to connect."""

_IDLE, _BETWEEN, _PROBES = 5, 3, 3  # 14 s until a silent machine counts as gone
_SAME_SECONDS = 1.0  # a signal that comes again so soon is the same request


@dataclass(frozen=True)
class Lost:
    """How another rank ended.

    Attributes:
        error: its line; None when it was killed and could say nothing.
        code: its exit code, where it said one.
        silent: its machine answers nothing any more.
    """

    rank: int
    error: str | None = None
    code: int | None = None
    silent: bool = False


class _Message(TypedDict, total=False):
    """A line between two ranks: a signal that came, the writer's end, or an end too early.

    Attributes:
        heard: a signal that the writer was told of.
        ended: the writer's exit code.
        lost: the rank that ended with ``error`` and ``code``, if another than the one that says so.
    """

    signal: int
    heard: int
    ended: int
    error: str | None
    code: int | None
    silent: bool
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
    heeds: Callable[[], bool] | None = None
    """On the writer: whether it has taken notice of a signal, in Python."""
    on_stuck: Callable[[int], None] = lambda number: None
    """Called with a signal that nothing takes notice of, because this process waits for a rank that does not answer."""
    _came: dict[int, float] = field(default_factory=dict)
    _heard: set[int] = field(default_factory=set)
    _passed: set[int] = field(default_factory=set)
    _noticed: threading.Event = field(default_factory=threading.Event)
    _over: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        """Begins to watch. Signals that a follower gets are passed to the writer, which decides."""
        self._wake, self._wakes = socket.socketpair()  # a closed end would end the other
        self._wakes.setblocking(False)
        signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
        self._hosts = {}
        for rank, peer in self.peers.items():
            notice_silence(peer, _IDLE, _BETWEEN, _PROBES)
            self._hosts[rank] = peer.getpeername()[0]
        threading.Thread(target=self._watch, name="lifeline", daemon=True).start()

    def say(self, **message: Unpack[_Message]) -> None:
        """Sends a message to the peers."""
        line = json.dumps(message).encode() + b"\n"
        for peer in self.peers.values():
            with contextlib.suppress(OSError):
                peer.sendall(line)

    @property
    def is_silent(self) -> bool:
        """Whether a rank does not answer any more, whose machine is gone."""
        return self.lost is not None and self.lost.silent

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
                    self._take_signals(self._wake.recv(64))
                    continue
                silent = False
                try:
                    data = key.fileobj.recv(65536)  # type: ignore[union-attr]
                except OSError as error:
                    data, silent = b"", not isinstance(error, ConnectionError)
                if not data:
                    selector.unregister(key.fileobj)
                    self._gone(key.data, silent)
                    continue
                *lines, buffers[key.data] = (buffers[key.data] + data).split(b"\n")
                for line in lines:
                    self._hear(key.data, json.loads(line))

    def _take_signals(self, numbers: bytes) -> None:
        now = time.monotonic()
        for number in numbers:
            if number not in signals(("SIGTERM", "SIGUSR1", "SIGHUP", "SIGINT")):
                continue
            if self.rank:
                self.say(signal=number)
            if number not in self._came:
                self._came[number] = now
                timer = threading.Timer(STUCK_SECONDS, self._check_heeded, (number,))
                timer.daemon = True
                timer.start()
            elif self.heeds and now - self._came[number] > _SAME_SECONDS:
                self._check_heeded(number)

    def _check_heeded(self, number: int) -> None:
        """Ends this process if neither it nor the writer takes notice of a signal."""
        heeded = self.heeds() if self.heeds else number in self._heard
        if not heeded and not self._over.is_set():
            self.on_stuck(number)

    def _hear(self, rank: int, message: _Message) -> None:
        if "signal" in message:
            number = message["signal"]
            if number not in self._passed | set(self._came):  # each rank of a job gets it
                self._passed.add(number)
                os.kill(os.getpid(), number)
            self.say(heard=number)
        elif "heard" in message:
            self._heard.add(message["heard"])
        elif "ended" in message:
            self.ended = message["ended"]
        elif "error" in message:
            silent = message.get("silent", False)
            self._lose(Lost(message.get("lost", rank), message["error"], message["code"], silent))

    def _gone(self, rank: int, silent: bool) -> None:
        """A peer's socket is closed, since it ended, or its machine is silent."""
        if silent:
            error = f"{self._hosts[rank]} no longer answers; look at the power and network of this node"
            self._lose(Lost(rank, error, silent=True))
        else:
            self._lose(Lost(rank, code=self.ended))

    def _lose(self, lost: Lost) -> None:
        if self.lost is None and not self._over.is_set():
            self.lost = lost
            if not self.rank:  # followers are not connected to each other
                self.say(lost=lost.rank, error=lost.error, code=lost.code, silent=lost.silent)
            self.on_lost(lost)
            threading.Thread(target=self._insist, daemon=True).start()

    def _insist(self) -> None:
        """Ends this process, should it be held in an operation that no one answers any more."""
        ends = self._noticed.wait(GRACE_SECONDS if self.ended is None else 0.2)
        if ends and self.is_silent:  # saving may need the rank that does not answer
            ends = self._over.wait(LAST_SECONDS)
        if not ends and not self._over.is_set():
            self.on_silence(self.lost or Lost(0))


def listen(host: str, followers: int) -> tuple[socket.socket, int]:
    """A socket for so many followers, and its port."""
    server = socket.create_server((host, 0), backlog=followers)
    return server, server.getsockname()[1]


def accept(server: socket.socket, followers: int, secret: str) -> dict[int, socket.socket]:
    """The connections of all followers, by rank. Raises RankError for those that do not come."""
    peers: dict[int, socket.socket] = {}
    until = time.monotonic() + CONNECT_SECONDS
    with server:
        while len(peers) < followers:
            server.settimeout(max(0.001, until - time.monotonic()))
            try:
                peer, _ = server.accept()
            except TimeoutError as error:
                missing = ", ".join(str(rank) for rank in range(1, followers + 1) if rank not in peers)
                raise RankError(
                    f"rank {missing} did not connect to port {server.getsockname()[1]} of the first rank within "
                    f"{CONNECT_SECONDS:g} s; let the nodes connect to each other on all ports"
                ) from error
            peer.settimeout(30)
            with contextlib.suppress(OSError, ValueError):
                told, _, rank = peer.makefile("rb").readline(256).decode().strip().partition(" ")
                if told == secret:
                    peer.settimeout(None)
                    peers[int(rank)] = peer
                    continue
            peer.close()
    return peers


def connect(host: str, port: int, rank: int, secret: str) -> socket.socket:
    """A follower's connection to the writer. Raises RankError where it cannot be reached."""
    try:
        peer = socket.create_connection((host, port), timeout=CONNECT_SECONDS)
    except OSError as error:
        raise RankError(
            f"rank {rank} cannot connect to port {port} of {host}, the first rank ({error}); let the nodes connect to "
            "each other on all ports"
        ) from error
    peer.settimeout(None)
    peer.sendall(f"{secret} {rank}\n".encode())
    return peer
