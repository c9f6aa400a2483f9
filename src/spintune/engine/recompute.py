"""Layers that keep only their input in a forward pass, and are computed once more for the backward pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from spintune.errors import ModelError
from spintune.kernels.fused import Forward
from spintune.kernels.linear import training_kernels


def recomputed(
    model: nn.Module, share: float, autocast: torch.dtype | None, compiled: bool = False
) -> dict[nn.Module, Forward]:
    """Functions in place of a ``share`` of the model's layers, evenly spread. No result changes, not by a bit.

    Raises:
        ModelError: the architecture does not say what its layers are.
    """
    layers = [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer) and not _owns_bias(x)]
    if share and not layers:
        raise ModelError(f"recompute: {type(model).__name__} does not say what its layers are; leave recompute out")
    chosen = [layer for i, layer in enumerate(layers) if math.floor((i + 1) * share) > math.floor(i * share)]
    return {layer: _again(layer, autocast, compiled) for layer in chosen}


def _owns_bias(layer: nn.Module) -> bool:
    """T5's first layers compute the position bias of all others, once."""
    return any(hasattr(module, "relative_attention_bias") for module in layer.modules())


def _again(layer: nn.Module, autocast: torch.dtype | None, compiled: bool) -> Forward:
    own = layer.forward

    def compute(*arguments: Any, **options: Any) -> Any:
        with training_kernels(
            layer, autocast, compiled
        ):  # backward comes when the call that was around the first time is over
            return own(*arguments, **options)

    def forward(*arguments: Any, **options: Any) -> Tensor:
        return checkpoint(compute, *arguments, use_reentrant=False, **options)

    return forward
