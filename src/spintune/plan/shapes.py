"""Models by their config.json alone: no weights are read or fetched, and no tensor has numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import torch
from torch import nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from spintune.errors import ModelError
from spintune.models.architecture import auto_class, freeze_other_parts
from spintune.models.loading import kept_alias, load_config
from spintune.models.lora import new_adapter
from spintune.models.packaged import ALIASES
from spintune.recipe import LoraSection
from spintune.typed_json import JsonObject

_LLAMA = {"model_type": "llama", "rms_norm_eps": 1e-5, "tie_word_embeddings": False}


def _llama(
    hidden: int, inner: int, layers: int, heads: int, key_heads: int, vocabulary: int, **more: object
) -> JsonObject:
    sizes = {"hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": key_heads, "vocab_size": vocabulary}
    return {**_LLAMA, "max_position_embeddings": 131072, **sizes, **more}


NAMED: Mapping[str, JsonObject] = MappingProxyType(
    {
        "smollm2-135m-instruct": _llama(576, 1536, 30, 9, 3, 49152, tie_word_embeddings=True),
        "llama-1b": _llama(2048, 8192, 16, 32, 8, 128256, head_dim=64, tie_word_embeddings=True),
        "llama-3b": _llama(3072, 8192, 28, 24, 8, 128256, head_dim=128, tie_word_embeddings=True),
        "mistral-7b": _llama(4096, 14336, 32, 32, 8, 32000, max_position_embeddings=32768),
        "llama-8b": _llama(4096, 14336, 32, 32, 8, 128256),
        "llama-70b": _llama(8192, 28672, 80, 64, 8, 128256),
        "llama-405b": _llama(16384, 53248, 126, 128, 8, 128256),
    }
)
"""Sizes that a plan knows by name, from the config.json of Llama 3.1 and 3.2, Mistral 7B and SmolLM2."""

_MOST_LAYERS = 2_000
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


@dataclass(frozen=True)
class ModelShape:
    """A model's config, and where its tokenizer and weights are.

    Attributes:
        folder: with tokenizer files, or a hub id; None where there is a config alone.
        is_here: whether its weights are on this machine.
    """

    name: str
    config: PreTrainedConfig
    folder: str | None
    is_here: bool

    @property
    def layers(self) -> int:
        """Decoder layers; of an encoder-decoder, layers of each stack."""
        return int(self.config.get_text_config().num_hidden_layers)

    def whole(self, dtype: torch.dtype = torch.float32, lora: LoraSection | None = None) -> PreTrainedModel:
        """The model on the meta device, as a run trains it: with an adapter and frozen parts."""
        return build(self.config, dtype, lora)


def read_shape(name: str, cache: Path) -> ModelShape:
    """The shape of a model: a name of :data:`NAMED`, a config.json, or whatever a recipe's ``model`` may be.

    Raises ModelError for one that does not exist or whose config.json does not say how large the model is.
    """
    path = Path(name).expanduser()
    if name in ALIASES and kept_alias(name, cache).is_dir():
        return ModelShape(name, load_config(name, cache=cache), name, True)
    if name in NAMED and not path.exists():
        values = dict(NAMED[name])
        return ModelShape(name, AutoConfig.for_model(**values), None, False)
    if path.suffix == ".json" and path.is_file():
        _check_sizes(path)
        return ModelShape(name, load_config(str(path), cache=cache), None, False)
    if path.is_dir() and (path / "config.json").is_file():
        _check_sizes(path / "config.json")
        config = load_config(str(path), cache=cache)
        has_tokenizer = any(path.glob("tokenizer*")) or any(path.glob("*.model"))
        has_weights = any(path.glob("*.safetensors")) or any(path.glob("*.bin"))
        return ModelShape(name, config, str(path) if has_tokenizer else None, has_weights and has_tokenizer)
    if "/" not in name and path.suffix != ".gguf":
        raise ModelError(
            f"no model {name!r}: it is no folder, no config.json, no hub id, and no name of a size ({', '.join(NAMED)})"
        )
    return ModelShape(name, load_config(name, cache=cache), name, path.suffix == ".gguf")


def _check_sizes(path: Path) -> None:
    """Raises ModelError for a config that leaves out a size, since transformers would take one of its own."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path}: cannot be read as JSON ({error}); give a model's config.json") from error
    if not isinstance(values, dict) or "model_type" not in values:
        raise ModelError(f"{path}: has no model_type; give a model's whole config.json")
    try:
        aliases = type(AutoConfig.for_model(values["model_type"])).attribute_map
    except (ValueError, KeyError) as error:
        raise ModelError(f"{path}: transformers knows no model_type {values['model_type']!r}") from error
    if "text_config" in values:  # a multimodal model, of which only differences from defaults are saved
        return
    depth = values.get("num_hidden_layers", values.get(aliases.get("num_hidden_layers", ""), 1))
    if isinstance(depth, int) and depth > _MOST_LAYERS:
        raise ModelError(f"{path}: {depth:,} layers are more than any model has; check num_hidden_layers")
    if missing := [key for key in _NEEDED if not {key, aliases.get(key)} & set(values)]:
        raise ModelError(
            f"{path}: has no {missing[0]}, so nobody knows how large the model is; give its whole config.json"
        )


def build(config: PreTrainedConfig, dtype: torch.dtype, lora: LoraSection | None) -> PreTrainedModel:
    """A model of a config on the meta device, with a new adapter if asked for. Raises ModelError where that fails."""
    try:
        with torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(config, dtype=dtype, trust_remote_code=False)
            freeze_other_parts(model)
            if lora:
                new_adapter(model, lora, "plan")
    except ModelError:
        raise
    except Exception as error:  # whatever a foreign config makes transformers raise
        first = " ".join(str(error).split())[:160]
        raise ModelError(
            f"a model of type {config.model_type!r} cannot be built from its config.json: {first}"
        ) from error
    return model.eval()


def parameters(model: nn.Module) -> int:
    """All numbers that a model holds."""
    return sum(parameter.numel() for parameter in model.parameters())
