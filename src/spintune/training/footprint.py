"""What training a model takes: memory, and disk for its checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from spintune.models.quantized import bytes_of
from spintune.recipe.section import OptimizerName
from spintune.training.muon import hidden_matrices

_SHARE_OF_GPU = 0.75
"""What weights, gradients and moments may take of a GPU before they are sharded; activations need the rest."""

_BLOCK = 256
"""Moments of 8 bits that share a scale."""

_SMALL = 4096
"""Parameters of fewer numbers keep moments in float32."""


@dataclass(frozen=True)
class TrainingFootprint:
    """Bytes that training keeps all the time; activations come on top, and depend on tokens_per_forward."""

    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """Weights, gradients and moments."""
        return self.weights + self.gradients + self.moments

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: the weights that are trained, which are as large as their gradients, and moments."""
        return self.gradients + self.moments


def footprint(model: nn.Module, optimizer: OptimizerName = "adamw") -> TrainingFootprint:
    """What training the parameters of ``model`` that want gradients takes. The model may be on the meta device."""
    trained = [p for p in model.parameters() if p.requires_grad]
    gradients = sum(p.numel() * p.element_size() for p in trained)
    others = set(trained) - hidden_matrices(model) if optimizer == "muon" else set()
    return TrainingFootprint(
        weights=sum(map(bytes_of, model.parameters())),
        gradients=gradients,
        moments=sum(moment_bytes(tuple(p.shape), "adamw" if p in others else optimizer) for p in trained),
    )


def outgrows_gpu(model: nn.Module, optimizers: Iterable[OptimizerName], memory: float) -> bool:
    """Whether a model is to be sharded among GPUs of so many bytes, to be trained by each of these optimizers."""
    most = max((footprint(model, optimizer).total for optimizer in optimizers), default=0)
    return most > _SHARE_OF_GPU * memory


def moment_bytes(shape: tuple[int, ...], optimizer: OptimizerName) -> int:
    """Bytes of the moments of a parameter, a hidden matrix for muon, which leaves all others to adamw.

    They are float32 but for adamw8bit, whatever the type of the weights.
    """
    count = math.prod(shape)
    if optimizer == "adafactor":  # a row and a column for each matrix
        return 4 * (count // shape[-1] + count // shape[-2] if len(shape) >= 2 else count)
    if optimizer in ("rmsprop", "muon"):
        return 4 * count
    if optimizer == "adamw8bit" and count >= _SMALL:
        return 2 * (count + 4 * -(-count // _BLOCK))
    return 8 * count
