"""Models whose weights are read one by one as they are asked for, so that a rank never holds more than it needs.

That works for weights that a folder or hub repository has in safetensors under the names of the model. transformers
converts others as it reads them, which takes the whole model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import init_empty_weights
from safetensors import safe_open
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter

from spintune.models.architecture import auto_class, is_multimodal, period
from spintune.models.files import find_file, read_file

_WEIGHTS = "model.safetensors"
_INDEX = f"{_WEIGHTS}.index.json"
_PLAIN = {"F32", "F16", "BF16"}


@dataclass
class UnreadWeights:
    """The weights of a model that were not read yet. Each is one number until then, whatever its size.

    Attributes:
        names: of the tensors, by the id of the parameter.
        files: the file of each.
        device: where they belong.
        standin: the same model with few of its layers, in memory. What is found out about it holds for the model. None
            when it is not needed any more.
    """

    names: dict[int, str]
    files: Mapping[str, Path]
    device: torch.device
    standin: PreTrainedModel | None

    def read(self, parameters: Iterable[nn.Parameter]) -> None:
        """Gives parameters their numbers. New ones, as of an adapter, have theirs."""
        for parameter in parameters:
            name = self.names.pop(id(parameter), None)
            if name is not None:
                with safe_open(self.files[name], "pt") as file:
                    parameter.data = file.get_tensor(name).to(parameter.dtype, copy=True)  # a view holds the file


def unread_model(
    location: str, arguments: Mapping[str, str], config: PreTrainedConfig, dtype: torch.dtype
) -> tuple[PreTrainedModel, dict[str, Path]] | None:
    """A model without numbers, and the file of each of its weights; None where they must be read together."""
    files = _tensor_files(location, arguments)
    if not files:
        return None
    with init_empty_weights(include_buffers=False):
        model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
    if not is_read_one_by_one(model):
        return None
    model._apply(_placeholder)
    model.tie_weights()
    weights = dict(model.named_parameters())
    if weights.keys() != files.keys() or not all(_fits(files[name], name, one) for name, one in weights.items()):
        return None
    return model, files


def is_read_one_by_one(model: PreTrainedModel) -> bool:
    """Whether the weights of a model's kind can be read one by one, as far as its class tells."""
    if model.config.is_encoder_decoder or is_multimodal(model.config):
        return False
    if any(isinstance(one, WeightConverter) for one in get_model_conversion_mapping(model)):
        return False
    kept_wide = any(getattr(model, f"_keep_in_fp32_modules{which}", None) for which in ("", "_strict"))
    return not kept_wide or model.dtype == torch.float32


def few_layers(config: PreTrainedConfig) -> int:
    """Layers of a stand-in: two, or one of each kind."""
    return min(max(2, period(config)), int(config.get_text_config().num_hidden_layers))


def _placeholder(tensor: Tensor) -> Tensor:
    """One number for a whole tensor of the meta device."""
    return torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


def _fits(file: Path, name: str, weight: Tensor) -> bool:
    with safe_open(file, "pt") as tensors:
        stored = tensors.get_slice(name)
        return stored.get_dtype() in _PLAIN and tuple(stored.get_shape()) == tuple(weight.shape)


def _tensor_files(location: str, arguments: Mapping[str, str]) -> dict[str, Path]:
    """The safetensors file of each tensor by name; nothing where a model has no such files."""
    index = read_file(location, arguments, _INDEX)
    if index is None:
        alone = find_file(location, arguments, _WEIGHTS)
        if alone is None:
            return {}
        with safe_open(alone, "pt") as file:
            return dict.fromkeys(file.keys(), alone)
    places: Mapping[str, str] = index.get("weight_map") or {}
    found = {name: find_file(location, arguments, name) for name in set(places.values())}
    return {tensor: file for tensor, name in places.items() if (file := found[name]) is not None}
