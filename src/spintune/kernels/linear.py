"""Faster layers for the length of a call, in inference and in training; above all the products of linear layers.

torch hands float32 products to MKL, which uses half of the vector width on AMD processors: 108 GFLOP/s per core on an
EPYC (Zen 5), where oneDNN, which torch includes too, reaches 250. Our compiled products (``native``) are used where
available: in training no factor is copied first, and in bfloat16 sums stay in float32; in inference weights are packed
once, and fetched from memory while sums are made. Products of few rows gain most by that.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D

from spintune.kernels.fused import Forward, fused_layers, patched_forwards, tied_lookup
from spintune.kernels.native.build import kernels, rehearsing
from spintune.kernels.native.layers import Recompute, recompute_of
from spintune.kernels.native.products import (
    PackedRight,
    can_multiply,
    can_round,
    pack_right,
    product,
    product_of_packed,
)
from spintune.kernels.rotary import fast_rotation

Linear: TypeAlias = nn.Linear | Conv1D


@contextmanager
def inference_kernels(
    model: nn.Module, autocast: torch.dtype | None, copy_bytes: int, compiled: bool = False
) -> Iterator[None]:
    """Runs linear layers of ``model`` on a CPU with weights in the best order, others compiled (:mod:`.fused`).

    There are no gradients, and weights must not change. On a GPU, linear layers get weights in ``autocast``'s type,
    which autocast itself would convert again for every token.

    Args:
        autocast: type of the products, float32 or bfloat16; None for the weights' own.
        copy_bytes: weights are packed, or reordered by oneDNN, if the copies fit into this; otherwise they are used as
            they are.
        compiled: see :func:`.fused.fused_layers`.
    """
    layers = [layer for layer in linear_layers(model) if _can_run(layer, autocast) or _is_rounded(layer, autocast)]
    total = sum(layer.weight.numel() * (autocast or layer.weight.dtype).itemsize for layer in layers)
    if total > copy_bytes:
        # oneDNN reads transposed weights at half the speed
        layers = [x for x in layers if x.weight.device.type == "cpu" and isinstance(x, nn.Linear)]
    products: dict[nn.Module, Forward] = {layer: _product(layer, autocast, total <= copy_bytes) for layer in layers}
    with patched_forwards({**fused_layers(model, compiled), **products}), fast_rotation(model):
        yield


def linear_layers(model: nn.Module) -> list[Linear]:
    """Linear layers, GPT-2's among them, whose weights are transposed."""
    return [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]


def _can_run(layer: Linear, autocast: torch.dtype | None) -> bool:
    if rehearsing() and kernels() is None:  # as on a GPU
        return False
    if not _is_plain(layer) or layer.weight.device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    dtype = autocast or layer.weight.dtype
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_plain(layer: Linear) -> bool:
    """A subclass or a replaced forward computes something else."""
    return type(layer) in (nn.Linear, Conv1D) and "forward" not in layer.__dict__


def _is_rounded(layer: Linear, autocast: torch.dtype | None) -> bool:
    """Whether autocast rounds the weights of a plain layer on a GPU."""
    on_gpu = _is_plain(layer) and layer.weight.device.type == "cuda"
    return on_gpu and autocast is not None and layer.weight.dtype != autocast


def _product(layer: Linear, autocast: torch.dtype | None, reorder: bool) -> Forward:
    dtype = autocast or layer.weight.dtype
    weight = layer.weight.detach().to(dtype)
    weight = weight.t() if isinstance(layer, Conv1D) else weight
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if weight.device.type != "cpu":
        return lambda x: nn.functional.linear(x.to(dtype), weight, bias)
    if reorder and can_multiply(weight):
        return _of_packed(pack_right(weight.t()), bias)
    if reorder:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())

    def forward(x: Tensor) -> Tensor:
        return _onednn(x.to(dtype), weight, bias)

    return forward


