"""Adafactor with an external learning rate, as used to fine-tune T5 and FLAN-T5.

``torch.optim.Adafactor`` is a different optimizer: it scales the learning rate by the RMS of each tensor (at least
1e-3), caps it at 1/√t, and clamps the squared gradients instead of adding ε. At a learning rate of 5e-4, it moves a
matrix with entries of about 0.05 twenty times less than this one.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

# of the paper
_EPSILON, _CLIP, _DECAY = 1e-30, 1.0, 0.8


class Adafactor(torch.optim.Optimizer):
    """Adafactor (arXiv 1804.04235, algorithms 4 and 5) without first moment, relative step and parameter scale.

    For a matrix it keeps running means of squared gradients by row and by column::

        R = β R + (1 - β) mean over columns of (G² + ε)        β = 1 - t ** -0.8
        C = β C + (1 - β) mean over rows of (G² + ε)
        U = G / √(R C / mean(R))
        θ = θ - rate · U / max(1, rms(U) / clip)

    For a vector it keeps one per entry. At the first step β is 0, so a single entry moves by exactly the rate.

    Args:
        params: parameters or parameter groups.
        lr: learning rate; the caller sets it before each step.
        weight_decay: decoupled weight decay; each step shrinks weights by lr · weight_decay.
    """

    def __init__(self, params: ParamsT, lr: float, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Updates every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: Tensor, gradient: Tensor, group: Mapping[str, float]) -> None:
        state = self.state[parameter]
        if not state:
            # torch keeps the data type of "step" when it loads a state
            state["step"] = torch.zeros((), dtype=torch.float32)
            state |= _empty_moments(gradient)
        state["step"] += 1
        weight = state["step"].item() ** -_DECAY
        square = gradient.square().add_(_EPSILON)
        if gradient.ndim >= 2:
            row, column = state["row"], state["column"]
            row.lerp_(square.mean(-1, keepdim=True), weight)
            column.lerp_(square.mean(-2, keepdim=True), weight)
            update = (row / row.mean(-2, keepdim=True)).rsqrt_() * column.rsqrt()
        else:
            update = state["square"].lerp_(square, weight).rsqrt()
        update *= gradient
        rms = update.square().mean().sqrt()
        update /= (rms / _CLIP).clamp_(min=1.0)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update, alpha=group["lr"])


def _empty_moments(gradient: Tensor) -> dict[str, Tensor]:
    if gradient.ndim < 2:
        return {"square": torch.zeros_like(gradient)}
    return {"row": torch.zeros_like(gradient[..., :1]), "column": torch.zeros_like(gradient[..., :1, :])}
