"""What training a model takes: memory, and disk for its checkpoints."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from spintune.recipe.section import OptimizerName


@dataclass(frozen=True)
class TrainingFootprint:
    """Bytes that training keeps all the time; activations come on top, and depend on tokens_per_forward."""

    weights: int
    gradients: int
    moments: int

    @property
    def total(self) -> int:
        """All three."""
        return self.weights + self.gradients + self.moments

    @property
    def checkpoint(self) -> int:
        """Bytes of a checkpoint: the weights that are trained, which are as large as their gradients, and moments."""
        return self.gradients + self.moments


def footprint(model: nn.Module, optimizer: OptimizerName = "adamw") -> TrainingFootprint:
    """What training the parameters of ``model`` that want gradients takes."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if optimizer == "adafactor":  # a row and a column for each matrix
        factored = [p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.ndim >= 2 else p.numel() for p in trained]
        moments = 4 * sum(factored)
    else:
        moments = sum(p.numel() * p.element_size() for p in trained) * {"adamw": 2, "rmsprop": 1}[optimizer]
    return TrainingFootprint(
        weights=sum(p.numel() * p.element_size() for p in model.parameters()),
        gradients=sum(p.numel() * p.element_size() for p in trained),
        moments=moments,
    )
