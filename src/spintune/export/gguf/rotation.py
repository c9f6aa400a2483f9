"""Rotary positions in GGUF: the base of the frequencies, and how they are stretched for longer contexts."""

from __future__ import annotations

import math

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from spintune.errors import ModelError
from spintune.typed_json import JsonObject


def rotary_fields(writer: GGUFWriter, config: PreTrainedConfig, head_width: int) -> dict[str, Tensor]:
    """Writes what says how positions are rotated. Gives the tensors that say the rest, by name.

    Raises ModelError for a scaling that is not known here.
    """
    rope = _parameters(config)
    if rope is None:  # learned positions
        return {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    width = int(head_width * share)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    kind = rope.get("rope_type", "default")
    if kind == "default":
        return {}
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
        return {}
    if kind == "llama3":
        stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
        plain = float(rope["rope_theta"]) ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
        return {"rope_freqs.weight": plain / stretched}
    if kind == "longrope" and config.model_type == "phi3":
        return _longrope(writer, config, rope)
    raise ModelError(f"rotary positions of the type {kind} cannot be written to GGUF; default, linear and llama3 can")


def _parameters(config: PreTrainedConfig) -> JsonObject | None:
    found: JsonObject | None = getattr(config, "rope_parameters", None)
    if found and "full_attention" in found:  # one for each kind of layer
        return dict(found["full_attention"])
    return found or None


def _longrope(writer: GGUFWriter, config: PreTrainedConfig, rope: JsonObject) -> dict[str, Tensor]:
    """Two sets of factors: llama.cpp takes the long ones where the context is larger than the original."""
    original = int(rope.get("original_max_position_embeddings") or config.original_max_position_embeddings)
    factor = config.max_position_embeddings / original
    writer.add_rope_scaling_orig_ctx_len(original)
    scale = rope.get("attention_factor") or (
        math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0
    )
    writer.add_rope_scaling_attn_factors(float(scale))
    return {
        "rope_factors_long.weight": torch.tensor(rope["long_factor"], dtype=torch.float32),
        "rope_factors_short.weight": torch.tensor(rope["short_factor"], dtype=torch.float32),
    }
