"""Scores packed calls of an engine, each on one of the ranks that hold its model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import torch

from spintune.engine.query import Query
from spintune.ranks.dealing import deal
from spintune.ranks.team import Team, commanding

if TYPE_CHECKING:
    from spintune.engine.logprobs import LogProbEngine

S = TypeVar("S")

ENGINE = "engine"
"""What each rank holds: its engine of the model that the run works with."""

Reader = Callable[["LogProbEngine", Sequence[Query]], list[S]]
"""Scores the queries of one call. It is a function of a module, so that ranks can call it by name."""


def team_of(engine: LogProbEngine) -> Team | None:
    """The team whose ranks all hold the engine's model, if this process may call them."""
    team = commanding()
    return team if team is not None and team.objects.get(ENGINE) is engine else None


def score_runs(
    engine: LogProbEngine, runs: Sequence[Sequence[Query]], read: Reader[S], done: Callable[[int], None]
) -> list[S]:
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
def _score(team: Team, runs: Sequence[Sequence[Query]], read: Reader[S]) -> list[list[S]]:
    engine = cast("LogProbEngine", team.objects[ENGINE])
    hands = deal([sum(query.tokens for query in run) for run in runs], team.size)
    mine = {index: read(engine, runs[index]) for index in hands[team.rank]}
    everyone = {index: scores for found in team.gather(mine) for index, scores in found.items()}
    return [everyone[index] for index in range(len(runs))]
