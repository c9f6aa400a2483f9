"""Frozen weights in 4 bits (NF4, arXiv 2305.14314), through bitsandbytes.

Each block of 64 weights has a scale, and each weight one of 16 values between -1 and 1, which are the quantiles of a
normal distribution. The scales are quantized to 8 bits: 4.13 bits a weight together.
"""

from __future__ import annotations

import importlib.util
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.quantizers.quantizers_utils import should_convert_module

from spintune.errors import ModelError
from spintune.models.architecture import auto_class, text_modules
from spintune.typed_json import JsonObject

_LIBRARY = torch.library.Library("bitsandbytes", "IMPL")  # as long as the process lives
_MARK = "is_loaded_in_4bit"
"""Set by transformers, read by peft."""


def require_bitsandbytes(what: str) -> None:
    """Raises ModelError when bitsandbytes is not installed; ``what`` needs it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{what} needs bitsandbytes; pip install 'spintune[memory]'")


def nf4_arguments(config: PreTrainedConfig, compute: torch.dtype, device: torch.device) -> dict[str, object]:
    """Arguments with which ``from_pretrained`` quantizes each linear layer of a text as soon as it has read it.

    Args:
        config: of the model.
        compute: type of the products.
    """
    require_bitsandbytes("lora.base: nf4")
    from transformers import BitsAndBytesConfig

    with torch.device("meta"):
        shell = auto_class(config).from_config(config)
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
        llm_int8_skip_modules=_left_out(shell),
    )
    return {"quantization_config": quantization, "device_map": {"": device}}


def _left_out(model: PreTrainedModel) -> list[str]:
    """Names of layers that are not quantized: embeddings, head, and what no text passes through."""
    text = text_modules(model)
    others = (name for name, module in model.named_modules() if isinstance(module, nn.Linear) and name not in text)
    return [*get_keys_to_not_convert(model), *others]


@dataclass(frozen=True)
class _MetaPacking:
    """Scales of a weight in 4 bits that has no numbers."""

    shape: torch.Size
    absmax: Tensor
    state2: _MetaPacking | None = None
    nested: bool = False
    quant_type: str = "nf4"
    blocksize: int = 64


def pack_on_meta(model: PreTrainedModel) -> None:
    """Gives a model on the meta device the packed weights that ``lora.base: nf4`` would load, for their sizes."""
    skipped = _left_out(model)
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Linear | Conv1D) and should_convert_module(name, skipped):
            shape, count = layer.weight.shape, layer.weight.numel()
            blocks = -(-count // 64)
            packed = nn.Parameter(_empty(-(-count // 2), torch.uint8)[:, None], requires_grad=False)
            scales = _MetaPacking(torch.Size([blocks]), _empty(-(-blocks // 256), torch.float32))
            packing = _MetaPacking(shape, _empty(blocks, torch.uint8), scales, nested=True)
            packed.quant_state = packing  # type: ignore[attr-defined]
            layer.weight = packed
            if layer.bias is not None:
                layer.bias.requires_grad_(False)


def _empty(count: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(count, dtype=dtype, device="meta")


def quantized_layers(model: nn.Module) -> dict[str, nn.Linear]:
    """The layers with weights in 4 bits, by name."""
    return {name: module for name, module in model.named_modules() if _is_quantized(module)}


def _is_quantized(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) and _packing(module.weight) is not None


def _packing(weights: Tensor) -> Any:
    """bitsandbytes' QuantState of packed weights: shape, scales, format; None for plain ones."""
    return getattr(weights, "quant_state", None)


def keep_layout(model: nn.Module) -> None:
    """Keeps bitsandbytes from packing weights for inference on a CPU, in an order that has no gradients.

    Also has it read right on a CPU what it reads wrong there; raises ModelError where torch is too old for that.
    """
    layers = quantized_layers(model).values()
    for layer in layers:
        layer.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
    if any(
        layer.weight.device.type == "cpu" and layer.in_features % _packing(layer.weight).blocksize for layer in layers
    ):
        _read_as_one_row()


@cache
def _read_as_one_row() -> None:
    """Makes bitsandbytes read weights on a CPU as one long row, which they are in memory.

    With AVX-512 its versions up to 0.50 take wrong scales where a block of 64 weights goes on in the next row, as in
    layers whose inputs are not a multiple of 64.
    """
    import bitsandbytes.backends.cpu.ops  # noqa: F401 - registers the operator

    if not hasattr(torch.library, "get_kernel"):
        raise ModelError(
            "lora.base: nf4: this model has layers whose inputs are not a multiple of 64, which bitsandbytes reads "
            "wrongly on some processors; install torch 2.9 or later, with which it can be mended"
        )
    read = torch.library.get_kernel("bitsandbytes::dequantize_4bit", "CPU")
    keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)

    def as_one_row(
        A: Tensor, absmax: Tensor, blocksize: int, quant_type: str, shape: Sequence[int], dtype: torch.dtype
    ) -> Tensor:
        flat: Tensor = read.call_boxed(keys, A, absmax, blocksize, quant_type, [math.prod(shape)], dtype)
        return flat.reshape(shape)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it takes the place of another
        _LIBRARY.impl("dequantize_4bit", as_one_row, "CPU", allow_override=True)


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
