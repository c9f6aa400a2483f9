"""How much arithmetic training needs, and the fastest rate at which this machine multiplies matrices."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spintune.engine.head import precision
from spintune.kernels.linear import Linear, linear_layers, training_kernels
from spintune.models.architecture import text_modules
from spintune.models.quantized import count_of, shape_of

_ROWS = 1024  # tokens of the product that is timed
_TIMES = 5
_ACTIVE = ("num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k", "moe_k")  # names in configs


@dataclass(frozen=True)
class Arithmetic:
    """Floating-point operations of a training step; a multiplication with its addition counts as two.

    Attributes:
        token: per token read. Each weight of a product below the head takes 2 in the forward pass, 2 for the gradient
            of its input, and 2 more if it is trained (PaLM, arXiv 2204.02311, appendix B).
        scored: the same for the head's weights, per token whose probability is needed.

    Of experts, the share that a token uses counts. Attention's products of tokens with tokens, and routers, are not
    counted, so the share of the peak comes out a little low.
    """

    token: int
    scored: int


def arithmetic(model: PreTrainedModel) -> Arithmetic | None:
    """Operations of a decoder-only model; None for encoder-decoders, whose two stacks read different tokens."""
    if model.config.is_encoder_decoder:
        return None
    experts = sum(round(share * _operations(weights)) for weights, share in _experts(model))
    head = model.get_output_embeddings()
    body = sum(_operations(layer.weight) for layer in _body(model))
    return Arithmetic(body + experts, 0 if head is None else _operations(head.weight))


def _body(model: PreTrainedModel) -> list[Linear]:
    """The layers below the head that a text passes through."""
    head, text = model.get_output_embeddings(), {id(module) for module in text_modules(model).values()}
    return [layer for layer in linear_layers(model) if layer is not head and id(layer) in text]


def _experts(module: nn.Module, active: int | None = None) -> Iterator[tuple[Tensor, float]]:
    """Weights of experts, three-dimensional, and the share of them that a token uses.

    Args:
        active: experts that a token uses, as the modules around this one say.
    """
    active = next(filter(None, map(_active, (module, *module.children()))), active)
    count = getattr(module, "num_experts", None)
    for weights in module.parameters(recurse=False):
        if weights.ndim == 3 and weights.shape[0] == count:
            yield weights, (active or weights.shape[0]) / weights.shape[0]
    for child in module.children():
        yield from _experts(child, active)


def _active(module: nn.Module) -> int | None:
    """Experts that a token uses, if the module routes tokens or has a config that says so."""
    config = getattr(module, "config", None)
    found = [getattr(module, "top_k", None), *(getattr(config, name, None) for name in _ACTIVE)]
    return next((number for number in found if isinstance(number, int)), None)


def _operations(weights: Tensor) -> int:
    return count_of(weights) * (6 if weights.requires_grad else 4)


@torch.no_grad()
def best_product(model: PreTrainedModel, autocast: torch.dtype | None) -> float | None:
    """Operations per second of the model's largest product below the head, as training computes it; best of five.

    None when there is no linear layer.
    """
    layers = _body(model)
    if not layers:
        return None
    largest = max(layers, key=lambda layer: count_of(layer.weight))
    width = shape_of(largest.weight)[0 if isinstance(largest, Conv1D) else 1]
    kind = largest.weight.dtype if largest.weight.is_floating_point() else model.dtype
    x = torch.ones(_ROWS, width, device=model.device, dtype=kind)
    seconds = []
    with precision(model, autocast), training_kernels(largest, autocast):
        for _ in range(_TIMES + 1):  # the first one warms up
            _finish(x)
            began = time.perf_counter()
            largest(x)
            _finish(x)
            seconds.append(time.perf_counter() - began)
    return 2 * _ROWS * count_of(largest.weight) / min(seconds[1:])


def _finish(x: torch.Tensor) -> None:
    if x.device.type == "cuda":
        torch.cuda.synchronize(x.device)
