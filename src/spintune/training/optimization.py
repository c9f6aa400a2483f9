"""Optimizers, learning-rate schedules and gradient clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from spintune.recipe import SftSection, TrainingSection
from spintune.training.adafactor import Adafactor

Schedule = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "rmsprop", "adafactor"]


@dataclass(frozen=True)
class Optimization:
    """How weights move. Peak learning rate, decay and clipping in their usual units."""

    learning_rate: float
    schedule: Schedule = "cosine"
    warmup: float = 0.1
    """Share of all steps over which the rate rises from 0."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    optimizer: OptimizerName = "adamw"
    seed: int = 0
    """Of dropout; nothing else here is random."""
    dropout: float = 0.0
    """Of an encoder-decoder's own layers."""


def optimization_of(section: TrainingSection, learning_rate: float, seed: int) -> Optimization:
    """How a stage of the recipe moves weights."""
    return Optimization(
        learning_rate,
        section.schedule,
        section.warmup,
        section.weight_decay,
        section.max_grad_norm,
        section.optimizer,
        seed,
        # self-play has none: the player must begin as its opponent
        section.dropout if isinstance(section, SftSection) else 0.0,
    )


def rate_at(step: int, total: int, optimization: Optimization) -> float:
    """Learning rate of step ``step`` (from 0) of ``total``: linear warm-up, then the schedule down to 0.

    The first step already moves (1/warm-up of the peak), the last one still does.
    """
    warmup = round(optimization.warmup * total)
    if step < warmup:
        return optimization.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    factor = {"cosine": (1 + math.cos(math.pi * done)) / 2, "linear": 1 - done, "constant": 1.0}
    return optimization.learning_rate * factor[optimization.schedule]


def build_optimizer(model: nn.Module, optimization: Optimization) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), RMSProp with torch's defaults as in the SPIN authors' scripts, or Adafactor as for T5.

    Weight decay leaves vectors (norms, biases) alone. Frozen parameters are left out.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": optimization.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimization.optimizer == "adafactor":
        return Adafactor(groups, lr=optimization.learning_rate)
    if optimization.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=optimization.learning_rate, foreach=True)
    return torch.optim.AdamW(groups, lr=optimization.learning_rate, fused=True)


def gradient_norm(model: nn.Module) -> Tensor:
    """Euclidean norm of all gradients together."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return nn.utils.get_total_norm(gradients)


def clip_gradients(model: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scales gradients down so that their norm is at most ``max_norm``; 0 leaves them alone."""
    if max_norm > 0 and norm > max_norm:
        factor = max_norm / norm
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
