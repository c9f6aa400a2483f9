"""Packed rows on a GPU: one call of variable-length flash attention per layer, for all segments of a row."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from spintune.engine.attention import AttentionParams
from spintune.engine.packing import PackedLayout, PromptGroup, causal_segments
from spintune.kernels.native.build import kernels, rehearsing

_HALF = (torch.bfloat16, torch.float16)
_MAX_HEAD_WIDTH = 256  # that flash attention takes
_FIRST_CAPABILITY = (8, 0)  # Ampere


class VarlenKernel(Protocol):
    """torch's ``varlen_attn``: segments of queries ``[Q, H, D]``, each with its own segment of keys ``[S, H, D]``.

    With a window of (left, 0), the last query of a segment sees the last key and ``left`` keys before (-1: all).
    """

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        cu_seq_q: Tensor,
        cu_seq_k: Tensor,
        max_q: int,
        max_k: int,
        *,
        scale: float,
        window_size: tuple[int, int],
    ) -> Tensor: ...


def flash_kernel(device: torch.device) -> VarlenKernel | None:
    """torch's own kernel; None where device or release have none. In a rehearsal of a GPU, what it keeps."""
    if rehearsing() and kernels() is None:
        return _rehearsed_kernel
    if device.type != "cuda" or torch.version.hip or torch.cuda.get_device_capability(device) < _FIRST_CAPABILITY:
        return None
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    return varlen_attn  # type: ignore[return-value]


class _RehearsedAttention(torch.autograd.Function):
    """Keeps what flash attention keeps: queries, keys, values, outputs, and a float32 for each query and head."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out, lse = torch.empty_like(query), torch.empty(query.shape[:2], device=query.device)
        ctx.save_for_backward(query, key, value, out, lse)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


def _rehearsed_kernel(query: Tensor, key: Tensor, value: Tensor, *_: object, **__: object) -> Tensor:
    out: Tensor = _RehearsedAttention.apply(query, key, value)
    return out


class VarlenLayout:
    """Prompt groups packed end to end, like :class:`PackedLayout`, that attend in one call.

    A prompt and its first response are one causal segment. Every other response is a segment of queries whose keys are
    the prompt's and its own: keys and values are gathered, which copies the prompt's for each response, and the kernel
    aligns the last query with the last key. Soft caps, sinks and layers in float32 fall back to
    :class:`PackedLayout`.
    """

    def __init__(self, groups: Sequence[PromptGroup], device: torch.device, kernel: VarlenKernel) -> None:
        self._plain, self._kernel = PackedLayout(groups, device), kernel
        queries, keys = [0], [0]
        gathered: list[int] = []
        for segment in itertools.chain.from_iterable(causal_segments(groups)):
            gathered.extend(range(segment.prefix, segment.prefix + segment.before))
            gathered.extend(range(segment.begin, segment.begin + segment.tokens))
            queries.append(segment.begin + segment.tokens)
            keys.append(len(gathered))
        self._gathered = torch.tensor(gathered, device=device)
        self._cu_queries, self._cu_keys = (torch.tensor(cu, dtype=torch.int32, device=device) for cu in (queries, keys))
        self._longest_query, self._longest_key = (
            max(end - start for start, end in itertools.pairwise(cu)) for cu in (queries, keys)
        )

    def positions(self) -> Tensor:
        """Position ids ``[1, T]``."""
        return self._plain.positions()

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        # under autocast rotary embeddings return float32 queries and keys; values are in its own type
        if not params.fused or v.dtype not in _HALF or v.shape[3] > _MAX_HEAD_WIDTH:
            return self._plain.attend(layer, q, k, v, params)
        repeats = q.shape[1] // k.shape[1]
        queries, keys, values = (x[0].transpose(0, 1).to(v.dtype) for x in (q, k, v))
        keys, values = (x.index_select(0, self._gathered).repeat_interleave(repeats, 1) for x in (keys, values))
        output = self._kernel(
            queries.contiguous(),
            keys,
            values,
            self._cu_queries,
            self._cu_keys,
            self._longest_query,
            self._longest_key,
            scale=params.scale,
            window_size=(-1 if params.window is None else params.window - 1, 0),
        )
        return output.transpose(0, 1)[None]
