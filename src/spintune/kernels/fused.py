"""Layers of stock transformers models in fewer passes: RMSNorm and gated feed-forward blocks with SiLU.

On a CPU they have compiled code of our own (``native``); on a GPU torch.compile makes it where a recipe asks for that.

Architectures write them in their own words (Llama's, Qwen's and Mistral's are alike; Gemma's norm adds 1 to its
weights). So a class is recognised by what it computes: its parts must be there, and its numbers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from spintune.kernels.native.layers import can_compute, rms_norm, swiglu

Forward = Callable[..., Tensor]

_known: dict[tuple[type, ...], bool] = {}
"""Whether a class computes what its parts say."""


@contextmanager
def patched_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside, modules compute with other functions than their own ``forward``."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def fused_layers(model: nn.Module, compiled: bool = False) -> dict[nn.Module, Forward]:
    """Functions that compute what the layers of ``model`` do, in fewer passes, differentiable.

    Args:
        compiled: what has no compiled code of ours goes through torch.compile, once for all numbers of tokens.
    """
    found: dict[nn.Module, Forward] = {}
    for module in model.modules():
        if "forward" in module.__dict__:  # somebody else's
            continue
        if _is_rms_norm(module, compiled):
            found[module] = _norm(module, compiled)
        elif _is_swiglu(module, compiled):
            found[module] = _gated(module, compiled)
    return found


def tied_lookup(model: nn.Module) -> dict[nn.Module, Forward]:
    """The embedding of a model on a CPU whose head has the same weights, with a gradient for the rows it looked up.

    The head has one for all rows, to which these are added: no zeros for a whole vocabulary in between.
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


def _epsilon(norm: nn.Module) -> Any:
    return getattr(norm, "variance_epsilon", getattr(norm, "eps", None))


def _norm(norm: Any, compiled: bool) -> Forward:
    own = norm.forward

    def forward(x: Tensor) -> Tensor:
        if can_compute(x, norm.weight):
            return rms_norm(x, norm.weight, _epsilon(norm))
        return _compiled(_norm_formula)(x, norm.weight, _epsilon(norm)) if compiled else own(x)

    return forward


def _gated(block: Any, compiled: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        gate, up = block.gate_proj(x), block.up_proj(x)
        if can_compute(gate, up):
            return block.down_proj(swiglu(gate, up))
        return block.down_proj(_compiled(_gate_formula)(gate, up) if compiled else block.act_fn(gate) * up)

    return forward


def _norm_formula(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)).to(x.dtype)


def _gate_formula(gate: Tensor, up: Tensor) -> Tensor:
    return nn.functional.silu(gate) * up


@cache
def _compiled(formula: Forward) -> Forward:
    return torch.compile(formula, dynamic=True, fullgraph=True)


def _is_rms_norm(module: Any, compiled: bool) -> bool:
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(_epsilon(module), float):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not (compiled or can_compute(weight)):
        return False

    def formula(x: Tensor) -> Tensor:
        return _norm_formula(x, weight, _epsilon(module))

    return _same((type(module),), module, formula, weight)


def _is_swiglu(module: Any, compiled: bool) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    if not all(isinstance(part, nn.Module) for part in parts):
        return False
    weight = getattr(parts[0], "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not (compiled or can_compute(weight)):
        return False

    def formula(x: Tensor) -> Tensor:
        return module.down_proj(_gate_formula(module.gate_proj(x), module.up_proj(x)))

    return _same((type(module), type(parts[3])), module, formula, weight)


@torch.no_grad()
def _same(kind: tuple[type, ...], module: nn.Module, formula: Forward, weight: Tensor) -> bool:
    """Does the class compute the formula? Asked once for each, with one module of it."""
    if kind not in _known:
        x = torch.randn(3, weight.shape[-1], generator=torch.Generator().manual_seed(0)).to(weight)
        tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 0.05
        try:
            _known[kind] = torch.allclose(module(x), formula(x), rtol=tolerance, atol=tolerance)
        except (TypeError, ValueError, RuntimeError):  # it wants something else than hidden states
            _known[kind] = False
    return _known[kind]
