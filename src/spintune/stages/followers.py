"""What the ranks of a run do together besides training: compare themselves, and hold the same model."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Protocol, cast

import torch

from spintune.engine.sharing import ENGINE
from spintune.errors import RankError
from spintune.generation.checked import CheckedGenerator
from spintune.generation.sharing import GENERATOR, SharedGenerator
from spintune.kernels.native.build import SWITCH
from spintune.models.loading import default_device
from spintune.ranks.team import Team, commanding
from spintune.recipe import Recipe
from spintune.run_folder import RunFolder
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.storage import digest_json
from spintune.training.footprint import outgrows_gpu
from spintune.training.stepping import end_steps
from spintune.typed_json import JsonObject
from spintune.version import __version__

CONTEXT = "context"

_SEEN_SECONDS = 10.0
"""What a network file system has to show a new file to other machines."""


class RankContext(Protocol):
    """A run as a rank sees it: a :class:`spintune.stages.context.RunContext`."""

    recipe: Recipe
    run: RunFolder

    def read_here(self, iterate: Iterate, unread: bool = False) -> LoadedIterate:
        """The iterate in this rank's memory, in place of the previous one; its weights may stay unread."""


def enroll(team: Team, context: RankContext) -> None:
    """This rank takes part in a run."""
    team.objects[CONTEXT] = context


def compare_ranks(team: Team, context: RankContext) -> None:
    """On the writer: raises RankError unless all ranks run the same recipe in the same folder with the same code."""
    enroll(team, context)
    told = team.call(_describe)
    for rank, other in enumerate(told):
        for what, value in told[0].items():
            if other[what] != value:
                raise RankError(
                    f"rank {rank} has another {what} ({other[what]}) than rank 0 ({value}); start all ranks with the "
                    "same command and environment, from one installation and one folder"
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
    context = cast(RankContext, team.objects[CONTEXT])
    recipe = context.recipe
    return team.gather(
        {
            "version of spintune": __version__,
            "version of torch": torch.__version__,
            **{f"version of {name}": _version(name) for name in ("transformers", "peft")},
            "recipe": digest_json(recipe.identity())[:12],
            "parallel": recipe.parallel or "auto",  # no part of the identity: a run goes on with another layout
            "copies": recipe.copies or 1,
            "out": str(context.run.folder.absolute()),
            "kind of device": default_device().type,
            SWITCH: os.environ.get(SWITCH) or "unset",
        }
    )


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"


def _sees(team: Team, path: str) -> list[bool]:
    until = time.monotonic() + _SEEN_SECONDS
    while not (sees := Path(path).exists()) and time.monotonic() < until:
        time.sleep(0.2)
    return team.gather(sees)


def load_on_ranks(team: Team, iterate: Iterate) -> LoadedIterate:
    """Every rank reads an iterate, in place of the one that it holds."""
    context = cast(RankContext, team.objects[CONTEXT])
    forget_model(team)
    loaded = context.read_here(iterate, unread=_may_shard(context.recipe, iterate))
    unread = loaded.loaded.unread
    if any(team.gather(shards(context.recipe, loaded))):  # GPUs may have more memory on one node than on another
        from spintune.engine.sharded import shard_model

        if isinstance(loaded.generator, CheckedGenerator):
            loaded.generator.decide()
        loaded.engine.standin = None
        if unread:
            unread.standin = None
        offload = context.recipe.offload in ("optimizer", "both")
        shard_model(loaded.engine, team, context.recipe.copies or 1, unread, offload)
        loaded.loaded.unread = None
    elif unread:
        loaded = context.read_here(iterate)
    team.objects[ENGINE], team.objects[GENERATOR] = loaded.engine, loaded.generator
    loaded.generator = SharedGenerator(loaded.generator, loaded.engine)
    return loaded


def forget_model(team: Team) -> None:
    """This rank lets go of the model that it holds, so that there is room for another."""
    end_steps(team)  # of a training that failed
    for name in (ENGINE, GENERATOR):
        team.objects.pop(name, None)


def _may_shard(recipe: Recipe, iterate: Iterate) -> bool:
    """Whether a model is not read before it is known what part of it this rank needs."""
    if recipe.lora and recipe.lora.dora and not iterate.adapter:
        return False  # new adapters measure the weights that they belong to
    may = recipe.parallel in (None, "auto") and recipe.needs_whole_weights is None and default_device().type == "cuda"
    return recipe.parallel == "shard" or may


def shards(recipe: Recipe, loaded: LoadedIterate) -> bool:
    """Whether this rank would divide a model. By itself only one whose training does not fit its GPU."""
    if recipe.parallel not in (None, "auto"):
        return recipe.parallel == "shard"
    memory = _gpu_memory()
    if memory is None or recipe.needs_whole_weights or not loaded.engine.packed:
        return False
    optimizers = [section.optimizer for section in (recipe.sft, recipe.spin) if section]
    return outgrows_gpu(loaded.loaded.model, optimizers, memory)


def _gpu_memory() -> int | None:
    """The memory of this rank's GPU; None on a CPU. [bytes]"""
    device = default_device()
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def whole_player(player: LoadedIterate, read: Callable[[], LoadedIterate]) -> LoadedIterate:
    """The player with all its weights, to be saved: itself, or if it is sharded what ``read`` gives, with them."""
    team = commanding()
    if team is None or not player.engine.is_sharded:
        return player
    from spintune.engine.sharded import whole_weights

    weights = team.call(whole_weights)
    plain = read()
    with torch.no_grad():
        for name, parameter in plain.loaded.model.named_parameters():
            if name in weights:
                parameter.copy_(weights.pop(name))
    return plain
