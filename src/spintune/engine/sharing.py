"""Scores packed calls of an engine, each on one of the ranks that hold its model."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.query import Query
from spintune.ranks.dealing import deal
from spintune.ranks.team import Team, commanding

S = TypeVar("S")

ENGINE = "engine"
"""What each rank holds: its engine of the model that the run works with."""


class SharedEngine(Protocol):
    """What this module knows of a :class:`spintune.engine.logprobs.LogProbEngine`."""

    inside: Callable[[Callable[[], Tensor]], Tensor]

    @property
    def is_sharded(self) -> bool:
        """Whether this process has a part of the weights."""


class WritingEngine(SharedEngine, Protocol):
    """What is known of it where answers are written."""

    model: PreTrainedModel
    by_layer: bool


E = TypeVar("E", bound=SharedEngine)

Reader = Callable[[E, Sequence[Query]], list[S]]
"""Scores the queries of one call. It is a function of a module, so that ranks can call it by name."""


def team_of(engine: object) -> Team | None:
    """The team whose ranks all hold the engine's model, if this process may call them."""
    team = commanding()
    return team if team is not None and team.objects.get(ENGINE) is engine else None


def score_runs(engine: E, runs: Sequence[Sequence[Query]], read: Reader[E, S], done: Callable[[int], None]) -> list[S]:
    """What ``read`` finds for the queries of all runs, one call for each run, in their order."""
    if team := team_of(engine):
        found = team.call(_score, runs, read)
        done(sum(map(len, runs)))
        return [score for scores in found for score in scores]
    scores: list[S] = []
    for run in runs:
        scores.extend(read(engine, run))
        done(len(run))
    return scores


@torch.no_grad()
def _score(team: Team, runs: Sequence[Sequence[Query]], read: Reader[E, S]) -> list[list[S]]:
    engine = cast(E, team.objects[ENGINE])
    hands = deal([sum(query.tokens for query in run) for run in runs], team.size)
    mine = {index: read(engine, runs[index]) for index in hands[team.rank]}
    for _ in range(
        engine.is_sharded * (max(map(len, hands)) - len(mine))
    ):  # shards: all ranks make the same number of calls
        read(engine, min(runs, key=len))
    everyone = {index: scores for found in team.gather(mine) for index, scores in found.items()}
    return [everyone[index] for index in range(len(runs))]


# Shards (:mod:`spintune.engine.sharded`), for code that works with and without, and imports no more of torch without


class Whole(Protocol):
    """What gathers the weights of all ranks."""

    def whole(self) -> contextlib.AbstractContextManager[None]:
        """Inside, this rank has all weights. All ranks must enter."""

    def by_layer(self, team: Team) -> contextlib.AbstractContextManager[None]:
        """Inside, a layer's weights are gathered when it computes. All ranks must enter."""

    def has_room(self) -> bool:
        """Whether all weights fit this rank's device."""


def whole(engine: SharedEngine) -> contextlib.AbstractContextManager[None]:
    """Inside, this rank has all weights of an engine's model. All ranks must enter, if it is sharded."""
    return cast(Whole, engine.inside).whole() if engine.is_sharded else contextlib.nullcontext()


@contextlib.contextmanager
def writing(engine: WritingEngine, team: Team) -> Iterator[None]:
    """Inside, this rank writes answers with an engine's model: with all weights where they fit every rank.

    Elsewhere they are gathered layer by layer for every token, which takes as long as the network needs for all of
    them. The two stacks of an encoder-decoder are not called alike, so its weights are gathered at once.
    """
    if not engine.is_sharded:
        yield
        return
    shards, stacks = cast(Whole, engine.inside), bool(engine.model.config.is_encoder_decoder)
    if stacks or team.sum([float(shards.has_room())])[0] == team.size:
        with shards.whole():
            yield
        return
    engine.by_layer = True
    try:
        with shards.by_layer(team):
            yield
    finally:
        engine.by_layer = False


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def whole_tensor(tensor: Tensor) -> Tensor:
    """All of a tensor. All ranks must ask for it, if it is sharded."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def fill(weight: Tensor, value: Tensor) -> None:
    """Overwrites a weight, or this rank's part of it, by a whole tensor that every rank has."""
    if hasattr(weight, "device_mesh"):
        from torch.distributed.tensor import DTensor, distribute_tensor

        weight = cast(DTensor, weight)
        value = value.to(weight.device, weight.dtype)
        value = distribute_tensor(value, weight.device_mesh, weight.placements, src_data_rank=None)
    weight.copy_(value)
