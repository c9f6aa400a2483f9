"""Many processes that work on one run.

The *writer*, rank 0, runs the pipeline: it alone locks the run folder, decides, writes and prints. The other ranks
follow its commands (:mod:`spintune.ranks.team`): to load a model, to train on their share of a step, to answer or score
their share of prompts. Between commands they wait, without a time limit, and an ended process is noticed at once
(:mod:`spintune.ranks.lifeline`).

So code of the pipeline needs no barrier. While the writer works alone it is rank 0 of 1, and the functions here change
nothing. Inside a command they speak of all ranks, and every rank must call them alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from spintune.ranks import team as _team

T = TypeVar("T")


def rank() -> int:
    """The number of this process among those that work on the same thing now; 0 while one works alone."""
    shared = _team.shared()
    return shared.rank if shared else 0


def world_size() -> int:
    """How many processes work on the same thing now; 1 while one works alone."""
    shared = _team.shared()
    return shared.size if shared else 1


def is_writer() -> bool:
    """Whether this process writes files and prints."""
    return rank() == 0


def barrier() -> None:
    """Waits until every rank is here."""
    from_writer(None)
    all_sum([0.0])


def from_writer(value: T) -> T:
    """The writer's value, on every rank. Values of other ranks are not looked at."""
    shared = _team.shared()
    return shared.broadcast(value) if shared else value


def all_sum(values: Sequence[float]) -> list[float]:
    """The sums over all ranks of each number, in float64; the same bits on every rank."""
    shared = _team.shared()
    return shared.sum(values) if shared else list(values)
