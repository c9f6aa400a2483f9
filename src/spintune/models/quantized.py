"""Frozen weights in 4 bits (NF4, arXiv 2305.14314), through bitsandbytes.

Each block of 64 weights has a scale, and each weight one of 16 values between -1 and 1, which are the quantiles of a
normal distribution. The scales are quantized to 8 bits: 4.13 bits a weight together.
"""

from __future__ import annotations

import importlib.util
import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spintune.errors import ModelError
from spintune.typed_json import JsonObject

_MARK = "is_loaded_in_4bit"
"""Set by transformers, read by peft."""


def require_bitsandbytes(what: str) -> None:
    """Raises ModelError when bitsandbytes is not installed; ``what`` needs it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{what} needs bitsandbytes; pip install 'spintune[memory]'")


def nf4_arguments(compute: torch.dtype, device: torch.device) -> dict[str, object]:
    """Arguments with which ``from_pretrained`` quantizes each linear layer but the head as soon as it has read it.

    Args:
        compute: type of the products.
    """
    require_bitsandbytes("lora.base: nf4")
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def quantized_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers with weights in 4 bits, by name."""
    return {name: module for name, module in model.named_modules() if _is_quantized(module)}


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and _packing(module.weight) is not None


def _packing(weights: Tensor) -> Any:
    """bitsandbytes' QuantState of packed weights: shape, scales, format; None for plain ones."""
    return getattr(weights, "quant_state", None)


def keep_layout(model: nn.Module) -> None:
    """Keeps bitsandbytes from packing weights for inference on a CPU, in an order that has no gradients."""
    for layer in quantized_layers(model).values():
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def shape_of(weights: Tensor) -> torch.Size:
    """The shape of a tensor of weights; of packed ones, that which they stand for."""
    state = _packing(weights)
    return weights.shape if state is None else torch.Size(state.shape)


def count_of(weights: Tensor) -> int:
    """How many weights a tensor holds, packed or not."""
    return math.prod(shape_of(weights))


def bytes_of(weights: Tensor) -> int:
    """Bytes of a tensor of weights, and of the scales of packed ones."""
    size, state = weights.numel() * weights.element_size(), _packing(weights)
    if state is not None:
        scales = [state.absmax, *([state.state2.absmax] if state.nested else [])]
        size += sum(scale.numel() * scale.element_size() for scale in scales)
    return size


def base_format(model: nn.Module) -> JsonObject | None:
    """How the weights of quantized layers are stored; None for a model without any."""
    state = next((_packing(layer.weight) for layer in quantized_layers(model).values()), None)
    if state is None:
        return None
    return {"format": state.quant_type, "block_size": state.blocksize, "quantized_scales": state.nested}


def plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model on the meta device, with the names and sizes that it has without quantization."""
    packed = {f"{name}.weight": layer.weight for name, layer in quantized_layers(model).items()}
    scales = tuple(f"{key}." for key in packed)
    state = {key: tensor for key, tensor in model.state_dict().items() if not key.startswith(scales)}
    return {
        key: torch.empty(shape_of(packed[key]), device="meta") if key in packed else tensor.to("meta")
        for key, tensor in state.items()
    }


@torch.no_grad()
def dequantize(model: PreTrainedModel) -> None:
    """Puts ordinary float32 layers in the place of those in 4 bits, with the weights that they compute with."""
    from bitsandbytes.functional import dequantize_4bit

    for name, layer in quantized_layers(model).items():
        weight = dequantize_4bit(layer.weight.data, _packing(layer.weight)).float()
        transposed = issubclass(getattr(layer, "source_cls", nn.Linear), Conv1D)
        with torch.device("meta"):
            if transposed:
                plain: nn.Module = Conv1D(layer.out_features, layer.in_features)
            else:
                plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
        plain.weight = nn.Parameter(weight.T.contiguous() if transposed else weight, requires_grad=False)
        if layer.bias is not None:
            plain.bias = nn.Parameter(layer.bias.detach().float(), requires_grad=False)
        plain.eval()
        model.set_submodule(name, plain)
    model.__dict__.pop(_MARK, None)
