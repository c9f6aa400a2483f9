"""Checkpoints of sharded training, by torch's DCP: every rank writes and reads its part.

A checkpoint of another number of ranks is divided anew as it is read. One process reads it too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.distributed import ProcessGroup, broadcast_object_list, new_group
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from spintune.background import Background
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharing import ENGINE, fill
from spintune.ranks.team import Team
from spintune.training.optimization import optimizer_tensors, restore_optimizer
from spintune.training.replicas import OPTIMIZER
from spintune.unfinished import OPTIMIZER as OPTIMIZER_FILE
from spintune.unfinished import WEIGHTS

_WEIGHT, _STATE = "weights.", "optimizer."
METADATA = ".metadata"
_GROUP, _WRITING = "checkpoint group", "checkpoint under way"


def write_shards(team: Team, folder: str, with_optimizer: bool) -> None:
    """Every rank writes its part of the trained weights, and of its optimizer's state.

    Raises what failed on any rank, on the writer, whose error is the run's.
    """
    with _told_by_the_writer(team):
        _save(_state(team, with_optimizer), folder, team.control)


def copy_shards(team: Team) -> Callable[[Path], None]:
    """Every rank copies its part into the machine's memory. A thread of it writes the copy, when the writer's does.

    Returns what writes, for a thread of the writer.
    """
    previous = team.objects.pop(_WRITING, None)
    if isinstance(previous, Background):
        previous.wait()
    group = cast(ProcessGroup, team.objects.get(_GROUP) or new_group(backend="gloo", timeout=timedelta(days=30)))
    team.objects[_GROUP] = group  # of the threads alone: operations of a group must come in one order on all ranks
    state = {name: part.to("cpu", copy=True) for name, part in _state(team, True).items()}

    def write(folder: Path | None = None) -> None:
        box = [str(folder)]
        broadcast_object_list(box, src=0, group=group)
        with _told_by_the_writer(team):
            _save(state, box[0], group)

    if team.rank:
        team.objects[_WRITING] = Background(write)
    return write


def _state(team: Team, with_optimizer: bool) -> dict[str, Tensor]:
    model = cast(LogProbEngine, team.objects[ENGINE]).model
    state = {f"{_WEIGHT}{name}": p.detach() for name, p in model.named_parameters() if p.requires_grad}
    if with_optimizer:
        moments = optimizer_tensors(cast(torch.optim.Optimizer, team.objects[OPTIMIZER]))
        state |= {f"{_STATE}{name}": value for name, value in moments.items()}
    return state


class _Writer(FileSystemWriter):
    """Raises the system's error of a full disk. torch raises one that does not say so, and it travels alone."""

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise


def _save(state: dict[str, Tensor], folder: str, group: ProcessGroup) -> None:
    try:
        save(dict[str, object](state), storage_writer=_Writer(folder, sync_files=True), process_group=group)
    except CheckpointException as error:
        cause, _ = next(iter(error.failures.values()))
        raise cause from None


@contextlib.contextmanager
def _told_by_the_writer(team: Team) -> Iterator[None]:
    try:
        yield
    except Exception:
        if not team.rank:
            raise


def read_parts(team: Team, folder: str, with_optimizer: bool) -> None:
    """Every rank reads its part of a checkpoint, whoever wrote it."""
    model = cast(LogProbEngine, team.objects[ENGINE]).model
    optimizer = cast(torch.optim.Optimizer, team.objects[OPTIMIZER]) if with_optimizer else None
    read_into(Path(folder), model, optimizer, team)


@torch.no_grad()
def read_into(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer | None, team: Team | None = None
) -> None:
    """Reads a checkpoint of either kind into a model and an optimizer, or into a rank's part of them."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    if (folder / METADATA).is_file():
        reader = FileSystemReader(folder)
        moments = _empty_moments(reader.read_metadata(), optimizer) if optimizer is not None else {}
        state: dict[str, object] = {f"{_WEIGHT}{name}": weight.detach() for name, weight in trained.items()}
        state |= {f"{_STATE}{name}": value for name, value in moments.items()}
        load(state, storage_reader=reader, process_group=team.control if team else None, no_dist=team is None)
    else:
        with safe_open(folder / WEIGHTS, "pt") as file:
            for name, weight in trained.items():
                fill(weight, file.get_tensor(name))
        moments = _divided(load_file(folder / OPTIMIZER_FILE), optimizer) if optimizer is not None else {}
    if optimizer is not None:
        restore_optimizer(optimizer, moments)


def weight_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """The shapes of a checkpoint's weights, each as a whole."""
    found = FileSystemReader(folder).read_metadata().state_dict_metadata
    return {
        name.removeprefix(_WEIGHT): tuple(facts.size)
        for name, facts in found.items()
        if name.startswith(_WEIGHT) and isinstance(facts, TensorStorageMetadata)
    }


def _divided(moments: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Whole moments as the weights are divided."""
    parameters = _parameters(optimizer)
    for name, value in moments.items():
        weight = parameters[int(name.split(".", 1)[0])]
        if value.shape == weight.shape:
            moments[name] = torch.zeros_like(weight, dtype=value.dtype)
            fill(moments[name], value)
    return moments


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _empty_moments(metadata: Metadata, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Tensors for what a checkpoint has of an optimizer, divided as the weights are."""
    parameters = _parameters(optimizer)
    found: dict[str, Tensor] = {}
    for key, facts in metadata.state_dict_metadata.items():
        if not key.startswith(_STATE) or not isinstance(facts, TensorStorageMetadata):
            continue
        name = key.removeprefix(_STATE)
        weight = parameters[int(name.split(".", 1)[0])]
        if facts.size == weight.shape:
            found[name] = torch.zeros_like(weight, dtype=facts.properties.dtype)
        else:
            found[name] = torch.zeros(facts.size, dtype=facts.properties.dtype)
    return found
