"""Layers of stock transformers models that have compiled code: RMSNorm and gated feed-forward blocks with SiLU.

Architectures write them in their own words (Llama's, Qwen's and Mistral's are alike; Gemma's norm adds 1 to its
weights). So a class is recognised by what it computes: its parts must be there, and its numbers the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spintune.models.native.layers import can_compute, rms_norm, swiglu

Forward = Callable[..., Tensor]

_known: dict[tuple[type, ...], bool] = {}
"""Whether a class computes what its parts say."""


@contextmanager
def replaced(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Inside, modules compute with other functions than their own ``forward``."""
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module in forwards:
            del module.forward


def fused_layers(model: nn.Module) -> dict[nn.Module, Forward]:
    """Functions that compute what the layers of ``model`` do, in fewer passes, differentiable."""
    found: dict[nn.Module, Forward] = {}
    for module in model.modules():
        if "forward" in module.__dict__:  # somebody else's
            continue
        if _is_rms_norm(module):
            found[module] = _norm(module)
        elif _is_swiglu(module):
            found[module] = _gated(module)
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


def _norm(norm: Any) -> Forward:
    own = norm.forward

    def forward(x: Tensor) -> Tensor:
        return rms_norm(x, norm.weight, _epsilon(norm)) if can_compute(x, norm.weight) else own(x)

    return forward


def _gated(block: Any) -> Forward:
    def forward(x: Tensor) -> Tensor:
        gate, up = block.gate_proj(x), block.up_proj(x)
        return block.down_proj(swiglu(gate, up) if can_compute(gate, up) else block.act_fn(gate) * up)

    return forward


def _is_rms_norm(module: Any) -> bool:
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(_epsilon(module), float):
        return False
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 1 or not can_compute(weight):
        return False
    return _same((type(module),), module, _norm(module), len(weight))


def _is_swiglu(module: Any) -> bool:
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj", "act_fn")]
    if not all(isinstance(part, nn.Module) for part in parts):
        return False
    weight = getattr(parts[0], "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not can_compute(weight):
        return False
    return _same((type(module), type(parts[3])), module, _gated(module), weight.shape[1])


@torch.no_grad()
def _same(kind: tuple[type, ...], module: nn.Module, forward: Forward, width: int) -> bool:
    """Does ``forward`` compute what the class does? Asked once for each, with one module of it."""
    if kind not in _known:
        x = torch.randn(3, width, generator=torch.Generator().manual_seed(0))
        try:
            _known[kind] = torch.allclose(module(x), forward(x), rtol=1e-4, atol=1e-5)
        except (TypeError, ValueError, RuntimeError):  # it wants something else than hidden states
            _known[kind] = False
    return _known[kind]
