"""What the ranks of a run do together besides training: compare themselves, and hold the same model."""

from __future__ import annotations

import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch

from spintune.engine.sharing import ENGINE
from spintune.errors import RankError
from spintune.generation.sharing import GENERATOR, SharedGenerator
from spintune.ranks.team import Team
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.storage import digest_json
from spintune.typed_json import JsonObject
from spintune.version import __version__

if TYPE_CHECKING:
    from spintune.stages.context import RunContext

CONTEXT = "context"

_SEEN_SECONDS = 10.0
"""What a network file system has to show a new file to other machines."""


def enroll(team: Team, context: RunContext) -> None:
    """This rank takes part in a run."""
    team.objects[CONTEXT] = context


def compare_ranks(team: Team, context: RunContext) -> None:
    """On the writer: raises RankError unless all ranks run the same recipe in the same folder with the same code."""
    enroll(team, context)
    told = team.call(_describe)
    for rank, other in enumerate(told):
        for what, value in told[0].items():
            if other[what] != value:
                raise RankError(
                    f"rank {rank} has another {what} ({other[what]}) than rank 0 ({value}); start all ranks with the "
                    "same command, from one installation and one folder"
                )
    mark = context.run.folder / f".ranks-{secrets.token_hex(8)}.tmp"
    mark.touch()
    try:
        blind = [str(rank) for rank, sees in enumerate(team.call(_sees, str(mark.absolute()))) if not sees]
    finally:
        mark.unlink()
    if blind:
        raise RankError(
            f"rank {', '.join(blind)}: {context.run.folder.absolute()} is another folder there than on rank 0; give an "
            "out= on a file system that all nodes share"
        )


def _describe(team: Team) -> list[JsonObject]:
    context = cast("RunContext", team.objects[CONTEXT])
    return team.gather(
        {
            "version of spintune": __version__,
            "version of torch": torch.__version__,
            "recipe": digest_json(context.recipe.identity())[:12],
            "out": str(context.run.folder.absolute()),
            "kind of device": "GPU" if torch.cuda.is_available() else "CPU",
        }
    )


def _sees(team: Team, path: str) -> list[bool]:
    until = time.monotonic() + _SEEN_SECONDS
    while not (sees := Path(path).exists()) and time.monotonic() < until:
        time.sleep(0.2)
    return team.gather(sees)


def load_on_ranks(team: Team, iterate: Iterate) -> LoadedIterate:
    """Every rank reads an iterate, in place of the one that it holds."""
    context = cast("RunContext", team.objects[CONTEXT])
    for name in (ENGINE, GENERATOR):
        team.objects.pop(name, None)
    loaded = context.read_here(iterate)
    team.objects[ENGINE], team.objects[GENERATOR] = loaded.engine, loaded.generator
    loaded.generator = SharedGenerator(loaded.generator, loaded.engine)
    return loaded
