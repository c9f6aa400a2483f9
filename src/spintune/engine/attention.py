"""Attention over packed rows, inside stock transformers models.

A packed row is one long sequence ``[1, T]`` that holds many independent segments. Which token sees which is not a mask
over T x T but a *layout*: an object that receives queries, keys and values of every layer and knows the segments.
Layouts of decoder-only models are :class:`spintune.engine.packing.PackedLayout` (training, scoring),
:class:`spintune.engine.varlen.VarlenLayout` (the same on a GPU) and the generator's key-value cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from spintune.errors import ModelError
from spintune.models.files import quiet_transformers

NAME = "spintune_layout"

_SHORT = 512
"""With at most this many keys, a CPU computes bfloat16 attention in float32: torch's fused kernel is slower in
bfloat16, 3.7 times for 48 tokens and 1.8 times for 150 on one thread (benchmarks/products.py), more on two."""


@dataclass(frozen=True)
class AttentionParams:
    """How one layer attends.

    Attributes:
        scale: of the scores.
        window: sliding window: tokens seen, own one included.
        softcap: tanh soft cap of the scores (Gemma 2, arXiv 2408.00118, section 2).
        sinks: a score ``[H]`` for each head that takes its share of the softmax and adds nothing (gpt-oss).
    """

    scale: float
    window: int | None = None
    softcap: float | None = None
    sinks: Tensor | None = None

    @property
    def fused(self) -> bool:
        """Whether plain kernels compute it: none has a soft cap or sinks."""
        return self.softcap is None and self.sinks is None


class Layout(Protocol):
    """Which token of a packed row sees which."""

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        """Queries ``[1, H, T, D]``, keys and values ``[1, K, T, D]`` (K divides H) to outputs ``[1, H, T, D]``.

        ``layer`` is the module that attends. Some attend twice in one forward (DiffLlama).
        """


Asked = dict[nn.Module, int | None]
"""The modules that attended by a layout, each with its sliding window."""

_asked: ContextVar[Asked | None] = ContextVar("_asked", default=None)


@contextlib.contextmanager
def recording() -> Iterator[Asked]:
    """Inside, every module that attends by a layout is recorded."""
    asked: Asked = {}
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def record(module: nn.Module, window: int | None = None) -> None:
    """Notes that ``module`` attends by a layout, when someone is :func:`recording`."""
    asked = _asked.get()
    if asked is not None:
        asked[module] = window


class AttentionSwitch:
    """Points a model at a registered attention function for the length of a block.

    Inside ``with switch():`` the model's calls take a ``layout=`` argument and attend as it says. Outside, the model
    attends as its owner loaded it. A block may be entered again inside itself, and costs microseconds.
    """

    def __init__(self, model: PreTrainedModel, name: str) -> None:
        self._name = name
        configs = {id(config): config for config in configs_of(model)}.values()
        before = [config._attn_implementation for config in configs]
        # transformers knows which submodels can be switched and warns of others; attention reads its config every time
        # whatever a foreign architecture raises, it works without layouts
        with contextlib.suppress(Exception), quiet_transformers():
            model.set_attn_implementation(name)
        self._configs = [config for config in configs if config._attn_implementation == name]
        for config, implementation in zip(configs, before, strict=True):
            config._attn_implementation_internal = implementation

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        before = [config._attn_implementation for config in self._configs]
        for config in self._configs:
            config._attn_implementation_internal = self._name
        try:
            yield
        finally:
            for config, implementation in zip(self._configs, before, strict=True):
                config._attn_implementation_internal = implementation


def configs_of(model: PreTrainedModel) -> Iterator[PreTrainedConfig]:
    """The configs of a model, of its submodels and of their parts."""
    found = [module.config for module in model.modules() if isinstance(module, PreTrainedModel)]
    while found:
        config = found.pop()
        yield config
        found.extend(part for name in config.sub_configs if (part := getattr(config, name, None)) is not None)


def _layout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    if layout is None:
        # without a layout there is no mask either: refuse rather than let every token see every other
        raise ModelError("attention in packed rows needs a layout; call the model outside of them")
    if attention_mask is not None:
        # a mask that the model wrote itself holds more than a layout: position bias, a choice of keys
        raise ModelError("attention in packed rows takes no mask")
    record(module, sliding_window)
    params = AttentionParams(scaling or query.shape[-1] ** -0.5, sliding_window, softcap, s_aux)
    # contiguous, as transformers' own functions return it: some models view the output (AFMoE)
    return layout.attend(module, query, key, value, params).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, _layout_attention)


def attention(q: Tensor, k: Tensor, v: Tensor, params: AttentionParams, mask: Tensor | None) -> Tensor:
    """Plain attention of one segment: causal where ``mask`` (bool, True = visible) is None.

    Shapes: q ``[B, H, Q, D]``, k and v ``[B, K, S, D]`` with K dividing H, mask broadcastable to ``[B, H, Q, S]``.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if params.fused:
        # rotary embeddings return float32 queries and keys; autocast would round them before the kernel
        if v.device.type == "cpu" and v.dtype == torch.bfloat16 and v.shape[2] <= _SHORT:
            with torch.autocast("cpu", enabled=False):
                return _fused(q.float(), k.float(), v.float(), params, mask).to(v.dtype)
        return _fused(q, k, v, params, mask)
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = q @ k.transpose(2, 3)
    if params.softcap is None:
        scores = scores * params.scale
    else:
        scores = params.softcap * torch.tanh(scores * (params.scale / params.softcap))
    return softmax(scores.masked_fill(~mask, float("-inf")), params.sinks).to(q.dtype) @ v


def softmax(scores_BHQS: Tensor, sinks_H: Tensor | None) -> Tensor:
    """Weights, in float32 at least, of what scores see; each head's sink takes its share and is left out."""
    if sinks_H is None:
        return scores_BHQS.softmax(-1, dtype=torch.promote_types(scores_BHQS.dtype, torch.float32))
    sinks = sinks_H[:, None, None].expand(*scores_BHQS.shape[:-1], 1)
    scores = torch.cat([scores_BHQS, sinks.to(scores_BHQS.dtype)], -1)
    return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))[..., :-1]


def _fused(q: Tensor, k: Tensor, v: Tensor, params: AttentionParams, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=params.scale)
