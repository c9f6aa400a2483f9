"""Weights, gradients and moments divided among ranks, by torch's FSDP2, for models that fit no device.

Each layer's weights are gathered when it computes and dropped afterwards. The engine's packed calls run inside of a
module around the model, which holds what lies outside of layers. All ranks make the same number of calls: one with
fewer rows repeats a row whose loss counts nothing.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.recompute import owns_bias
from spintune.engine.sharing import ENGINE, whole_tensor
from spintune.errors import ModelError, RecipeError
from spintune.models.unread import UnreadWeights
from spintune.ranks.team import Team
from spintune.recipe import Recipe

_SHARE_OF_FREE = 0.6
"""What all weights may take of a GPU's free memory while answers are written; keys and values need the rest."""


class ShardedModel(nn.Module):
    """A model whose weights are divided among ranks. Calling it gathers them for the length of ``compute``.

    Args:
        unread: weights that are read and divided layer by layer; None when all were read.
        offload: keep shares, their gradients and moments in the memory of the CPU, where they are updated.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        mesh: DeviceMesh,
        autocast: torch.dtype | None,
        unread: UnreadWeights | None = None,
        offload: bool = False,
    ) -> None:
        super().__init__()
        self.model, self._autocast = model, autocast
        self._layers = [one for one in model.modules() if isinstance(one, GradientCheckpointingLayer)]
        if not self._layers:
            raise ModelError(f"parallel: {type(model).__name__} does not say what its layers are; use replicate")
        # T5's first layers compute the bias of all others, outside of their own call
        self._layers = [one for one in self._layers if not owns_bias(one)]
        policy = MixedPrecisionPolicy(autocast, torch.float32 if autocast else None, cast_forward_inputs=False)
        place = CPUOffloadPolicy() if offload else OffloadPolicy()
        for part in (*self._layers, self):
            if unread:
                unread.read(part.parameters())
            fully_shard(part, mesh=mesh, mp_policy=policy, offload_policy=place)
        for part in (self, *self._layers):
            # a sum: the loss is divided by the weight of all ranks. gloo has no reduction that scales
            cast(FSDPModule, part).set_gradient_divide_factor(1.0)
            cast(FSDPModule, part).set_force_sum_reduction_for_comms(True)

    def forward(self, compute: Callable[[], Tensor]) -> Tensor:
        return compute()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside, this rank has all weights, and may compute what the others do not. All ranks must enter."""
        with torch.no_grad():
            self(lambda: torch.zeros(()))  # FSDP learns which module is the root
            for part in (self, *self._layers):
                cast(FSDPModule, part).unshard()
                cast(FSDPModule, part).set_reshard_after_forward(False, recurse=False)
        try:
            yield
        finally:
            for layer in self._layers:
                cast(FSDPModule, layer).set_reshard_after_forward(True, recurse=False)
            for part in (self, *self._layers):
                cast(FSDPModule, part).reshard()

    @contextlib.contextmanager
    def by_layer(self, team: Team) -> Iterator[None]:
        """Inside, a layer's weights are gathered when it computes. All ranks must enter.

        Each may call the model as often as it needs: who is done gathers for the others until all are.
        """
        with torch.no_grad():
            self(lambda: torch.zeros(()))
            for layer in self._layers:  # made here, for good: elsewhere torch would make tensors without gradients
                cast(FSDPModule, layer).unshard()
                cast(FSDPModule, layer).reshard()
            cast(FSDPModule, self).unshard()
        call = self._layers[0].register_forward_pre_hook(lambda *_: [team.sum([1.0]), None][1], prepend=True)
        try:
            yield
            call.remove()
            while team.sum([0.0])[0]:
                for layer in self._layers:
                    cast(FSDPModule, layer).unshard()
                    cast(FSDPModule, layer).reshard()
        finally:
            call.remove()
            cast(FSDPModule, self).reshard()

    def has_room(self) -> bool:
        """Whether all weights fit this rank's GPU, beside what is there and a cache of keys and values."""
        if not torch.cuda.is_available():
            return True
        size = sum(one.numel() * (self._autocast or one.dtype).itemsize for one in self.parameters())
        free = torch.cuda.mem_get_info()[0] + torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return size < _SHARE_OF_FREE * free


def check_parallel(recipe: Recipe, size: int) -> None:
    """Raises RecipeError for a number of ranks among which weights cannot be divided."""
    copies = recipe.copies or 1
    if size == 1:
        raise RecipeError("parallel: shard needs several processes; start it with --gpus, torchrun or srun")
    if size % copies or size == copies:
        raise RecipeError(f"copies: {size} ranks cannot hold {copies} sharded copies; give a smaller divisor of {size}")


def shard_model(
    engine: LogProbEngine, team: Team, copies: int, unread: UnreadWeights | None = None, offload: bool = False
) -> None:
    """Divides the weights of an engine's model among all ranks, or among those of each of several copies (HSDP).

    Args:
        unread: those of its weights that were not read yet. A rank then holds its share and one layer at most.
        offload: keep shares and what belongs to them in the memory of the CPU.
    """
    if not engine.packed:  # ranks would call layers as often as each has responses
        name = type(engine.model).__name__
        raise ModelError(f"parallel: shard needs packed rows, and {name} has none ({engine.why}); use replicate")
    kind = (unread or engine.model).device.type
    if copies > 1:
        mesh = init_device_mesh(kind, (copies, team.size // copies), mesh_dim_names=("copies", "shards"))
    else:
        mesh = init_device_mesh(kind, (team.size,), mesh_dim_names=("shards",))
    engine.inside = ShardedModel(engine.model, mesh, engine.autocast, unread, offload)


def whole_weights(team: Team) -> dict[str, Tensor]:
    """On the writer, all trained weights in the memory of the CPU; nothing on other ranks. All ranks must call."""
    engine = cast(LogProbEngine, team.objects[ENGINE])
    found: dict[str, Tensor] = {}
    for name, parameter in engine.model.named_parameters():
        if parameter.requires_grad:
            full = whole_tensor(parameter)
            if not team.rank:
                found[name] = full.detach().cpu()
    return found