def _of_packed(weight: PackedRight, bias: Tensor | None) -> Forward:
    def forward(x: Tensor) -> Tensor:
        y = product_of_packed(_rows(x.to(torch.float32)), weight).view(*x.shape[:-1], weight.columns)
        return y if bias is None else y.add_(bias)

    return forward


@contextmanager
def training_kernels(model: nn.Module, autocast: torch.dtype | None, compiled: bool = False) -> Iterator[None]:
    """Runs float32 layers of ``model`` on a CPU compiled or in oneDNN, forward and backward, inside a block.

    With ``autocast`` to bfloat16, linear layers round their factors and everything else stays float32, if the processor
    gains by that (:func:`.native.products.can_round`); otherwise torch's own autocast does its work. Results may be
    differentiated outside of the block.
    """
    rounded = autocast is not None
    layers = [layer for layer in linear_layers(model) if _can_train(layer, autocast)]
    products: dict[nn.Module, Forward] = {layer: _differentiable(layer, rounded) for layer in layers}
    forwards = {**fused_layers(model, compiled), **tied_lookup(model), **products}
    with patched_forwards(forwards), fast_rotation(model):
        yield


def _can_train(layer: Linear, autocast: torch.dtype | None) -> bool:
    if autocast is not None:
        return autocast == torch.bfloat16 and _is_plain(layer) and can_multiply(layer.weight) and can_round()
    compiled = _is_plain(layer) and can_multiply(layer.weight)
    onednn = isinstance(layer, nn.Linear) and layer.weight.dtype == torch.float32 and _can_run(layer, None)
    return compiled or onednn


def _differentiable(layer: Linear, rounded: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        # operations before this one return bfloat16 under autocast
        how = recompute_of(x), rounded, isinstance(layer, Conv1D)
        return _LinearProduct.apply(x.to(layer.weight.dtype), layer.weight, layer.bias, *how)

    return forward


class _LinearProduct(torch.autograd.Function):
    """y = x Wᵀ + b, with dx = g W, dW = gᵀ x and db = Σ g: three products. ``transposed``: y = x W + b.

    If x can be computed again from tensors that are kept anyway (a norm, a gated product), backward does that. It saves
    a third of the memory that a layer keeps, for half a percent of its time.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        recompute: Recompute | None,
        rounded: bool,
        transposed: bool,
    ) -> Tensor:
        ctx.make, ctx.rounded, ctx.transposed = recompute.make if recompute else lambda x: x, rounded, transposed
        # a frozen weight, as under LoRA, needs no input kept
        inputs = () if not ctx.needs_input_grad[1] else recompute.inputs if recompute else (x,)
        ctx.save_for_backward(weight, *inputs)
        y = _times(x, weight if transposed else weight.t(), rounded)
        return y if bias is None else y.add_(bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_TN, grad_x, grad_weight = _rows(grads[0]), None, None
        if needs_x:
            grad_x = _times(grads[0], weight.t() if ctx.transposed else weight, ctx.rounded)
        if needs_weight:
            x_TK = _rows(ctx.make(*inputs))
            left, right = (x_TK, grad_TN) if ctx.transposed else (grad_TN, x_TK)
            grad_weight = _times(left.t(), right, ctx.rounded)
        return grad_x, grad_weight, grad_TN.sum(0) if needs_bias else None, None, None, None


def _rows(x: Tensor) -> Tensor:
    """The rows of all batches as one matrix."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def _times(x: Tensor, right_KN: Tensor, rounded: bool) -> Tensor:
    left_MK, shape = _rows(x), (*x.shape[:-1], right_KN.shape[1])
    if not left_MK.numel():  # no rows, or sums of nothing; oneDNN refuses them
        return x.new_zeros(shape)
    compiled = can_multiply(x, right_KN)
    y_MN = product(left_MK, right_KN, rounded=rounded) if compiled else _onednn(left_MK, right_KN.t())
    # autograd lets nobody change a view in place that a Function returns
    return torch.ops.aten._unsafe_view(y_MN, shape)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. "none": no activation after the product."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
