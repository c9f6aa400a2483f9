"""The processes of a run, as one of them sees them.

The writer calls a function on all ranks by :meth:`Team.call`. The others wait in :meth:`Team.follow` for the next one.
Calls and small values travel over gloo, which waits as long as it takes; tensors travel over the fastest backend.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Concatenate, ParamSpec, TypeVar

from spintune.background import wait_for_all
from spintune.errors import RankError, SpintuneError, StoppedBySignal
from spintune.ranks.environment import Place
from spintune.ranks.lifeline import LAST_SECONDS, Lifeline, Lost, accept, connect, listen
from spintune.ranks.rollcall import meet

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup

T = TypeVar("T")
P = ParamSpec("P")

_LOOPBACK = {"linux": "lo", "darwin": "lo0"}
JOIN_MINUTES = 10.0
"""How long the first rank waits for the last one."""

_Call = tuple[Callable[..., object] | None, tuple[object, ...], dict[str, object]]
_DONE: _Call = (None, (), {})

_team: Team | None = None


@dataclass
class Team:
    """All ranks of a run.

    Attributes:
        objects: what this process holds for all, such as its copy of the model, by name.
        calls: how many calls this process is inside of.
    """

    place: Place
    lifeline: Lifeline
    control: ProcessGroup
    objects: dict[str, object] = field(default_factory=dict)
    calls: int = 0

    @property
    def rank(self) -> int:
        return self.place.rank

    @property
    def size(self) -> int:
        return self.place.size

    # Calls -----------------------------------------------------------------------------------------------------------

    def call(self, function: Callable[Concatenate[Team, P], T], *arguments: P.args, **options: P.kwargs) -> T:
        """On the writer: every rank calls a function of a module, with the team first. Returns the writer's result."""
        self.broadcast((function, arguments, options))
        with self._inside():
            return function(self, *arguments, **options)

    def follow(self) -> None:
        """On the other ranks: does what the writer calls, until the run is over."""
        while True:
            function, arguments, options = self.broadcast(_DONE)
            if function is None:
                self.lifeline.finish()
                return
            with self._inside():
                function(self, *arguments, **options)

    def dismiss(self) -> None:
        """On the writer: the run is over, and the other ranks end."""
        self.lifeline.finish()
        self.broadcast(_DONE)

    @contextlib.contextmanager
    def _inside(self) -> Iterator[None]:
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1

    # Collective operations -------------------------------------------------------------------------------------------

    def broadcast(self, value: T) -> T:
        """The writer's value."""
        from torch import distributed

        box = [value]
        distributed.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, by rank, on every rank."""
        from torch import distributed

        box: list[T] = [value] * self.size
        distributed.all_gather_object(box, value, group=self.control)
        return box

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums of each number over all ranks, in float64."""
        import torch
        from torch import distributed

        total = torch.tensor(list(values), dtype=torch.float64)
        distributed.all_reduce(total, group=self.control)
        return total.tolist()

    def add(self, tensor: Tensor) -> None:
        """Replaces a tensor by its sum over all ranks."""
        from torch import distributed

        distributed.all_reduce(tensor)

    def add_small(self, tensor: Tensor) -> None:
        """The same for a small tensor of the CPU."""
        from torch import distributed

        distributed.all_reduce(tensor, group=self.control)

    def take(self, tensor: Tensor) -> None:
        """Overwrites a tensor by the writer's."""
        from torch import distributed

        distributed.broadcast(tensor, src=0)

    # Ends ------------------------------------------------------------------------------------------------------------

    def noticed(self) -> None:
        """This process knows that another one ended, and ends by itself when it has saved what it can."""
        self.lifeline.wait_for_reason(0)

    def explain(self, error: BaseException) -> BaseException:
        """The error of the rank that ended first, if that is why an operation failed here; else the error itself."""
        if isinstance(error, SpintuneError | KeyboardInterrupt):
            return error
        waits = isinstance(error, Exception) and _is_of_ranks(error)
        lost = self.lifeline.wait_for_reason(10.0 if waits else 0.0)
        return error_of(lost, error) if lost and (waits or isinstance(error, StoppedBySignal)) else error


