"""Computes a model in float32 whose weights are stored in half precision, a layer at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spintune.engine.rotary import layers_of
from spintune.models.quantized import quantized_layers

_HALF = (torch.bfloat16, torch.float16)


@contextlib.contextmanager
def in_float32(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the model computes in float32: no autocast, and half-precision weights are widened.

    Only the layer that computes is wide, and what stands outside of the layers. Backward does not work inside.
    """
    with contextlib.ExitStack() as undo:
        undo.enter_context(torch.autocast(model.device.type, enabled=False))
        for packed in quantized_layers(model).values():
            undo.callback(setattr, packed, "compute_dtype", packed.compute_dtype)
            packed.compute_dtype = torch.float32  # type: ignore[assignment]
        if model.dtype in _HALF:
            layers = layers_of(model)
            inside = {id(tensor) for layer in layers for tensor in _half(layer)}
            outside = [tensor for tensor in _half(model) if id(tensor) not in inside]
            undo.callback(_restore, _widen(outside))
            for layer in layers:
                _widen_while_it_computes(layer, undo)
        yield


def _half(module: nn.Module) -> list[Tensor]:
    return [x for tensors in (module.parameters(), module.buffers()) for x in tensors if x.dtype in _HALF]


def _widen(tensors: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    stored = [(tensor, tensor.data) for tensor in tensors]
    for tensor, data in stored:
        tensor.data = data.float()
    return stored


def _restore(stored: Sequence[tuple[Tensor, Tensor]]) -> None:
    for tensor, data in stored:
        tensor.data = data


def _widen_while_it_computes(layer: nn.Module, undo: contextlib.ExitStack) -> None:
    stored: list[tuple[Tensor, Tensor]] = []

    def before(*_: object) -> None:
        stored.extend(_widen(_half(layer)))

    def after(*_: object) -> None:
        _restore(stored)
        stored.clear()

    undo.callback(layer.register_forward_pre_hook(before).remove)
    undo.callback(layer.register_forward_hook(after, always_call=True).remove)
