"""Ranks that are silent, paused or cannot connect."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from spintune.errors import RankError
from spintune.portable import notice_silence
from spintune.ranks import lifeline
from spintune.ranks.lifeline import Lifeline, Lost, accept, connect, listen

_CONNECTS = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).recv(1)"


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="other systems have fewer options")
def test_the_system_asks_a_silent_machine() -> None:
    with socket.socket() as one:
        notice_silence(one, 5, 3, 3)
        assert one.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT)
        # 11 s: the third question is asked at 5 + 3 + 3, and no answer to it counts at the next one, 14
        assert [one.getsockopt(socket.IPPROTO_TCP, name) for name in names] == [5, 3, 3, 11_000]


def test_followers_that_do_not_connect(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lifeline, "CONNECT_SECONDS", 0.2)
    server, port = listen("127.0.0.1", 3)
    peer = connect("127.0.0.1", port, 2, "secret")
    with pytest.raises(RankError, match=rf"rank 1, 3 did not connect to port {port} of the first rank within 0.2 s"):
        accept(server, 3, "secret")
    peer.close()
    with pytest.raises(RankError, match=rf"rank 1 cannot connect to port {port} of 127.0.0.1"):
        connect("127.0.0.1", port, 1, "secret")


@pytest.fixture
def far() -> Iterator[str]:
    """A network namespace at 10.91.7.2, beside this machine at 10.91.7.1."""
    name = f"spintune{os.getpid() % 10_000}"
    near = f"s{os.getpid() % 10_000}a"
    there = near[:-1] + "b"
    words = [
        f"netns add {name}",
        f"link add {near} type veth peer name {there} netns {name}",
        f"address add 10.91.7.1/30 dev {near}",
        f"link set {near} up",
        f"-n {name} address add 10.91.7.2/30 dev {there}",
        f"-n {name} link set {there} up",
    ]
    made = shutil.which("ip") and all(_ip(line) for line in words)
    try:
        if not made:
            pytest.skip("this user cannot make network namespaces")
        yield f"-n {name} link set {there} down"
    finally:
        if shutil.which("ip"):
            _ip(f"netns delete {name}")


def _ip(line: str) -> bool:
    return subprocess.run(["ip", *line.split()], capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("event", ["paused", "cut"])
def test_a_machine_without_network_is_noticed_and_a_paused_process_is_not(
    far: str, event: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lifeline, "_IDLE", 1)
    monkeypatch.setattr(lifeline, "_BETWEEN", 1)
    found: list[Lost] = []
    with socket.create_server(("10.91.7.1", 0)) as server:
        namespace = far.split()[1]
        words = ["ip", "netns", "exec", namespace, sys.executable, "-c", _CONNECTS, "10.91.7.1"]
        follower = subprocess.Popen([*words, str(server.getsockname()[1])])
        peer, _ = server.accept()
    line = Lifeline(0, {1: peer}, on_lost=found.append)
    line.start()
    try:
        if event == "cut":
            assert _ip(far)
        else:
            follower.send_signal(signal.SIGSTOP)
        until = time.monotonic() + (15 if event == "cut" else 6)
        while not found and time.monotonic() < until:
            time.sleep(0.05)
    finally:
        line.close()
        follower.kill()
        follower.wait()
    if event == "paused":
        assert not found
    else:
        (lost,) = found
        assert (lost.rank, lost.silent) == (1, True)
        assert "10.91.7.2 no longer answers" in str(lost.error)
