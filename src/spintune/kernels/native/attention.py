"""The compiled attention as functions of tensors. ``attention.cpp`` has formulas and memory layout.

Products, softmax and everything between are float32, whatever the tensors' types. Results depend neither on the number
of threads nor on what else is in the call.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from spintune.kernels.native.build import kernels, rehearsing, require, vector_floats

_MAX_GROUPS = 64
_NO_WINDOW = 2**40
_TYPES = (torch.float32, torch.bfloat16)


class _Rows(ctypes.Structure):
    _fields_ = [("at", ctypes.c_void_p), ("token", ctypes.c_long), ("head", ctypes.c_long)]


class _Shape(ctypes.Structure):
    _fields_ = [
        ("heads", ctypes.c_long),
        ("key_heads", ctypes.c_long),
        ("width", ctypes.c_long),
        ("window", ctypes.c_long),
        ("scale", ctypes.c_float),
        ("threads", ctypes.c_int),
    ]


def can_attend(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether compiled code takes these tensors ``[1, H, T, D]``: not on GPUs, and not in float64."""
    return (
        q.device.type == "cpu"
        and all(x.dtype in _TYPES for x in (q, k, v))
        and q.shape[3] == v.shape[3]
        and q.shape[1] // k.shape[1] <= _MAX_GROUPS
        and kernels() is not None
        and q.shape[3] % vector_floats() == 0
    )


class AttentionPlan:
    """Segments of queries, and the tokens that each sees before itself.

    Args:
        groups: segments ``(begin, count, prefix, before)``: ``count`` queries from ``begin`` on see ``before`` tokens
            from ``prefix`` on, and then each other, causally. A group is a first segment and those whose prefix is in
            it. Every token is in one segment.
    """

    def __init__(self, groups: Sequence[Sequence[tuple[int, int, int, int]]]) -> None:
        self.segments = torch.tensor([one for group in groups for one in group], dtype=torch.long).reshape(-1, 4)
        ends = torch.tensor([len(group) for group in groups], dtype=torch.long).cumsum(0)
        self.bounds = torch.cat([torch.zeros(1, dtype=torch.long), ends])
        self.tokens = sum(count for group in groups for _, count, _, _ in group)

    @cached_property
    def parts(self) -> Tensor:
        """What a thread takes at once ``[P, 2]``: a segment's number, and the first of its queries there."""
        chunk = _library().query_chunk()
        counts = (self.segments[:, 1] + chunk - 1) // chunk
        of = torch.repeat_interleave(torch.arange(len(counts)), counts)
        begins = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
        return torch.stack([of, (torch.arange(len(of)) - begins[of]) * chunk], 1).contiguous()


