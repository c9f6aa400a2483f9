"""Ranks as forks of this process, which has imported torch already: a rank starts in milliseconds."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import spintune.pipeline  # noqa: F401 -- for the forks


@dataclass
class Rank:
    """A rank that runs or has ended.

    Attributes:
        code: its exit code, negative for the signal that killed it.
    """

    pid: int
    output: Path
    code: int | None = None

    @property
    def text(self) -> str:
        """What it printed."""
        return self.output.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def start_ranks(
    size: int, work: Callable[[int], object], folder: Path, environment: Mapping[str, str] | None = None
) -> list[Rank]:
    """Forks that call ``work`` with their rank. The environment is torchrun's, unless one is given."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    ranks = []
    for rank in range(size):
        output = folder / f"rank-{rank}.txt"
        own = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        own |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        told = environment if environment is not None else {name: str(value) for name, value in own.items()}
        pid = os.fork()
        if pid == 0:
            _be(rank, work, output, {name: value.format(rank=rank, port=port) for name, value in told.items()})
        ranks.append(Rank(pid, output))
    return ranks


def _be(rank: int, work: Callable[[int], object], output: Path, environment: Mapping[str, str]) -> None:
    """Never returns."""
    code = 1
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        os.environ.update(environment)
        work(rank)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for(ranks: Sequence[Rank], seconds: float = 300.0) -> list[int]:
    """The exit codes of all ranks. Kills what is left after so many seconds, which fails."""
    until = time.monotonic() + seconds
    while any(rank.code is None for rank in ranks):
        for rank in ranks:
            if rank.code is None and (found := os.waitpid(rank.pid, os.WNOHANG))[0]:
                rank.code = os.waitstatus_to_exitcode(found[1])
        if time.monotonic() > until:
            left = [rank for rank in ranks if rank.code is None]
            for rank in left:
                rank.signal(signal.SIGKILL)
                os.waitpid(rank.pid, 0)
            told = "\n".join(f"--- {rank.output.name}\n{rank.text}" for rank in ranks)
            raise AssertionError(f"{len(left)} ranks were still running after {seconds:g} s\n{told}")
        time.sleep(0.02)
    return [rank.code or 0 for rank in ranks]


def command(words: Sequence[str]) -> Callable[[int], None]:
    """Work: the command line with these words."""

    def work(rank: int) -> None:
        from spintune.cli import main

        sys.argv = ["spintune", *words]
        main()

    return work
