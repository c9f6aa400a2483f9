"""What keeps the copies of a model on many ranks equal: sums of gradients, and the state to begin with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.sharing import ENGINE
from spintune.ranks.team import Team, commanding

OPTIMIZER = "optimizer"
"""What each rank holds while it trains: its optimizer, by this name."""

_BUCKET = 2**25
"""Gradients are added in buckets, so that small tensors do not wait for the network one by one. [bytes]"""


def add_gradients(model: nn.Module, team: Team) -> None:
    """Replaces every gradient by its sum over all ranks.

    A weight that no rank has computed a gradient of has none afterwards either, so that optimizers skip it.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    has = torch.tensor([parameter.grad is not None for parameter in trained], dtype=torch.int32)
    team.add_small(has)
    for parameter, count in zip(trained, has.tolist(), strict=True):
        if count and parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    dense = [gradient.to_dense() if gradient.is_sparse else gradient for gradient in gradients]
    for bucket in _buckets(dense):
        flat = _flatten_dense_tensors(bucket)
        if flat.dtype == torch.bfloat16:  # else each rank on the way would round
            flat = flat.float()
        team.add(flat)
        for gradient, total in zip(bucket, _unflatten_dense_tensors(flat, bucket), strict=True):
            gradient.copy_(total)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in their order, those of one type together as long as they are small."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > _BUCKET or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    if bucket:
        yield bucket


@torch.no_grad()
def take_weights(model: nn.Module, team: Team) -> None:
    """Every rank gets the writer's trained weights. Those of shards are no other rank's."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            team.take(parameter.data)


def take_optimizer(optimizer: torch.optim.Optimizer, team: Team) -> None:
    """Every rank gets the state of the writer's optimizer."""
    state = optimizer.state_dict()
    shapes = {
        index: {name: (value.shape, value.dtype, value.device.type) for name, value in one.items()}
        for index, one in state["state"].items()
    }
    device = next(parameter.device for group in optimizer.param_groups for parameter in group["params"])
    for index, names in team.broadcast(shapes).items():
        own = state["state"].setdefault(index, {})
        for name, (shape, dtype, where) in names.items():
            if team.rank:
                own[name] = torch.empty(shape, dtype=dtype, device="cpu" if where == "cpu" else device)
            team.take(own[name])
    if team.rank:
        optimizer.load_state_dict(state)


def share_weights(model: nn.Module) -> None:
    """The other ranks get the trained weights that the writer has read, where they hold the same model."""
    team = commanding()
    engine = team.objects.get(ENGINE) if team else None
    if team and isinstance(engine, LogProbEngine) and engine.model is model and not engine.is_sharded:
        team.call(_take_weights)


def _take_weights(team: Team) -> None:
    take_weights(cast(LogProbEngine, team.objects[ENGINE]).model, team)


def sharded_team(model: nn.Module) -> Team | None:
    """The team that this process may call, if it divides the model among its ranks."""
    team = commanding()
    engine = team.objects.get(ENGINE) if team else None
    return team if isinstance(engine, LogProbEngine) and engine.model is model and engine.is_sharded else None
