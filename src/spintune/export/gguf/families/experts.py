"""Mixtures of experts, of whose feed-forward weights a token goes through a few."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from gguf import ExpertGatingFuncType, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.export.gguf.families.dense import granite_scales
from spintune.export.gguf.families.family import (
    FACTORS,
    FieldRule,
    GgufFamily,
    Parts,
    Shape,
    first_of,
    neighboring_pairs,
    refusal,
    window_fields,
)

_NO_BIAS = {"attention_bias": False}
_EVERY_LAYER: dict[str, object] = {"mlp_only_layers": [], "decoder_sparse_step": 1}
_SIGMOID = ExpertGatingFuncType.SIGMOID
_STACKED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(_bias)?")


GRANITE_NAMES = (
    (r"block_sparse_moe\.experts\.", "mlp.experts."),
    (r"block_sparse_moe\.router\.weight", "mlp.gate.weight"),
)


def expert_fields(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """How many experts there are, how many a token goes through, and how wide each is."""
    writer.add_expert_count(first_of(config, "num_local_experts", "num_experts"))
    writer.add_expert_used_count(_same(config, "num_experts_per_tok"))
    writer.add_expert_feed_forward_length(first_of(config, "moe_intermediate_size", "intermediate_size"))


def _same(config: PreTrainedConfig, key: str) -> int:
    """The value of a key that may have one for each layer."""
    found = getattr(config, key)
    if isinstance(found, int):
        return found
    if len(set(found)) != 1:
        raise refusal(config, key, found, "the same for all layers")
    return int(found[0])


def routed(
    gate: ExpertGatingFuncType,
    shared: str = "",
    scale: str = "routed_scaling_factor",
    norm: bool | None = None,
    groups: bool = True,
) -> FieldRule:
    """Fields of a router that scores experts on their own (sigmoid), or against each other (softmax).

    Args:
        shared: key of the number of experts that all tokens go through.
        scale: key of the factor of the experts' weights.
        norm: whether these sum to one, where the config does not say.
        groups: the config's groups of experts are what tokens choose first.
    """

    def fields(writer: GGUFWriter, config: PreTrainedConfig) -> None:
        expert_fields(writer, config)
        writer.add_expert_gating_func(gate)
        writer.add_expert_weights_norm(bool(getattr(config, "norm_topk_prob", True)) if norm is None else norm)
        writer.add_expert_weights_scale(float(getattr(config, scale, 1.0)))
        writer.add_leading_dense_block_count(_leading_dense(config))
        count, used = getattr(config, "n_group", None) or 1, getattr(config, "topk_group", None) or 1
        if groups and used < count:
            writer.add_expert_group_count(count)
            writer.add_expert_group_used_count(used)
        if shared:
            writer.add_expert_shared_count(getattr(config, shared) or 0)

    return fields


def _leading_dense(config: PreTrainedConfig) -> int:
    """How many of the first layers have no experts. Raises ModelError where others have none either."""
    kinds = getattr(config, "mlp_layer_types", None)
    if kinds is None:
        return int(getattr(config, "first_k_dense_replace", None) or getattr(config, "num_dense_layers", None) or 0)
    dense = kinds.index("sparse") if "sparse" in kinds else len(kinds)
    if "dense" in kinds[dense:]:
        raise refusal(config, "mlp_layer_types", kinds, "dense in the first layers alone")
    return int(dense)


def _both(*rules: FieldRule) -> FieldRule:
    def fields(writer: GGUFWriter, config: PreTrainedConfig) -> None:
        for rule in rules:
            rule(writer, config)

    return fields


def _all_keys(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if config.num_key_value_heads != config.num_attention_heads:
        raise refusal(config, "num_key_value_heads", config.num_key_value_heads, config.num_attention_heads)


def _windows(usual: int | None) -> FieldRule:
    return lambda writer, config: window_fields(writer, config, usual)


def _fixed_windows(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Layers without a window have no positions: every fourth, in llama.cpp."""
    expected = [
        "full_attention" if (layer + 1) % 4 == 0 else "sliding_attention" for layer in range(config.num_hidden_layers)
    ]
    if list(config.layer_types) != expected:
        raise refusal(config, "layer_types", config.layer_types, expected)
    window_fields(writer, config, 4)


