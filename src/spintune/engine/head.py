"""The language-model head: logits and log-probabilities of hidden states, a few rows at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

LogitReader = Callable[[Tensor, Tensor], Tensor]
"""Reduces logits ``[M, V]`` and the tokens ``[M]`` at their positions to values ``[M, ...]``."""


def head_logits(model: PreTrainedModel, hidden_MD: Tensor) -> Tensor:
    """Logits ``[M, V]`` of hidden states ``[M, D]``, with the scaling that some architectures apply after the head."""
    config = model.config.get_text_config()
    logits_MV = model.get_output_embeddings()(hidden_MD)
    if scale := getattr(config, "logit_scale", None):  # Cohere
        logits_MV = logits_MV * scale
    if scale := getattr(config, "logits_scaling", None):  # Granite
        logits_MV = logits_MV / scale
    if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
        logits_MV = cap * torch.tanh(logits_MV / cap)
    return logits_MV


def precision(model: PreTrainedModel, autocast: torch.dtype | None) -> contextlib.AbstractContextManager[object]:
    """Context in which matrix products run in ``autocast``, or in the weights' own type when it is None."""
    return contextlib.nullcontext() if autocast is None else torch.autocast(model.device.type, autocast)


class TokenLogProb(torch.autograd.Function):
    """``log softmax(logits)[target]``, whose gradient overwrites the logits instead of allocating a second buffer.

    It takes some rows at a time, so that intermediate values stay in the processor's cache. That takes a third of the
    time of ``logsumexp`` over all rows, forward and backward.
    """

    @staticmethod
    def forward(ctx: Any, logits_MV: Tensor, target_M: Tensor) -> Tensor:
        # saved the ordinary way, so that checkpoint() can drop a chunk's logits until backward
        ctx.save_for_backward(logits_MV, target_M)
        return torch.cat([logprob(logits, target) for logits, target in _rows(logits_MV, target_M)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits_MV, target_M = ctx.saved_tensors
        for logits, grad in _rows(logits_MV, grads[0]):
            torch.mul(logits.softmax(-1), -grad[:, None], out=logits)
        return logits_MV.scatter_add_(1, target_M[:, None], grads[0][:, None]), None


def _rows(logits_MV: Tensor, other_M: Tensor) -> zip[tuple[Tensor, Tensor]]:
    """Chunks of rows: about 4 MB of float32 on a CPU, 1 GB on a GPU, which prefers few large calls."""
    rows = max(1, 2 ** (20 if logits_MV.device.type == "cpu" else 28) // logits_MV.shape[1])
    return zip(logits_MV.split(rows), other_M.split(rows), strict=True)


def logprob(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Log-probability ``[M]`` of each target in nats, by torch's own operations."""
    return logits_MV.log_softmax(-1).gather(1, target_M[:, None])[:, 0]


def logprob_and_greedy(logits_MV: Tensor, target_M: Tensor) -> Tensor:
    """Values ``[M, 2]``: the log-probability, and 1 where the target is the likeliest token."""
    logprob_M = TokenLogProb.apply(logits_MV, target_M)
    return torch.stack([logprob_M, (logits_MV.argmax(-1) == target_M).to(logprob_M)], -1)


def at_least_float32(logits: Tensor) -> Tensor:
    """The logits in float32, or in float64 where they are."""
    return logits.float() if logits.dtype.itemsize < 4 else logits
