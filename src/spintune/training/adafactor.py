"""Adafactor with a rate of one's own, as T5 and FLAN-T5 were fine-tuned.

torch's optimizer of that name is another one: it multiplies the rate by the size of each tensor (at least 1e-3 times),
caps it at 1/√t, and limits the estimated squares from below instead of adding to them. With a rate of 5e-4 it moves a
matrix of entries about 0.05 by a twentieth of what is meant here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Adafactor(torch.optim.Optimizer):
    """Adafactor (arXiv 1804.04235, algorithms 4 and 5) without first moment, relative step and parameter scale.

    Of a matrix, squared gradients are remembered by row and by column alone::

        R = β R + (1 - β) mean over columns of (G² + ε)        β = 1 - t ** -0.8
        C = β C + (1 - β) mean over rows of (G² + ε)
        U = G / √(R C / mean(R))
        θ = θ - rate · U / max(1, rms(U) / clip)

    Vectors remember every square. At the first step β is 0, so that a single entry moves by the rate exactly.

    Args:
        params: parameters, or groups of them.
        lr: rate of each step; the schedule is the caller's.
        weight_decay: decoupled: weights shrink by rate · weight_decay each step.
        eps: ε, added to squared gradients. Default: the paper.
        clip: largest root mean square of an update. Default: the paper.
        decay: exponent of β. Default: the paper.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
        lr: float,
        weight_decay: float = 0.0,
        eps: float = 1e-30,
        clip: float = 1.0,
        decay: float = 0.8,
    ) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "eps": eps, "clip": clip, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, parameter.grad, group)

    def _move(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            # under the name "step" torch leaves its type alone when a state is loaded
            state["step"] = torch.zeros((), dtype=torch.float32)
            state |= _empty_moments(gradient)
        state["step"] += 1
        weight = state["step"].item() ** -group["decay"]
        square = gradient.square().add_(group["eps"])
        if gradient.ndim >= 2:
            row, column = state["row"], state["column"]
            row.lerp_(square.mean(-1, keepdim=True), weight)
            column.lerp_(square.mean(-2, keepdim=True), weight)
            update = (row / row.mean(-2, keepdim=True)).rsqrt_() * column.rsqrt()
        else:
            update = state["square"].lerp_(square, weight).rsqrt()
        update *= gradient
        rms = update.square().mean().sqrt()
        update /= (rms / group["clip"]).clamp_(min=1.0)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.sub_(update, alpha=group["lr"])


def _empty_moments(gradient: Tensor) -> dict[str, Tensor]:
    if gradient.ndim < 2:
        return {"square": torch.zeros_like(gradient)}
    return {"row": torch.zeros_like(gradient[..., :1]), "column": torch.zeros_like(gradient[..., :1, :])}
