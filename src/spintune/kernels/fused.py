"""RMSNorm and gated feed-forward blocks with SiLU of stock transformers models, in fewer passes over memory.

On a CPU they run our compiled code (``native``); on a GPU torch.compile compiles them if the recipe says so.

Every architecture has its own classes for them (those of Llama, Qwen and Mistral agree; Gemma's norm adds 1 to its
weights), and what a class computes may depend on its config. So each layer is recognized by what it computes: it must
have the parts and return the same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from spintune.kernels.native.build import rehearsing
from spintune.kernels.native.layers import can_compute, rms_norm, swiglu

Forward = Callable[..., Tensor]

_known: WeakKeyDictionary[nn.Module, tuple[tuple[object, ...], bool]] = WeakKeyDictionary()
"""Whether a layer computes the formula that its parts suggest, and the settings that it had when this was tested."""


@contextmanager
def patched_forwards(forwards: Mapping[nn.Module, Forward]) -> Iterator[None]:
    """Replaces the ``forward`` of modules for the length of a block."""
    before = {module: module.__dict__.get("forward") for module in forwards}
    for module, forward in forwards.items():
        module.forward = forward
    try:
        yield
    finally:
        for module, own in before.items():
            if own is None:
                del module.forward
            else:
                module.forward = own


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
            found[module] = _of_one_tensor(module.forward, _norm(module.forward, norm, compiled))
        elif block := _swiglu_parts(module, compiled):
            found[module] = _of_one_tensor(module.forward, _gated(block, compiled))
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
    if rehearsing():  # which knows no sparse gradients; these few rows count for nothing
        return {embedding: lambda ids: nn.functional.embedding(ids, weight.detach(), padding)}
    return {embedding: lambda ids: nn.functional.embedding(ids, weight, padding, sparse=True)}


class _RmsNorm(NamedTuple):
    weight: Tensor
    epsilon: float


_SWIGLU = ("gate_proj", "up_proj", "down_proj", "act_fn")


class _SwiGlu(NamedTuple):
    gate: nn.Module
    up: nn.Module
    down: nn.Module
    activation: nn.Module


def _of_one_tensor(own: Forward, fast: Forward) -> Forward:
    """The fast function, for calls with hidden states alone; some layers may be called with more."""

    def forward(*arguments: Tensor, **options: object) -> Tensor:
        return fast(*arguments) if len(arguments) == 1 and not options else own(*arguments, **options)

    return forward


def _norm(own: Forward, norm: _RmsNorm, compiled: bool) -> Forward:
    def forward(x: Tensor) -> Tensor:
        if x.shape[-1:] != norm.weight.shape:  # one weight for all, or none
            return own(x)
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


# Recognizing ----------------------------------------------------------------------------------------------------------


def _rms_norm_parts(module: nn.Module, compiled: bool) -> _RmsNorm | None:
    """The parts of a module that computes RMSNorm; None for others."""
    epsilon = _epsilon(module)
    if not type(module).__name__.endswith("RMSNorm") or not isinstance(epsilon, float):
        return None
    weight = module._parameters.get("weight")  # some keep a constant in a buffer
    if weight is None or weight.ndim != 1 or not (compiled or can_compute(weight)):
        return None
    alone = len(module._parameters) + len(module._buffers) + len(module._modules) == 1  # no bias, no scale
    return _RmsNorm(weight, epsilon) if alone and _same(module, (epsilon,), _is_rms_norm) else None


def _epsilon(module: nn.Module) -> float:
    epsilon: float = getattr(module, "variance_epsilon", getattr(module, "eps", math.nan))
    return epsilon


def _swiglu_parts(module: nn.Module, compiled: bool) -> _SwiGlu | None:
    """The parts of a module that computes a gated block with SiLU; None for others."""
    found = [getattr(module, name, None) for name in _SWIGLU]
    parts = [part for part in found if isinstance(part, nn.Module)]
    if len(parts) < len(found):
        return None
    block = _SwiGlu(*parts)
    weight = getattr(block.gate, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim != 2 or not (compiled or can_compute(weight)):
        return None
    if len(module._modules) > len(parts):  # dropout, perhaps
        return None
    return block if _same(module, tuple(map(type, parts)), _is_swiglu) else None


def _same(module: nn.Module, parts: tuple[object, ...], test: Callable[[nn.Module], bool]) -> bool:
    """Whether a layer computes the formula; tested once per layer, and again when one of its settings changes."""
    numbers = [(name, x) for name, x in vars(module).items() if type(x) in (int, float, str)]
    settings, known = (*parts, *numbers), _known.get(module)
    if known is None or known[0] != settings:
        device = next(module.parameters()).device
        try:
            with torch.no_grad(), torch.autocast(device.type, enabled=False):
                known = settings, test(module)
        except Exception:  # whatever a foreign layer raises, it takes something else than hidden states
            known = settings, False
        _known[module] = known
    return known[1]


def _is_rms_norm(module: nn.Module) -> bool:
    """In float32, with drawn weights, on rows large and so small that the epsilon matters."""
    own = next(module.parameters())
    epsilon = _epsilon(module)
    weight = _drawn(1, own)[0]
    x = _drawn(3, own) * torch.tensor([[3.0], [max(epsilon, 1e-9) ** 0.5], [0.1]], device=own.device)
    found = _twin(module, _parameters={"weight": weight}).forward(x)
    return torch.allclose(found, _norm_formula(x, weight, epsilon), rtol=1e-4, atol=1e-5)


def _is_swiglu(module: nn.Module) -> bool:
    """In float32, with cheap functions in place of the products: only what is around them is in question."""
    x = 3 * _drawn(3, module.gate_proj.weight)  # type: ignore[arg-type, union-attr]
    stand_ins: dict[str, Forward] = {
        "gate_proj": lambda x: 2 * x + 1,
        "up_proj": lambda x: 1 - x.roll(1, -1),
        "down_proj": lambda x: x + 0.5,
        "act_fn": module.act_fn.forward,  # type: ignore[union-attr]
    }
    found = _twin(module, _modules={**module._modules, **stand_ins}).forward(x)
    return torch.allclose(found, _gate_formula(2 * x + 1, 1 - x.roll(1, -1)) + 0.5, rtol=1e-4, atol=1e-4)


def _twin(module: nn.Module, **parts: Mapping[str, object]) -> nn.Module:
    """A shallow copy with other parts. The layer itself, and whoever put hooks on it, notices nothing."""
    twin = copy(module)
    vars(twin).update(parts)
    return twin


def _drawn(rows: int, weight: Tensor) -> Tensor:
    """Rows as wide as a layer's weights, the same each time."""
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, weight.shape[-1], generator=generator).to(weight.device)
