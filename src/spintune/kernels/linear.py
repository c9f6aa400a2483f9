"""Fast layers for the length of a call, in reading and in training; of matrix products in linear layers most of all.

torch hands float32 products to MKL, which keeps to half of the vector width on AMD's processors: 108 GFLOP/s a core
were measured on an EPYC (Zen 5), where oneDNN, which torch carries as well, reaches 250. With the weights in oneDNN's
own order, products of few rows gain most: 8 rows run at 188 GFLOP/s, and at 101 without. Training takes compiled
products of our own (``native``) where there are any: the head's are faster, no side is copied first, and in bfloat16
sums stay in float32.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spintune.kernels.fused import Forward, fused_layers, patched_forwards, tied_lookup
from spintune.kernels.native.layers import Recompute, recompute_of
from spintune.kernels.native.products import can_multiply, can_round, product
from spintune.kernels.rotary import fast_rotation


@contextmanager
def inference_kernels(
    model: nn.Module, autocast: torch.dtype | None, copy_bytes: int, compiled: bool = False
) -> Iterator[None]:
    """Inside, linear layers of ``model`` that are on a CPU run in oneDNN, and others compiled (:mod:`.fused`).

    No gradients, and no change of weights.
    On a GPU they get weights in ``autocast``'s type, which autocast itself would make anew for every token.

    Args:
        autocast: type of the products, or None for the weights' own. float32 and bfloat16 are taken over.
        copy_bytes: the weights are put into oneDNN's order if the copies fit into this; otherwise used as they are.
        compiled: see :func:`.fused.fused_layers`.
    """
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    layers = [layer for layer in linears if _can_run(layer, autocast) or _is_rounded(layer, autocast)]
    total = sum(layer.weight.numel() * (autocast or layer.weight.dtype).itemsize for layer in layers)
    if total > copy_bytes:
        layers = [layer for layer in layers if layer.weight.device.type == "cpu"]
    products: dict[nn.Module, Forward] = {layer: _product(layer, autocast, total <= copy_bytes) for layer in layers}
    with patched_forwards({**fused_layers(model, compiled), **products}), fast_rotation(model):
        yield


def _can_run(layer: nn.Linear, autocast: torch.dtype | None) -> bool:
    if not _is_plain(layer) or layer.weight.device.type != "cpu":
        return False
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    dtype = autocast or layer.weight.dtype
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _is_plain(layer: nn.Linear) -> bool:
    """A subclass, or a forward put in its place, computes something else."""
    return type(layer) is nn.Linear and "forward" not in layer.__dict__


def _is_rounded(layer: nn.Linear, autocast: torch.dtype | None) -> bool:
    """Does autocast round the weights of a plain layer on a GPU?"""
    on_gpu = _is_plain(layer) and layer.weight.device.type == "cuda"
    return on_gpu and autocast is not None and layer.weight.dtype != autocast


def _product(layer: nn.Linear, autocast: torch.dtype | None, reorder: bool) -> Forward:
    dtype = autocast or layer.weight.dtype
    weight = layer.weight.detach().to(dtype)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    if weight.device.type != "cpu":
        return lambda x: nn.functional.linear(x.to(dtype), weight, bias)
    if reorder:
        weight = torch.ops.mkldnn._reorder_linear_weight(weight)

    def forward(x: Tensor) -> Tensor:
        return _onednn(x.to(dtype), weight, bias)

    return forward


@contextmanager
def training_kernels(model: nn.Module, autocast: torch.dtype | None, compiled: bool = False) -> Iterator[None]:
    """Inside, layers of ``model`` that are on a CPU in float32 run compiled or in oneDNN, forwards and backwards.

    With ``autocast`` to bfloat16, linear layers round what they multiply, and all else is float32, where the processor
    gains by that (:func:`.native.products.can_round`); elsewhere torch's own autocast is left alone. What was computed
    inside may be differentiated outside.
    """
    rounded = autocast is not None
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and _can_train(layer, autocast)]
    products: dict[nn.Module, Forward] = {layer: _differentiable(layer, rounded) for layer in layers}
    forwards = {**fused_layers(model, compiled), **tied_lookup(model), **products}
    with patched_forwards(forwards), fast_rotation(model):
        yield


def _can_train(layer: nn.Linear, autocast: torch.dtype | None) -> bool:
    if autocast is not None:
        return autocast == torch.bfloat16 and _is_plain(layer) and can_multiply(layer.weight) and can_round()
    compiled = _is_plain(layer) and can_multiply(layer.weight)
    return compiled or (layer.weight.dtype == torch.float32 and _can_run(layer, None))


def _differentiable(layer: nn.Linear, rounded: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        # autocast's own operations, before this one, return bfloat16
        return _LinearProduct.apply(x.to(layer.weight.dtype), layer.weight, layer.bias, recompute_of(x), rounded)

    return forward


class _LinearProduct(torch.autograd.Function):
    """y = x Wᵀ + b, with dx = g W, dW = gᵀ x and db = Σ g: three products.

    Where x is made of what is kept anyway (a norm, a gated product), it is made again: a third of all that a layer
    keeps, for half a percent of its time.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, made: Recompute | None, rounded: bool
    ) -> Tensor:
        ctx.make, ctx.rounded = made.make if made else lambda x: x, rounded
        # a frozen weight, as under LoRA, needs no input kept
        inputs = () if not ctx.needs_input_grad[1] else made.inputs if made else (x,)
        ctx.save_for_backward(weight, *inputs)
        y = _times(x, weight.t(), rounded)
        return y if bias is None else y.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        weight, *inputs = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        grad_TN = _rows(grads[0])
        grad_x = _times(grads[0], weight, ctx.rounded) if needs_x else None
        grad_weight = _times(grad_TN.t(), _rows(ctx.make(*inputs)), ctx.rounded) if needs_weight else None
        return grad_x, grad_weight, grad_TN.sum(0) if needs_bias else None, None, None


def _rows(x: Tensor) -> Tensor:
    """Of all batches, one below the other."""
    return x.reshape(-1, x.shape[-1])


def _times(x: Tensor, right_KN: Tensor, rounded: bool) -> Tensor:
    if not can_multiply(x, right_KN):
        return _onednn(x, right_KN.t())
    return product(_rows(x), right_KN, rounded=rounded).view(*x.shape[:-1], right_KN.shape[1])


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x Wᵀ + b. "none": no activation behind the product."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
