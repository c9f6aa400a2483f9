"""Families in which every token goes through every weight."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.export.gguf.families.family import (
    FACTORS,
    GELU,
    RELU2,
    GgufFamily,
    Parts,
    Shape,
    neighboring_pairs,
    norms_from_zero,
    refusal,
    window_fields,
)


def inputs_first(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """GPT-2's layers keep their matrices transposed."""
    layers = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return tensor.T if name.endswith(layers) else tensor


def _queries_keys_values(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """GPT-NeoX and BLOOM keep the three of one head together, llama.cpp the heads of each."""
    return _heads_apart(tensor, config.num_attention_heads, 1) if ".query_key_value." in name else tensor


def _heads_apart(tensor: Tensor, groups: int, queries: int) -> Tensor:
    """Rows that hold, for each group of heads, its queries, a key and a value: all queries, all keys, all values."""
    width = tensor.shape[0] // (groups * (queries + 2))
    rows = tensor.reshape(groups, queries + 2, width, *tensor.shape[1:])
    parts = (rows[:, :queries], rows[:, queries : queries + 1], rows[:, queries + 1 :])
    return torch.cat([part.reshape(-1, *tensor.shape[1:]) for part in parts])


def _gpt_bigcode(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """With a key for each head, the three of one head are together."""
    apart = ".c_attn." in name and not config.multi_query
    return _heads_apart(tensor, config.num_attention_heads, 1) if apart else tensor


def _bigcode_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, kv_heads=1 if config.multi_query else config.num_attention_heads)


def _falcon(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    if ".query_key_value." not in name:
        return tensor
    groups = _falcon_groups(config)
    return _heads_apart(tensor, groups, config.num_attention_heads // groups)


def _falcon_groups(config: PreTrainedConfig) -> int:
    if not config.new_decoder_architecture:
        return 1 if config.multi_query else int(config.num_attention_heads)
    return int(config.num_kv_heads)


def _falcon_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, kv_heads=_falcon_groups(config), inner=config.ffn_hidden_size)


def _four_times_wide(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, inner=4 * shape.hidden)


def _mpt(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """transformers computes with ALiBi of 8, whatever its config says."""
    attention = config.attn_config
    if attention.softmax_scale is not None:
        raise refusal(config, "attn_config.softmax_scale", attention.softmax_scale, None)
    writer.add_max_alibi_bias(8.0)
    if attention.clip_qkv:
        writer.add_clamp_kqv(float(attention.clip_qkv))


def parallel_residual(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Attention and feed-forward layers read the same input."""
    writer.add_parallel_residual(bool(config.use_parallel_residual))


def _apertus(writer: GGUFWriter, config: PreTrainedConfig, read: Callable[[str], Tensor]) -> None:
    """Numbers of each layer's activation."""
    add = {
        "alpha_n": writer.add_xielu_alpha_n,
        "alpha_p": writer.add_xielu_alpha_p,
        "beta": writer.add_xielu_beta,
        "eps": writer.add_xielu_eps,
    }
    for key, write in add.items():
        write([float(read(f"model.layers.{layer}.mlp.act_fn.{key}")) for layer in range(config.num_hidden_layers)])


def _without_activation(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    return {} if ".act_fn." in name else {name: tensor}


def _cohere(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """The large ones norm queries and keys."""
    if config.use_qk_norm != (config.num_hidden_layers >= 64):
        raise refusal(config, "use_qk_norm", config.use_qk_norm, "true with 64 layers or more, and false with fewer")
    writer.add_logit_scale(config.logit_scale)


def _cohere2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_logit_scale(config.logit_scale)
    window_fields(writer, config, 4)


def granite_scales(writer: GGUFWriter, config: PreTrainedConfig, logits: float | None = None) -> None:
    """Granite's multipliers. ``logits`` is what logits are divided by, where the config says it otherwise."""
    writer.add_logit_scale(logits or config.logits_scaling)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_attention_scale(config.attention_multiplier)


def _hyperclovax(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Granite's, but that logits are multiplied."""
    granite_scales(writer, config, 1 / config.logits_scaling)


def _every_fourth_without_positions(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    expected = [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]
    if list(config.no_rope_layers) != expected:
        raise refusal(config, "no_rope_layers", list(config.no_rope_layers), expected)


def _clipped(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if config.clip_qkv is not None:
        writer.add_clamp_kqv(float(config.clip_qkv))


def _olmo_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, eps=1e-5, rms=False)


def _olmo3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    window_fields(writer, config, 4)
    rope = config.rope_parameters
    sliding, full = (rope.get(kind, rope) for kind in ("sliding_attention", "full_attention"))
    if sliding.get("rope_type", "default") != "default":
        raise refusal(config, "rope_type of windows", sliding["rope_type"], "default")
    if sliding["rope_theta"] != full["rope_theta"]:
        raise refusal(config, "rope_theta of windows", sliding["rope_theta"], full["rope_theta"])


def _exaone4(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Only a model of 64 layers has windows in llama.cpp, and no positions in its other layers."""
    if config.sliding_window is None:
        return
    if config.num_hidden_layers != 64:
        raise refusal(config, "sliding_window", config.sliding_window, "null but for models of 64 layers")
    window_fields(writer, config, 4)


def _ministral3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Queries grow beyond the original context."""
    rope = config.rope_parameters
    if beta := rope.get("llama_4_scaling_beta"):
        writer.add_attn_temperature_scale(float(beta))
        writer.add_rope_scaling_orig_ctx_len(int(rope["original_max_position_embeddings"]))


def _norm_eps_of_layers(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, eps=config.norm_eps, rms=False)


_LLAMA = GgufFamily("llama", neighboring_pairs, scalings=FACTORS)
_GPT2 = GgufFamily(
    "gpt2",
    inputs_first,
    activation=GELU,
    fixed={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False},
)
_NO_BIAS: dict[str, object] = {"attention_bias": False}

DENSE: dict[str, GgufFamily] = {
    "apertus": GgufFamily(
        "apertus",
        parts=_without_activation,
        measured=_apertus,
        activation=frozenset({"xielu"}),
        scalings=FACTORS,
        fixed=_NO_BIAS,
        head=True,
    ),
    "arcee": GgufFamily(
        "arcee",
        neighboring_pairs,
        activation=RELU2,
        scalings=FACTORS,
        fixed=_NO_BIAS | {"mlp_bias": False},
    ),
    "bloom": GgufFamily(
        "bloom",
        _queries_keys_values,
        shape=_four_times_wide,
        names=((r"transformer\.", ""),),
        fixed={"apply_residual_connection_post_layernorm": False},
        activation=GELU,
    ),
    "cohere": GgufFamily("command-r", fields=_cohere, fixed=_NO_BIAS),
    "cohere2": GgufFamily("cohere2", fields=_cohere2, windowed=True, fixed=_NO_BIAS, square=True),
    "cwm": _LLAMA,
    "ernie4_5": GgufFamily("ernie4_5", fixed={"use_bias": False}),
    "exaone4": GgufFamily("exaone4", fields=_exaone4, scalings=FACTORS, windowed=True),
    "falcon": GgufFamily(
        "falcon",
        _falcon,
        shape=_falcon_shape,
        fixed={"alibi": False, "parallel_attn": True, "bias": False},
        activation=GELU,
    ),
    "glm": GgufFamily("chatglm", square=True),
    "glm4": GgufFamily("glm4"),
    "gpt-sw3": _GPT2,
    "gpt2": _GPT2,
    "gpt_bigcode": GgufFamily(
        "starcoder", _gpt_bigcode, shape=_bigcode_shape, activation=GELU, fixed={"scale_attn_weights": True}
    ),
    "gpt_neox": GgufFamily(
        "gptneox", _queries_keys_values, parallel_residual, head=True, activation=GELU, fixed={"attention_bias": True}
    ),
    "granite": GgufFamily("granite", neighboring_pairs, granite_scales, scalings=FACTORS),
    "helium": GgufFamily("llama"),
    "hunyuan_v1_dense": GgufFamily("hunyuan-dense", fixed=_NO_BIAS),
    "hyperclovax": GgufFamily(
        "granite", neighboring_pairs, _hyperclovax, scalings=FACTORS, fixed={"use_post_norm": False}
    ),
    "internlm3": _LLAMA,
    "iquestcoder": _LLAMA,
    "jais2": GgufFamily("jais2", activation=RELU2, fixed={"attention_bias": True, "mlp_bias": True}),
    "llama": _LLAMA,
    "ministral": _LLAMA,
    "ministral3": GgufFamily("mistral3", neighboring_pairs, _ministral3, scalings=FACTORS),
    "mistral": _LLAMA,
    "mpt": GgufFamily("mpt", fields=_mpt, shape=_four_times_wide, activation=GELU),
    "nemotron": GgufFamily(
        "nemotron", norms_from_zero, shape=_norm_eps_of_layers, activation=RELU2, head=True, square=True
    ),
    "olmo": GgufFamily("olmo", neighboring_pairs, _clipped, shape=_olmo_shape, fixed=_NO_BIAS),
    "olmo2": GgufFamily("olmo2", head=True, fixed=_NO_BIAS),
    "olmo3": GgufFamily("olmo2", fields=_olmo3, windowed=True, head=True, fixed=_NO_BIAS),
    "phi": GgufFamily("phi2", head=True, activation=GELU, fixed={"qk_layernorm": False}),
    "phi3": GgufFamily("phi3", scalings=frozenset({"default", "longrope"})),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3", fixed=_NO_BIAS),
    "seed_oss": GgufFamily("seed_oss", fixed={"attention_out_bias": False, "mlp_bias": False}),
    "smollm3": GgufFamily(
        "smollm3", neighboring_pairs, _every_fourth_without_positions, fixed=_NO_BIAS | {"mlp_bias": False}
    ),
    "stablelm": GgufFamily("stablelm", fields=parallel_residual, head=True),
    "starcoder2": GgufFamily("starcoder2", activation=GELU, fixed={"use_bias": True}),
}
