"""Layers that keep only their input in a forward pass, and are computed again in the backward pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from spintune.errors import ModelError
from spintune.kernels.fused import Forward

LayerContext = Callable[[nn.Module], AbstractContextManager[None]]
"""The context in which a layer is computed. Backward runs after the engine's own context has exited."""


def recomputed(
    model: nn.Module, share: float, context: LayerContext, offload: bool = False
) -> dict[nn.Module, Forward]:
    """Forward functions for a ``share`` of the model's layers, evenly spread. No result changes, not by a bit.

    Args:
        offload: keep their inputs in the memory of the CPU until the backward pass.

    Raises:
        ModelError: the architecture does not say what its layers are.
    """
    layers = [x for x in model.modules() if isinstance(x, GradientCheckpointingLayer) and not owns_bias(x)]
    if share and not layers:
        raise ModelError(f"recompute: {type(model).__name__} does not say what its layers are; leave recompute out")
    chosen = [layer for i, layer in enumerate(layers) if math.floor((i + 1) * share) > math.floor(i * share)]
    return {layer: _checkpointed(layer, context, offload) for layer in chosen}


def owns_bias(layer: nn.Module) -> bool:
    """T5's first layers compute the position bias of all others, once."""
    return any(hasattr(module, "relative_attention_bias") for module in layer.modules())


def _checkpointed(layer: nn.Module, context: LayerContext, offload: bool) -> Forward:
    own = layer.forward

    def compute(*arguments: object, **options: object) -> object:
        with context(layer):
            return own(*arguments, **options)

    def forward(*arguments: object, **options: object) -> Tensor:
        # the layer saves nothing itself, so what is moved is what checkpoint keeps: its positional arguments
        with save_on_cpu(pin_memory=torch.cuda.is_available()) if offload else nullcontext():
            return checkpoint(partial(compute, **options), *arguments, use_reentrant=False)

    return forward
