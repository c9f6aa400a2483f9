"""Google's families."""

from __future__ import annotations

from dataclasses import replace

import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.export.gguf.families.family import (
    EVERYWHERE,
    GELU,
    GgufFamily,
    Shape,
    norms_from_zero,
    refusal,
    window_fields,
)

_NO_BIAS: dict[str, object] = {"attention_bias": False}
_CAUSAL: dict[str, object] = _NO_BIAS | {"use_bidirectional_attention": False}
_SPARSE = 10  # layers of Gemma 3n of whose activations llama.cpp keeps a twentieth
_OWN_KEYS = 20  # layers of Gemma 3n that have keys and values in llama.cpp


def _scale(config: PreTrainedConfig) -> None:
    """llama.cpp divides by the width of a head (of the largest ones, by width / heads) and reads no other scale."""
    large = config.num_hidden_layers in (46, 62)
    width = config.hidden_size // config.num_attention_heads if large else config.head_dim
    if config.query_pre_attn_scalar != width:
        raise refusal(config, "query_pre_attn_scalar", config.query_pre_attn_scalar, width)


def _gemma2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _scale(config)
    window_fields(writer, config, 2)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _base_in_windows(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    rope = config.rope_parameters["sliding_attention"]
    if (kind := rope.get("rope_type", "default")) != "default":
        raise refusal(config, "rope_type of windows", kind, "default")
    writer.add_rope_freq_base_swa(float(rope["rope_theta"]))


def _gemma3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _scale(config)
    window_fields(writer, config, 6)
    _base_in_windows(writer, config)
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3n(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    layers = config.num_hidden_layers
    sparsity = [0.95] * _SPARSE + [0.0] * (layers - _SPARSE)
    if list(config.activation_sparsity_pattern) != sparsity:
        raise refusal(config, "activation_sparsity_pattern", config.activation_sparsity_pattern, sparsity)
    if config.num_kv_shared_layers != layers - _OWN_KEYS:
        raise refusal(config, "num_kv_shared_layers", config.num_kv_shared_layers, layers - _OWN_KEYS)
    _shared_keys(writer, config)
    window_fields(writer, config, None)
    _base_in_windows(writer, config)
    writer.add_altup_active_idx(config.altup_active_idx)
    writer.add_altup_num_inputs(config.altup_num_inputs)
    writer.add_embedding_length_per_layer_input(config.hidden_size_per_layer_input)


def _shared_keys(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """The last layers have keys and values of the last two that have their own, a window and one that sees all."""
    first = config.num_hidden_layers - config.num_kv_shared_layers
    expected = ["sliding_attention", "full_attention"]
    if config.num_kv_shared_layers and config.layer_types[max(first - 2, 0) : first] != expected:
        raise refusal(config, "layer_types before those that share keys", config.layer_types[:first], expected)
    writer.add_shared_kv_layers(config.num_kv_shared_layers)


def _gemma3n_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """Tokens beyond the embeddings of the layers have those of the first."""
    missing = config.vocab_size - tensor.shape[0]
    if not name.endswith("embed_tokens_per_layer.weight") or missing <= 0:
        return tensor
    return torch.cat([tensor, tensor[:1].expand(missing, -1)])


def _unused_keys(config: PreTrainedConfig) -> dict[str, str]:
    """Layers that share keys and values of others have weights of their own in llama.cpp, which it does not use."""
    parts = ("attn_k", "attn_v", "attn_k_norm")
    layers = range(_OWN_KEYS, config.num_hidden_layers)
    return {f"blk.{layer}.{part}.weight": f"blk.0.{part}.weight" for layer in layers for part in parts}


def _gemma3n_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    widths = config.intermediate_size
    return replace(shape, inner=list(widths) if isinstance(widths, (list, tuple)) else widths)


def _gemma4(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if getattr(config, "use_bidirectional_attention", None) == "all":
        raise refusal(config, "use_bidirectional_attention", "all", None)
    window_fields(writer, config, None)
    _base_in_windows(writer, config)
    writer.add_rope_dimension_count_swa(config.head_dim)
    writer.add_key_length_swa(config.head_dim)
    writer.add_value_length_swa(config.head_dim)
    writer.add_embedding_length_per_layer_input(getattr(config, "hidden_size_per_layer_input", 0) or 0)
    _shared_keys(writer, config)
    writer.add_final_logit_softcapping(config.final_logit_softcapping or 0.0)
    if getattr(config, "enable_moe_block", False):
        writer.add_expert_count(config.num_experts)
        writer.add_expert_used_count(config.top_k_experts)
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)


def _gemma4_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    """Layers that see all have wider heads."""
    layers = [config.per_layer_config[layer] for layer in range(config.num_hidden_layers)]
    first_shared = config.num_hidden_layers - config.num_kv_shared_layers
    doubles = getattr(config, "use_double_wide_mlp", False)
    doubled = [doubles and layer >= first_shared for layer in range(config.num_hidden_layers)]
    width = next(one.head_dim for one, kind in zip(layers, config.layer_types, strict=True) if kind == "full_attention")
    return replace(
        shape,
        inner=[config.intermediate_size * (2 if twice else 1) for twice in doubled],
        kv_heads=[one.num_key_value_heads for one in layers],
        key_width=width,
        value_width=width,
        rotated=width,
    )


_GEMMA4 = GgufFamily(
    "gemma4",
    _gemma3n_tensor,
    _gemma4,
    shape=_gemma4_shape,
    names=((r"router\.scale$", "router.proj.scale"), (r"router\.per_expert_scale$", "experts.down_proj.scale")),
    activation=GELU,
    scalings=frozenset({"proportional"}),
    fixed=_NO_BIAS,
    fused=True,
    windowed=True,
)

GEMMA: dict[str, GgufFamily] = {
    "gemma": GgufFamily("gemma", norms_from_zero, activation=GELU, fixed=_NO_BIAS),
    "gemma2": GgufFamily("gemma2", norms_from_zero, _gemma2, windowed=True, activation=GELU, fixed=_NO_BIAS),
    "gemma3_text": GgufFamily("gemma3", norms_from_zero, _gemma3, windowed=True, activation=GELU, fixed=_CAUSAL),
    "gemma3n_text": GgufFamily(
        "gemma3n",
        _gemma3n_tensor,
        _gemma3n,
        shape=_gemma3n_shape,
        activation=GELU,
        scalings=EVERYWHERE,
        fixed=_NO_BIAS
        | {"altup_num_inputs": 4, "altup_active_idx": 0, "altup_correct_scale": True, "laurel_rank": 64}
        | {"hidden_size_per_layer_input": 256, "final_logit_softcapping": 30.0},
        windowed=True,
        copies=_unused_keys,
    ),
    "gemma4_text": _GEMMA4,
    "gemma4_unified_text": _GEMMA4,
}
