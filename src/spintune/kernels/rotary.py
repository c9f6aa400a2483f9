"""Rotary position embeddings of stock transformers models on a CPU, in one pass.

Every model calls ``apply_rotary_pos_emb`` of its own file. The function is recognized by what it computes, as layers
are (:mod:`.fused`), and still called for tensors that compiled code does not take.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import ModuleType

import torch
from torch import Tensor, nn

from spintune.kernels.native.build import kernels
from spintune.kernels.native.layers import can_rotate, rotate

_NAME = "apply_rotary_pos_emb"
Rotary = Callable[..., tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class FastRotary:
    """Replaces a model file's own function, and falls back to it."""

    own: Rotary

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *more: object, **options: object
    ) -> tuple[Tensor, Tensor]:
        ordinary = not more and options in ({}, {"unsqueeze_dim": 1})
        if ordinary and cos.shape == sin.shape and can_rotate(q, cos) and can_rotate(k, cos):
            return rotate(q, cos, sin), rotate(k, cos, sin)
        return self.own(q, k, cos, sin, *more, **options)


@contextmanager
def fast_rotation(model: nn.Module) -> Iterator[None]:
    """Rotates queries and keys of ``model`` with compiled code inside a block."""
    own: dict[ModuleType, Rotary] = {}
    names = {type(module).__module__ for module in model.modules()} if kernels() is not None else set()
    for file in filter(None, map(sys.modules.get, names)):
        function = vars(file).get(_NAME)
        if function is not None and not isinstance(function, FastRotary) and _is_rotary(function):
            own[file] = function
    for file, function in own.items():
        setattr(file, _NAME, FastRotary(function))
    try:
        yield
    finally:
        for file, function in own.items():
            setattr(file, _NAME, function)


def rotary_functions(files: Iterable[ModuleType]) -> dict[str, bool]:
    """Files of models with a rotary embedding, and whether ours computes it for heads that fill whole vectors."""
    own = {file.__name__: vars(file)[_NAME] for file in files if _NAME in vars(file)}
    return {name: kernels() is not None and _is_rotary(function) for name, function in sorted(own.items())}


@cache
def _is_rotary(function: Rotary) -> bool:
    """Whether the function computes the formula, for heads of several widths; tested once per architecture.

    A function of a file has only its arguments to go by, no config, so one verdict serves every model of the file.
    """
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        return all(_rotates(function, width) for width in (32, 64, 128))


def _rotates(function: Rotary, width: int) -> bool:
    draw, half = torch.Generator().manual_seed(0), width // 2
    q, k = (torch.randn(1, heads, 3, width, generator=draw) for heads in (2, 1))
    cos, sin = (torch.randn(1, 3, width, generator=draw) for _ in range(2))
    try:
        found = function(q, k, cos, sin)
        expected = [x * cos[:, None] + torch.cat([-x[..., half:], x[..., :half]], -1) * sin[:, None] for x in (q, k)]
        return all(torch.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))
    except Exception:  # whatever a foreign function raises, it takes something else
        return False
