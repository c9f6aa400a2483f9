"""Optimizers, learning-rate schedules and gradient clipping."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from spintune.engine.sharing import local, whole_tensor
from spintune.errors import RunError
from spintune.models.quantized import require_bitsandbytes
from spintune.recipe import SftSection, TrainingSection
from spintune.recipe.section import OptimizerName, ScheduleName
from spintune.recipe.training import DECAY
from spintune.training.adafactor import Adafactor
from spintune.training.muon import Muon, hidden_matrices, require_muon
from spintune.training.rounding import ParameterGroup, PiecewiseOptimizer


@dataclass(frozen=True)
class Optimization:
    """Settings of the optimizer and its learning-rate schedule."""

    learning_rate: float
    """Peak."""
    schedule: ScheduleName = "cosine"
    warmup: float = 0.1
    """Share of all steps over which the learning rate rises from 0."""
    decay: float = DECAY
    """Share of all steps, the last ones, in which wsd lowers the learning rate."""
    floor: float = 0.0
    """Share of the peak that cosine, linear and wsd fall to."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm; 0 turns clipping off."""
    optimizer: OptimizerName = "adamw"
    seed: int = 0
    """Seed of dropout, and of the rounding of bfloat16 weights."""
    dropout: float = 0.0
    """Dropout in the layers of an encoder-decoder."""
    router_aux_loss: float | None = None
    """Weight of the load-balancing loss of experts; None: the model's own."""
    moment_steps: int = 0
    """Steps before the schedule, at rate 0, that only gather the moments of the gradient."""
    offload: bool = False
    """Keep moments in the memory of the CPU, and compute updates there."""


def optimization_of(section: TrainingSection, learning_rate: float, seed: int) -> Optimization:
    """The optimization settings of a recipe's section."""
    return Optimization(
        learning_rate,
        section.schedule,
        section.warmup,
        section.decay_share,
        section.min_lr_rate or 0.0,
        section.weight_decay,
        section.max_grad_norm,
        section.optimizer,
        seed,
        # none in self-play: the player must start equal to its opponent
        section.dropout if isinstance(section, SftSection) else 0.0,
    )


def rate_at(step: int, total: int, optimization: Optimization) -> float:
    """Learning rate of step ``step`` (from 0) of ``total``: linear warm-up, then the schedule.

    cosine, linear and wsd (arXiv 2404.06395; linear over its last part) fall to the floor, which the step after the
    last one would have. inverse_sqrt is peak · √(w / step) after w steps of warm-up, as for T5. The rate is above 0 at
    every step, the first (peak / warm-up steps) and the last included; the moment steps before are no part of it.
    """
    if step < optimization.moment_steps:
        return 0.0
    step, total = step - optimization.moment_steps, total - optimization.moment_steps
    warmup = round(optimization.warmup * total)
    if step < warmup:
        return optimization.learning_rate * (step + 1) / warmup
    if optimization.schedule == "constant":
        return optimization.learning_rate
    if optimization.schedule == "inverse_sqrt":
        knee = max(1, warmup)
        return optimization.learning_rate * math.sqrt(knee / max(knee, step))
    falling = total - warmup
    if optimization.schedule == "wsd":
        falling = min(falling, max(1, round(optimization.decay * total)))
    done = max(0.0, (step - (total - falling)) / max(1, falling))
    share = (1 + math.cos(math.pi * done)) / 2 if optimization.schedule == "cosine" else 1 - done
    return optimization.learning_rate * (optimization.floor + (1 - optimization.floor) * share)


def build_optimizer(model: nn.Module, optimization: Optimization) -> torch.optim.Optimizer:
    """AdamW (arXiv 1711.05101), RMSProp with torch's defaults as in the SPIN scripts, Muon, or Adafactor as for T5.

    Weight decay applies to matrices only, not to norms and biases. Frozen parameters are skipped. Weights in bfloat16
    are updated in float32 and rounded stochastically (:mod:`spintune.training.rounding`).

    Raises ModelError when the optimizer needs a library that is not installed.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    name, rate, decay = optimization.optimizer, optimization.learning_rate, optimization.weight_decay
    hidden = hidden_matrices(model) if name == "muon" else set()
    groups: list[ParameterGroup] = [
        {"params": [p for p in parameters if p in hidden], "weight_decay": decay, "hidden": True},
        {"params": [p for p in parameters if p.ndim >= 2 and p not in hidden], "weight_decay": decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if optimization.offload or any(p.dtype == torch.bfloat16 for p in parameters):
        device = torch.device("cpu") if optimization.offload else None
        whole = name in ("adafactor", "adamw8bit")  # whose moments belong to rows and columns, and to blocks
        return PiecewiseOptimizer(groups, lambda parts: _optimizer(parts, name, rate), optimization.seed, whole, device)
    return _optimizer(groups, name, rate)


def _optimizer(groups: list[ParameterGroup], name: OptimizerName, rate: float) -> torch.optim.Optimizer:
    if name == "adafactor":
        return Adafactor(groups, lr=rate)
    if name == "muon":
        require_muon("optimizer: muon")
        return Muon(groups, lr=rate)
    if name == "rmsprop":
        return torch.optim.RMSprop(groups, lr=rate, foreach=True)
    if name == "adamw8bit":
        require_bitsandbytes("optimizer: adamw8bit")
        from spintune.training.eight_bit import AdamW8bit

        return AdamW8bit(groups, lr=rate)
    return torch.optim.AdamW(groups, lr=rate, fused=True)


def gradient_norm(model: nn.Module) -> Tensor:
    """L2 norm of all gradients together, in float32 where they are in bfloat16."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    if any(gradient.dtype == torch.bfloat16 for gradient in gradients):
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
        return torch.stack(norms).norm()
    return whole_tensor(nn.utils.get_total_norm(gradients))


def clip_gradients(model: nn.Module, norm: Tensor, max_norm: float) -> None:
    """Scales gradients of norm ``norm`` down to ``max_norm``, if that is smaller and not 0."""
    if max_norm > 0 and norm > max_norm:
        factor = max_norm / norm
        for parameter in model.parameters():
            if parameter.grad is not None:
                local(parameter.grad).mul_(factor)


_MOMENTS = ("exp_avg", "exp_avg_sq", "square_avg", "momentum_buffer")  # of a weight's shape


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The tensors of an optimizer's state, by the number of the weight and their name."""
    return {
        f"{index}.{name}": value
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """The reverse of :func:`optimizer_tensors`. Raises RunError for moments of other weights."""
    state: dict[int, dict[str, Tensor]] = {}
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        if int(index) >= len(parameters) or (name in _MOMENTS and value.shape != parameters[int(index)].shape):
            raise RunError(f"the checkpoint's {name} of weight {index} is of another shape; delete it and run again")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
