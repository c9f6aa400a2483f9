"""The compiled layers as functions of tensors. ``layers.cpp`` has the formulas.

All tensors are float32 on a CPU; :func:`can_compute` says whether they fit. Results do not depend on the number of
threads.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spintune.kernels.native.build import kernels, rehearsing, require, vector_floats


def can_compute(*tensors: Tensor) -> bool:
    """Whether compiled code takes these tensors. The last dimension must fill whole vectors."""
    return all(x.dtype == torch.float32 and x.device.type == "cpu" for x in tensors) and (
        kernels() is not None and all(x.shape[-1] % vector_floats() == 0 for x in tensors)
    )


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """``weight * x / sqrt(mean(x²) + epsilon)`` over the last dimension (arXiv 1910.07467, equation 4)."""
    x, weight = x.contiguous(), weight.contiguous()
    if not torch.is_grad_enabled():  # a Function costs more than a few rows do
        return _norm(x, weight, epsilon)[0]
    return _made_of(_RmsNorm.apply(x, weight, epsilon), lambda x, w: _norm(x, w, epsilon)[0], x, weight)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``gate * sigmoid(gate) * up`` (arXiv 2002.05202, equation 6)."""
    gate, up = gate.contiguous(), up.contiguous()
    if not torch.is_grad_enabled():
        return _gate(gate, up)
    return _made_of(_SwiGlu.apply(gate, up), _gate, gate, up)


def can_rotate(x: Tensor, cosine: Tensor) -> bool:
    """Whether :func:`rotate` has compiled code for ``x [1, H, T, D]`` and angles ``[1, T, D]``."""
    return (
        x.ndim == 4
        and cosine.shape == (1, *x.shape[2:])
        and x.shape[0] == 1
        and can_compute(x, cosine)
        and x.shape[3] % (2 * vector_floats()) == 0
    )


def rotate(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Rotary position embedding (arXiv 2104.09864, equation 34) of ``[1, H, T, D]``, pairs being (i, i + D / 2)."""
    cosine, sine = cosine.contiguous(), sine.contiguous()
    if not torch.is_grad_enabled():
        return _rotated(x, cosine, sine, False)
    return _Rotation.apply(x, cosine, sine)


class Recompute(NamedTuple):
    """How to compute a tensor again from others that are kept anyway, so that no backward pass needs to keep it."""

    make: Callable[..., Tensor]
    inputs: tuple[Tensor, ...]
    version: int
    """The tensor's version, which every change in place increases."""


def recompute_of(x: Tensor) -> Recompute | None:
    """The recipe of a result of :func:`rms_norm` or :func:`swiglu`, unless the result was changed since."""
    made: Recompute | None = getattr(x, "_recompute", None)
    return made if made is not None and made.version == x._version else None


def _made_of(y: Tensor, make: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    if y.requires_grad:
        y._recompute = Recompute(make, inputs, y._version)  # type: ignore[attr-defined]
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y, inverse = _norm(x, weight, epsilon)
        ctx.save_for_backward(x, weight, inverse)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, inverse = ctx.saved_tensors
        grad_x, grad_weight = torch.empty_like(x), torch.empty_like(weight)
        sizes = len(inverse), x.shape[-1]
        parts = x.new_zeros(_library().norm_chunks(sizes[0]), sizes[1])
        _call("rms_norm_backward", x, weight, inverse, grads[0].contiguous(), *sizes, parts, grad_x, grad_weight)
        return grad_x, grad_weight, None


class _SwiGlu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        grad_gate, grad_up = torch.empty_like(gate), torch.empty_like(up)
        _call("swiglu_backward", gate, up, grads[0].contiguous(), gate.numel(), grad_gate, grad_up)
        return grad_gate, grad_up


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        ctx.save_for_backward(cosine, sine)
        return _rotated(x, cosine, sine, False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        cosine, sine = ctx.saved_tensors
        return _rotated(grads[0], cosine, sine, True), None, None


def _rotated(x: Tensor, cosine: Tensor, sine: Tensor, back: bool) -> Tensor:
    x = x if x.stride(3) == 1 else x.contiguous()
    _, heads, tokens, width = x.shape
    # tokens first in memory, and no view, so that autograd lets the caller change it in place
    y = x.new_empty_strided(x.shape, (x.numel(), width, heads * width, 1))
    _call("rotate", x, x.stride(2), x.stride(1), cosine, sine, tokens, heads, width, back, y)
    return y


def _norm(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """The normalized rows, and the factor of each."""
    rows = x.numel() // x.shape[-1]
    y, inverse = torch.empty_like(x), x.new_empty(rows)
    _call("rms_norm", x, weight, rows, x.shape[-1], ctypes.c_float(epsilon), y, inverse)
    return y, inverse


def _gate(gate: Tensor, up: Tensor) -> Tensor:
    y = torch.empty_like(gate)
    _call("swiglu", gate, up, gate.numel(), y)
    return y


def _call(name: str, *arguments: object) -> None:
    if rehearsing():
        return
    values = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    getattr(_library(), name)(*values, torch.get_num_threads())


@cache
def _library() -> ctypes.CDLL:
    library = require()
    pointer, number, real, threads = ctypes.c_void_p, ctypes.c_long, ctypes.c_float, ctypes.c_int
    signatures = {
        "rms_norm": [pointer, pointer, number, number, real, pointer, pointer],
        "rms_norm_backward": [*4 * [pointer], number, number, pointer, pointer, pointer],
        "swiglu": [pointer, pointer, number, pointer],
        "swiglu_backward": [*3 * [pointer], number, pointer, pointer],
        "rotate": [pointer, number, number, pointer, pointer, *3 * [number], ctypes.c_bool, pointer],
    }
    for name, arguments in signatures.items():
        function = getattr(library, name)
        function.argtypes, function.restype = [*arguments, threads], None
    library.norm_chunks.argtypes, library.norm_chunks.restype = [number], number
    return library
