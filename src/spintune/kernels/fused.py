"""RMSNorm and gated feed-forward blocks with SiLU of stock transformers models, in fewer passes over memory.

On a CPU they run our compiled code (``native``); on a GPU torch.compile compiles them if the recipe says so.

Every architecture has its own classes for them (those of Llama, Qwen and Mistral agree; Gemma's norm adds 1 to its
weights). So a class is recognized by what it computes: it must have the parts and return the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor, nn

from spintune.kernels.native.layers import can_compute, rms_norm, swiglu

Forward = Callable[..., Tensor]

_known: dict[tuple[type, ...], bool] = {}
"""Whether a class computes the formula that its parts suggest."""


@contextmanager
def patched_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replaces the ``forward`` of modules for the length of a block."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def fused_layers(model: nn.Module, compiled: bool = False) -> dict[nn.Module, Forward]:
    """Differentiable forward functions that compute what layers of ``model`` do, in fewer passes.

    Args:
        compiled: torch.compile compiles the layers that have no compiled code of ours, with dynamic shapes.
    """
    found: dict[nn.Module, Forward] = {}
    for module in model.modules():
        if "forward" in module.__dict__:  # already replaced
            continue
        if norm := _rms_norm_parts(module, compiled):
            found[module] = _norm(module.forward, norm, compiled)
        elif block := _swiglu_parts(module, compiled):
            found[module] = _gated(block, compiled)
    return found


def tied_lookup(model: nn.Module) -> dict[nn.Module, Forward]:
    """The embedding of a CPU model with a tied head, with a sparse gradient for the rows that it looked up.

    The head has a dense gradient, to which these rows are added without zeros for a whole vocabulary.
    """
    embedding, head = (
        getattr(model, name)() if hasattr(model, name) else None
        for name in ("get_input_embeddings", "get_output_embeddings")
    )
    if type(embedding) is not nn.Embedding or type(head) is not nn.Linear or embedding.weight is not head.weight:
        return {}
    if "forward" in embedding.__dict__ or embedding.weight.device.type != "cpu" or embedding.max_norm is not None:
        return {}
    weight, padding = embedding.weight, embedding.padding_idx
    return {embedding: lambda ids: nn.functional.embedding(ids, weight, padding, sparse=True)}


class _RmsNorm(NamedTuple):
    weight: Tensor
    epsilon: float


class _SwiGlu(NamedTuple):
    gate: nn.Module
    up: nn.Module
    down: nn.Module
    activation: nn.Module


def _norm(own: Forward, norm: _RmsNorm, compiled: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if can_compute(x, norm.weight):
            return rms_norm(x, norm.weight, norm.epsilon)
        return _compiled(_norm_formula)(x, norm.weight, norm.epsilon) if compiled else own(x)

    return forward


def _gated(block: _SwiGlu, compiled: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        gate, up = block.gate(x), block.up(x)
        if can_compute(gate, up):
            return block.down(swiglu(gate, up))
        return block.down(_compiled(_gate_formula)(gate, up) if compiled else block.activation(gate) * up)

    return forward


def _norm_formula(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _gate_formula(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


@cache
def _compiled(formula: Forward) -> Forward:
    return torch.compile(formula, dynamic=True, fullgraph=True)


def _rms_norm_parts(module: nn.Module, compiled: bool) -> _RmsNorm | None:
    """The parts of a module that computes RMSNorm; None for others."""
    epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not (compiled or can_compute(weight)):
        return None

    def formula(x: Tensor) -> Tensor:
        return _norm_formula(x, weight, epsilon)

    return _RmsNorm(weight, epsilon) if _same((type(module),), module, formula, weight) else None


def _swiglu_parts(module: nn.Module, compiled: bool) -> _SwiGlu | None:
    """The parts of a module that computes a gated block with SiLU; None for others."""
    found = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    parts = [part for part in found if isinstance(part, nn.Module)]
    if len(parts) < len(found):
        return None
    block = _SwiGlu(*parts)
    weight = getattr(block.gate, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not (compiled or can_compute(weight)):
        return None

    def formula(x: Tensor) -> Tensor:
        return block.down(_gate_formula(block.gate(x), block.up(x)))

    return block if _same((type(module), type(block.activation)), module, formula, weight) else None


@torch.no_grad()
def _same(kind: tuple[type, ...], module: nn.Module, formula: Forward, weight: Tensor) -> bool:
    """Whether the class computes the formula; tested once per class, with one of its modules."""
    if kind not in _known:
        x = torch.randn(3, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
        tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 0.05
        try:
            _known[kind] = torch.allclose(module(x), formula(x), rtol=tolerance, atol=tolerance)
        except (TypeError, ValueError, RuntimeError):  # it takes something else than hidden states
            _known[kind] = False
    return _known[kind]
