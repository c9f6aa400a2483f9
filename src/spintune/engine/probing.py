"""What the probes of a model share: their sizes, their bounds, and how far logits are apart."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spintune.engine.head import LogitReader
from spintune.engine.query import Query

Score = Callable[[Sequence[Query], LogitReader], Tensor]
"""Reads the logits of every scored token of some queries."""

EXACT = 1e-3
"""Largest error of a row of logits, as a share of their spread: float32 rounds to 1e-5, a wrong row differs by 1e-2."""

APART = 1e-4
"""Largest part that other rows may have in a row of logits: expert layers round by what else is in a call."""

_MAX_TOKENS = 1024
_OPERATIONS = {"cpu": 1e10}
_OPERATIONS_ELSEWHERE = 1e12


def affordable(model: PreTrainedModel) -> int:
    """Tokens of a row that a probe can compute in well under a second."""
    operations = _OPERATIONS.get(model.device.type, _OPERATIONS_ELSEWHERE)
    return min(_MAX_TOKENS, int(operations / (2 * max(1, model.num_parameters()))))


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Without dropout."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def seeded() -> torch.Generator:
    """The random numbers of a probe, the same each time."""
    return torch.Generator().manual_seed(0)


def other(ids: Sequence[int]) -> tuple[int, ...]:
    """Other tokens, of any vocabulary of two or more."""
    return tuple(token - 1 if token else 1 for token in ids)


def spread(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Reads logits without their mean, which no probability depends on."""
    return logits_MV - logits_MV.mean(-1, keepdim=True)


def row_errors(found_MV: Tensor, expected_MV: Tensor) -> Tensor:
    """The error of each row, as a share of the row's length."""
    size_M = expected_MV.norm(dim=-1).clamp(min=torch.finfo(expected_MV.dtype).tiny)
    return (found_MV - expected_MV).norm(dim=-1) / size_M