def _qwen2_moe(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    expert_fields(writer, config)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _shared_width(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_expert_shared_feed_forward_length(
        config.moe_intermediate_size * first_of(config, "num_shared_experts", "moe_num_shared_experts")
    )


def _ernie(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    expert_fields(writer, config)
    last = config.moe_layer_end_index
    if last not in (-1, config.num_hidden_layers - 1):
        raise refusal(config, "moe_layer_end_index", last, -1)
    writer.add_interleave_moe_layer_step(1)
    writer.add_leading_dense_block_count(config.moe_layer_start_index)
    if config.moe_num_shared_experts:
        _shared_width(writer, config)


def _one_row(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    return tensor.squeeze(0) if "e_score_correction" in name else tensor


def _hunyuan(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    expert_fields(writer, config)
    writer.add_expert_shared_feed_forward_length(config.intermediate_size)


def _granite_experts(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    granite_scales(writer, config)
    if config.num_local_experts:
        expert_fields(writer, config)
    if width := getattr(config, "shared_intermediate_size", 0):
        writer.add_expert_shared_feed_forward_length(width)


def granite_parts(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    """Gate and up of the experts, and of the layer that all tokens go through, are one matrix in Granite."""
    shared = "shared_experts" if config.num_local_experts else ""
    stem, found, rest = name.partition(".block_sparse_moe.")
    if found and rest.startswith(("input_linear", "output_linear")):
        stem, rest = f"{stem}.mlp.experts", rest.removesuffix(".weight")
    else:
        stem, found, rest = name.partition(".shared_mlp.")
        if not found:
            return {name: tensor}
        stem, rest = f"{stem}.mlp.{shared}".rstrip("."), rest.removesuffix(".weight")
    if rest == "output_linear":
        return {f"{stem}.down_proj.weight": tensor}
    gate, up = tensor.chunk(2, dim=-2)
    return {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}


def _inputs_first(halves: Callable[[Tensor], Sequence[Tensor]], name: str, tensor: Tensor) -> Parts:
    """Matrices of all experts with the inputs as rows. ``halves`` takes gate and up apart, along the last side."""
    found = _STACKED.fullmatch(name)
    if found is None:
        return {name: tensor}
    stem, which, bias = found.groups()
    kind = "bias" if bias else "weight"
    parts = (
        dict(zip(("gate_proj", "up_proj"), halves(tensor), strict=True)) if which == "gate_up_proj" else {which: tensor}
    )
    return {f"{stem}.{part}.{kind}": one if bias else one.transpose(-1, -2) for part, one in parts.items()}


def _gpt_oss_parts(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    return _inputs_first(lambda both: (both[..., ::2], both[..., 1::2]), name, tensor)


def _llama4_parts(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    return _inputs_first(lambda both: both.chunk(2, dim=-1), name, tensor)


def _llama4(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """llama.cpp knows the numbers of Scout and Maverick."""
    step = config.interleave_moe_layer_step
    layers = config.num_hidden_layers
    scout = config.num_local_experts != 128
    expected = {
        "moe_layers": list(range(step - 1, layers, step)),
        "no_rope_layers": [int((layer + 1) % 4 != 0) for layer in range(layers)],
        "use_qk_norm": scout,
    }
    for key, value in expected.items():
        if getattr(config, key) != value:
            raise refusal(config, key, getattr(config, key), value)
    expert_fields(writer, config)
    writer.add_interleave_moe_layer_step(step)


def _llama4_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, inner=config.intermediate_size_mlp)


def _dbrx(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    experts, attention = config.ffn_config, config.attn_config
    if experts.moe_normalize_expert_weights != 1:
        raise refusal(config, "moe_normalize_expert_weights", experts.moe_normalize_expert_weights, 1)
    if (name := experts.ffn_act_fn.get("name")) != "silu":
        raise refusal(config, "ffn_act_fn", name, "silu")
    writer.add_expert_count(experts.moe_num_experts)
    writer.add_expert_used_count(experts.moe_top_k)
    writer.add_clamp_kqv(float(attention.clip_qkv or 0))


def _dbrx_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(
        shape, inner=config.ffn_config.ffn_hidden_size, kv_heads=config.attn_config.kv_n_heads, eps=1e-5, rms=False
    )


def _dbrx_experts(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """The rows of all experts, one below the other."""
    if ".experts.mlp." not in name:
        return tensor
    apart = tensor.reshape(config.ffn_config.moe_num_experts, -1, tensor.shape[-1])
    return apart.transpose(1, 2) if name.endswith("w2") else apart


def _mimo(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    rope = config.rope_parameters
    writer.add_rope_freq_base_swa(float(rope["sliding_attention"]["rope_theta"]))
    if config.attention_value_scale is not None:
        writer.add_float32(f"{writer.arch}.attention.value_scale", float(config.attention_value_scale))


def _mimo_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    kv_heads = [config.num_key_value_heads * (1 + (kind == "sliding_attention")) for kind in config.layer_types]
    return replace(shape, kv_heads=kv_heads, value_width=config.v_head_dim)


_GLM4_MOE = GgufFamily("glm4moe", fields=routed(_SIGMOID, "n_shared_experts"), head=True)

EXPERTS: dict[str, GgufFamily] = {
    "afmoe": GgufFamily(
        "afmoe",
        fields=_both(routed(_SIGMOID, "num_shared_experts", scale="route_scale"), _fixed_windows),
        fixed=_NO_BIAS | {"mup_enabled": True},
        windowed=True,
    ),
    "dbrx": GgufFamily("dbrx", _dbrx_experts, _dbrx, shape=_dbrx_shape, head=True),
    "dots1": GgufFamily(
        "dots1", fields=_both(_all_keys, routed(_SIGMOID, "n_shared_experts")), fixed=_NO_BIAS, head=True
    ),
    "ernie4_5_moe": GgufFamily(
        "ernie4_5-moe",
        _one_row,
        _ernie,
        names=((r"gate\.moe_statics", "moe_statics"),),
        fixed={"use_bias": False, "moe_layer_interval": 1},
    ),
    "exaone_moe": GgufFamily(
        "exaone-moe",
        fields=_both(routed(_SIGMOID, "num_shared_experts"), _shared_width, _windows(4)),
        scalings=FACTORS,
        windowed=True,
        head=True,
    ),
    "glm4_moe": _GLM4_MOE,
    "gpt_oss": GgufFamily(
        "gpt-oss",
        fields=_both(expert_fields, _windows(2)),
        parts=_gpt_oss_parts,
        fixed={"attention_bias": True, "swiglu_alpha": 1.702, "swiglu_limit": 7.0},
        windowed=True,
        head=True,
    ),
    "granitemoe": GgufFamily(
        "granitemoe", neighboring_pairs, _granite_experts, granite_parts, names=GRANITE_NAMES, scalings=FACTORS
    ),
    "granitemoeshared": GgufFamily(
        "granitemoe", neighboring_pairs, _granite_experts, granite_parts, names=GRANITE_NAMES, scalings=FACTORS
    ),
    "hunyuan_v1_moe": GgufFamily("hunyuan-moe", fields=_hunyuan, fixed=_NO_BIAS),
    "llama4_text": GgufFamily(
        "llama4",
        fields=_llama4,
        parts=_llama4_parts,
        shape=_llama4_shape,
        scalings=FACTORS,
        fixed=_NO_BIAS
        | {"attention_chunk_size": 8192, "attn_temperature_tuning": True, "floor_scale": 8192, "attn_scale": 0.1},
        windowed=True,
    ),
    "mimo_v2_flash": GgufFamily(
        "mimo2",
        fields=_both(routed(_SIGMOID), _mimo, _windows(None)),
        shape=_mimo_shape,
        fixed=_NO_BIAS | {"norm_topk_prob": True, "routed_scaling_factor": 1.0},
        windowed=True,
        head=True,
    ),
    "minimax_m2": GgufFamily("minimax-m2", fields=routed(_SIGMOID), head=True),
    "mixtral": GgufFamily("llama", neighboring_pairs, expert_fields, scalings=FACTORS),
    "olmoe": GgufFamily(
        "olmoe", fields=expert_fields, fixed=_NO_BIAS | {"norm_topk_prob": False, "clip_qkv": None}, head=True
    ),
    "qwen2_moe": GgufFamily("qwen2moe", fields=_qwen2_moe, fixed=_EVERY_LAYER | {"norm_topk_prob": False}, head=True),
    "qwen3_moe": GgufFamily("qwen3moe", fields=expert_fields, fixed=_EVERY_LAYER | _NO_BIAS | {"norm_topk_prob": True}),
    "solar_open": _GLM4_MOE,
}