def attend_segments(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: AttentionPlan,
    scale: float,
    window: int | None,
    before: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Outputs ``[1, H, T, D]`` of queries ``[1, H, T, D]``, keys and values ``[1, K, T, D]``, K dividing H.

    Args:
        window: tokens that a token sees, itself included; None: all.
        before: keys and values ``[1, K, P, D]`` that hold the plan's prefixes, instead of ``k`` and ``v``. The call
            then has no gradients.
    """
    if before is None:
        return _Attention.apply(q.float(), k.float(), v.float(), plan, scale, window).to(v.dtype)
    inputs = [_rows_last(x.float()) for x in (q, k, v, *before)]
    return _forward(inputs[:3], inputs[3:], plan, scale, window)[0].to(v.dtype).transpose(0, 1)[None]


def attend_slots(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    before: tuple[Tensor, Tensor],
    stores: tuple[Tensor, Tensor],
    lengths: Tensor,
    scale: float,
    window: int | None,
) -> Tensor:
    """One more token for each of B slots: outputs ``[1, H, B, D]`` of ``q [1, H, B, D]``, ``k`` and ``v [1, K, B, D]``.

    Args:
        before: keys and values ``[1, K, P, D]`` that come first in all slots.
        stores: keys and values ``[S, K, R, D]`` of at least B slots, float32. Those of this token are written after the
            ``lengths`` tokens that a slot holds (int64, ``[B]``).
    """
    inputs = [_rows_last(x.float()) for x in (q, k, v, *before)]
    out = inputs[0].new_empty(q.shape[2], q.shape[1], q.shape[3])
    shape, lengths = _shape(q, k, scale, window), lengths.contiguous()
    _library().attend_slots(
        *map(_rows, inputs), before[0].shape[2], *map(_pointer, stores), stores[0].shape[2], _pointer(lengths),
        len(lengths), ctypes.byref(shape), _pointer(out),
    )  # fmt: skip
    return out.to(v.dtype).transpose(0, 1)[None]


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, plan: AttentionPlan, scale: float, window: int | None
    ) -> Tensor:  # fmt: skip
        q, k, v = map(_rows_last, (q, k, v))
        out_THD, lse_HT = _forward([q, k, v], [k, v], plan, scale, window)
        ctx.save_for_backward(q, k, v, out_THD, lse_HT)
        ctx.plan, ctx.scale, ctx.window = plan, scale, window
        return out_THD.transpose(0, 1)[None]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out_THD, lse_HT = ctx.saved_tensors
        plan: AttentionPlan = ctx.plan
        grad, shape = _rows_last(grads[0]), _shape(q, k, ctx.scale, ctx.window)
        grad_q = torch.empty_like(out_THD)
        grad_k, grad_v = (out_THD.new_zeros(len(out_THD), k.shape[1], k.shape[3]) for _ in range(2))
        if not rehearsing():
            _library().attend_segments_backward(
                _rows(q), _rows(k), _rows(v), _pointer(plan.segments), _pointer(plan.bounds), len(plan.bounds) - 1,
                ctypes.byref(shape), len(out_THD), _pointer(out_THD), _pointer(lse_HT), _rows(grad),
                _pointer(grad_q), _pointer(grad_k), _pointer(grad_v),
            )  # fmt: skip
        return *(x.transpose(0, 1)[None] for x in (grad_q, grad_k, grad_v)), None, None, None


def _forward(
    qkv: list[Tensor], before: list[Tensor], plan: AttentionPlan, scale: float, window: int | None
) -> tuple[Tensor, Tensor]:
    """Outputs ``[T, H, D]`` and the logarithm of each softmax's denominator ``[H, T]``."""
    q, k, _ = qkv
    heads, tokens, width = q.shape[1:]
    if plan.tokens != tokens:
        raise ValueError(f"a plan for {plan.tokens} tokens does not fit {tokens}")
    out, lse, shape = q.new_empty(tokens, heads, width), q.new_empty(heads, tokens), _shape(q, k, scale, window)
    if rehearsing():
        return out, lse
    _library().attend_segments(
        *map(_rows, qkv), *map(_rows, before), _pointer(plan.segments), len(plan.segments),
        _pointer(plan.parts), len(plan.parts), ctypes.byref(shape), tokens, _pointer(out), _pointer(lse),
    )  # fmt: skip
    return out, lse


def _rows_last(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


def _rows(x_1HTD: Tensor) -> object:
    return ctypes.byref(_Rows(x_1HTD.data_ptr(), x_1HTD.stride(2), x_1HTD.stride(1)))


def _shape(q: Tensor, k: Tensor, scale: float, window: int | None) -> _Shape:
    sizes = q.shape[1], k.shape[1], q.shape[3], _NO_WINDOW if window is None else window
    return _Shape(*sizes, scale, torch.get_num_threads())


def _pointer(x: Tensor) -> int:
    return x.data_ptr()


@cache
def _library() -> ctypes.CDLL:
    library = require()
    rows, pointer, number, shape = ctypes.POINTER(_Rows), ctypes.c_void_p, ctypes.c_long, ctypes.POINTER(_Shape)
    library.attend_segments.argtypes = [
        *5 * [rows], pointer, number, pointer, number, shape, number, pointer, pointer,
    ]  # fmt: skip
    library.attend_segments_backward.argtypes = [
        *3 * [rows], pointer, pointer, number, shape, number, pointer, pointer, rows, pointer, pointer, pointer,
    ]  # fmt: skip
    library.attend_slots.argtypes = [
        *5 * [rows], number, pointer, pointer, number, pointer, number, shape, pointer,
    ]  # fmt: skip
    for function in (library.attend_segments, library.attend_segments_backward, library.attend_slots):
        function.restype = None
    library.query_chunk.restype = number
    return library
