"""Rotary positions in GGUF: the base of the frequencies, and how they are stretched for longer contexts."""

from __future__ import annotations

import math

import torch
from gguf import GGUFWriter, RopeScalingType
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from spintune.errors import ModelError
from spintune.export.gguf.families import GgufFamily, Shape
from spintune.typed_json import JsonObject

_YARN = {"beta_fast": 32, "beta_slow": 1, "truncate": True}
"""What llama.cpp computes of YaRN, but for the settings that it reads."""

_STANDING = 1e30
"""Factor of a frequency that is 0."""


def rotary_fields(writer: GGUFWriter, config: PreTrainedConfig, family: GgufFamily, shape: Shape) -> dict[str, Tensor]:
    """Writes what says how positions are rotated. Gives the tensors that say the rest, by name.

    Raises ModelError for a scaling that llama.cpp does not compute in this family.
    """
    rope = _parameters(config)
    if rope is None:  # learned positions, or none
        return {}
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    width = shape.rotated or int(shape.key_width * share)
    kind = rope.get("rope_type", "default")
    base = float(rope["rope_theta"])
    if kind == "dynamic" and rope.get("alpha") and config.model_type.startswith("hunyuan"):
        base *= float(rope["alpha"]) ** (width / (width - 2))
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(base)
    if kind not in family.scalings:
        raise ModelError(
            f"rotary positions of the type {kind} cannot be written to GGUF for {config.model_type}; "
            f"{', '.join(sorted(family.scalings))} can"
        )
    if kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    if kind == "longrope":
        return _longrope(writer, config, rope)
    if kind in ("llama3", "proportional") or (kind == "yarn" and "llama3" in family.scalings):
        return _factors(writer, config, rope, width)
    if kind == "yarn":
        _yarn(writer, config, rope, family.latent)
    return {}  # dynamic is default up to the longest text, which is where the context of the file ends


def _parameters(config: PreTrainedConfig) -> JsonObject | None:
    found: JsonObject | None = getattr(config, "rope_parameters", None)
    if found and "full_attention" in found:  # one for each kind of layer
        return dict(found["full_attention"])
    return found or None


def _stretched(config: PreTrainedConfig, kind: str) -> tuple[Tensor, float]:
    """Frequencies, and what cosine and sine are multiplied by."""
    by_layer = {"layer_type": "full_attention"} if "full_attention" in config.rope_parameters else {}
    if kind == "proportional":
        config = config.per_layer_config["full_attention"]
    return ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"), **by_layer)


def _factors(writer: GGUFWriter, config: PreTrainedConfig, rope: JsonObject, width: int) -> dict[str, Tensor]:
    """A factor for each frequency."""
    stretched, scale = _stretched(config, rope["rope_type"])
    plain = float(rope["rope_theta"]) ** -(torch.arange(0, width, 2, dtype=torch.float32) / width)
    if scale != 1:
        writer.add_rope_scaling_attn_factors(float(scale))
    return {"rope_freqs.weight": (plain / stretched).clamp(max=_STANDING)}


def _yarn(writer: GGUFWriter, config: PreTrainedConfig, rope: JsonObject, latent: bool) -> None:
    for key, expected in _YARN.items():
        if (found := rope.get(key)) is not None and found != expected:
            raise ModelError(f"yarn with {key} {found} cannot be written to GGUF, where it is {expected}")
    original = int(rope["original_max_position_embeddings"])
    factor = float(rope.get("factor") or config.max_position_embeddings / original)
    writer.add_rope_scaling_type(RopeScalingType.YARN)
    writer.add_rope_scaling_factor(factor)
    writer.add_rope_scaling_orig_ctx_len(original)
    _, scale = _stretched(config, "yarn")
    if latent:
        grows = rope.get("mscale_all_dim")
        if not grows or scale != 1:
            raise ModelError("yarn can be written to GGUF for this family only with mscale and mscale_all_dim equal")
        writer.add_rope_scaling_yarn_log_mul(0.1 * float(grows))
        return
    beyond = scale / (1 + 0.1 * math.log(factor))  # of llama.cpp's own
    if "full_attention" in config.rope_parameters and abs(beyond - 1) > 1e-6:
        raise ModelError(f"yarn with attention_factor {scale} in some layers only cannot be written to GGUF")
    writer.add_rope_scaling_attn_factors(beyond)


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
