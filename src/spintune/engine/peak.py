"""How much arithmetic training needs, and the fastest rate at which this machine multiplies matrices."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from spintune.engine.head import precision
from spintune.kernels.linear import training_kernels

_ROWS = 1024  # tokens of the product that is timed
_TIMES = 5


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of a training step; a multiplication with its addition counts as two.

    Attributes:
        token: per token read. Each weight of a product below the head takes 2 in the forward pass, 2 for the gradient
            of its input, and 2 more if it is trained (PaLM, arXiv 2204.02311, appendix B).
        scored: the same for the head's weights, per token whose probability is needed.

    Attention's products of tokens with tokens are not counted, so the share of the peak comes out a little low.
    """

    token: int
    scored: int


def arithmetic(model: PreTrainedModel) -> Arithmetic | None:
    """Operations of a decoder-only model; None for encoder-decoders, whose two stacks read different tokens."""
    if model.config.is_encoder_decoder:
        return None
    return Arithmetic(sum(map(_operations, _body(model))), _operations(model.get_output_embeddings()))


def _body(model: PreTrainedModel) -> list[nn.Linear]:
    head = model.get_output_embeddings()
    return [module for module in model.modules() if isinstance(module, nn.Linear) and module is not head]


def _operations(layer: nn.Linear) -> int:
    return int(layer.weight.numel()) * (6 if layer.weight.requires_grad else 4)


@torch.no_grad()
def best_product(model: PreTrainedModel, autocast: torch.dtype | None) -> float:
    """Operations per second of the model's largest product below the head, as training computes it; best of five."""
    largest = max(_body(model), key=lambda layer: int(layer.weight.numel()))
    x = torch.ones(_ROWS, largest.in_features, device=model.device, dtype=largest.weight.dtype)
    seconds = []
    with precision(model, autocast), training_kernels(largest, autocast):
        for _ in range(_TIMES + 1):  # the first one warms up
            _finish(x)
            began = time.perf_counter()
            largest(x)
            _finish(x)
            seconds.append(time.perf_counter() - began)
    return 2 * _ROWS * int(largest.weight.numel()) / min(seconds[1:])


def _finish(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