def error_of(lost: Lost, error: BaseException | None = None) -> RankError:
    """What another rank ended by, with what was noted on this process's error."""
    found = RankError(
        f"rank {lost.rank}: {lost.error or 'ended without a word, as a process does that is killed'}"
        + ("" if lost.error else "; look at the memory of its machine")
    )
    found.exit_code = lost.code or RankError.exit_code
    for note in getattr(error, "__notes__", []):
        found.add_note(note)
    return found


def _is_of_ranks(error: Exception) -> bool:
    """Whether a collective operation failed."""
    from torch import distributed

    names = ("connection", "gloo", "nccl", "peer", "socket", "broken pipe", "timed out")
    return isinstance(error, distributed.DistError) or (
        isinstance(error, RuntimeError | OSError) and any(name in str(error).lower() for name in names)
    )


def shared() -> Team | None:
    """The team, for code that all ranks run now; None in a process that works alone."""
    return _team if _team is not None and _team.calls else None


def processes() -> int:
    """How many processes the run has, whether they work on the same thing now or not."""
    return _team.size if _team is not None else 1


def end_of_ranks() -> None:
    """A process that ends says so to its lifeline, and has time to save: it is not held by another's end."""
    if _team is not None:
        _team.noticed()


def commanding() -> Team | None:
    """The team, for the writer when it works alone and can call the others; None where there are no others."""
    return _team if _team is not None and not _team.calls and not _team.rank else None


@contextlib.contextmanager
def joined(place: Place) -> Iterator[Team]:
    """Inside, this process is a member of the team. Raises RankError when not all ranks come."""
    global _team
    team = _join(place)
    _team = team
    try:
        yield team
    finally:
        _team = None
        wait_for_all(LAST_SECONDS if team.lifeline.is_silent else None)  # a checkpoint under way uses a group
        team.lifeline.close()
        _leave()


def _join(place: Place) -> Team:
    import torch
    from torch import distributed

    if place.on_one_node and (loopback := _LOOPBACK.get(sys.platform)):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    on_gpus = torch.cuda.is_available()
    if on_gpus:
        if place.local_rank >= torch.cuda.device_count():
            raise RankError(
                f"rank {place.rank} is number {place.local_rank} on its node, which has {torch.cuda.device_count()} "
                "GPUs; start one rank for each GPU"
            )
        torch.cuda.set_device(place.local_rank)
    wait = timedelta(minutes=JOIN_MINUTES)
    try:
        met = meet(place, wait.total_seconds())
        if isinstance(met, Lost):
            if place.rank:
                raise SystemExit(error_of(met).exit_code)  # the first rank prints
            raise error_of(met)
        backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
        distributed.init_process_group(backend, store=met, rank=place.rank, world_size=place.size, timeout=wait)
        # what the writer does alone may take days
        control = distributed.new_group(backend="gloo", timeout=timedelta(days=30))
        lifeline = _lifeline(place, control)
    except (RuntimeError, OSError, ValueError) as error:
        raise RankError(
            f"rank {place.rank} of {place.size} did not meet the others at {place.address}:{place.port} within "
            f"{JOIN_MINUTES:g} minutes ({str(error).splitlines()[0][:200]}); start all ranks with the same command"
        ) from error
    return Team(place, lifeline, control)


def _lifeline(place: Place, control: ProcessGroup) -> Lifeline:
    from torch import distributed

    host = "127.0.0.1" if place.on_one_node else place.address
    if place.rank:
        box: list[tuple[int, str]] = [(0, "")]
        distributed.broadcast_object_list(box, src=0, group=control)
        port, secret = box[0]
        peers: dict[int, socket.socket] = {0: connect(host, port, place.rank, secret)}
    else:
        server, port = listen("127.0.0.1" if place.on_one_node else "", place.size - 1)
        secret = secrets.token_hex(16)
        distributed.broadcast_object_list([(port, secret)], src=0, group=control)
        peers = accept(server, place.size - 1, secret)
    lifeline = Lifeline(place.rank, peers)
    return lifeline


def _leave() -> None:
    from torch import distributed

    with contextlib.suppress(Exception):  # a broken group cannot be left in good order
        distributed.destroy_process_group()
