"""Families with state-space layers, linear attention or short convolutions."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from gguf import ExpertGatingFuncType, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.export.gguf.families.dense import granite_scales
from spintune.export.gguf.families.experts import GRANITE_NAMES, expert_fields, granite_parts, routed
from spintune.export.gguf.families.family import (
    FACTORS,
    RELU2,
    GgufFamily,
    Parts,
    Shape,
    neighboring_pairs,
    norms_from_zero,
    refusal,
    small_epsilon,
)

_UNBOUNDED = 2**20  # tokens of a model without positions
_ATTENTION = ("attention", "full_attention")
_NO_LIMIT: dict[str, object] = {"time_step_limit": [0.0, float("inf")]}


@dataclass(frozen=True)
class StateSpace:
    """Sizes of Mamba's layers.

    Attributes:
        inner: width.
        ranks: of the time steps (Mamba), or number of heads (Mamba 2).
        groups: of heads that share what is written to the state and read from it (Mamba 2).
    """

    kernel: int
    inner: int
    state: int
    ranks: int
    groups: int = 0

    def write(self, writer: GGUFWriter) -> None:
        """Writes the sizes."""
        writer.add_ssm_conv_kernel(self.kernel)
        writer.add_ssm_inner_size(self.inner)
        writer.add_ssm_state_size(self.state)
        writer.add_ssm_time_step_rank(self.ranks)
        if self.groups:
            writer.add_ssm_group_count(self.groups)


def _states(config: PreTrainedConfig) -> StateSpace:
    """The sizes, by the names that a family has for them."""
    if config.model_type in ("mamba", "falcon_mamba"):
        return StateSpace(config.conv_kernel, config.intermediate_size, config.state_size, config.time_step_rank)
    if config.model_type == "jamba":
        inner = config.mamba_expand * config.hidden_size
        return StateSpace(config.mamba_d_conv, inner, config.mamba_d_state, config.mamba_dt_rank)
    if config.model_type == "mamba2":
        inner = config.num_heads * config.head_dim
        return StateSpace(config.conv_kernel, inner, config.state_size, config.num_heads, config.n_groups)
    if config.model_type == "nemotron_h":
        heads = config.mamba_num_heads
        inner = heads * config.mamba_head_dim
        return StateSpace(config.conv_kernel, inner, config.ssm_state_size, heads, config.n_groups)
    inner = config.mamba_n_heads * config.mamba_d_head
    return StateSpace(config.mamba_d_conv, inner, config.mamba_d_state, config.mamba_n_heads, config.mamba_n_groups)


def _mamba_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    if name.endswith(".A_log"):
        return -torch.exp(tensor)
    return tensor.squeeze(1) if name.endswith("conv1d.weight") else tensor


def _mamba2_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    tensor = _mamba_tensor(name, tensor, config)
    if name.endswith((".A_log", ".D")):
        return tensor.unsqueeze(1)
    gated = name.endswith(("mixer.norm.weight", "mamba.norm.weight"))
    return tensor.reshape(_states(config).groups, -1) if gated else tensor


def _mamba2_of_llama(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """With attention that rotates neighbors."""
    return neighboring_pairs(name, _mamba2_tensor(name, tensor, config), config)


def _no_attention(shape: Shape, config: PreTrainedConfig) -> Shape:
    return replace(shape, context=_UNBOUNDED, inner=0, heads=0, kv_heads=0, key_width=0, value_width=0, rms=True)


def _mamba(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if config.intermediate_size != 2 * config.hidden_size:
        raise refusal(config, "intermediate_size", config.intermediate_size, "twice the hidden_size")
    normed = config.model_type == "falcon_mamba"
    if normed and abs(config.mixer_rms_eps - config.layer_norm_epsilon) > 1e-5:  # one for all in llama.cpp
        raise refusal(config, "mixer_rms_eps", config.mixer_rms_eps, config.layer_norm_epsilon)
    _states(config).write(writer)
    writer.add_ssm_dt_b_c_rms(normed)


def _state_fields(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _states(config).write(writer)


def _hybrid_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    """Layers without keys are recurrent."""
    kv_heads = [config.num_key_value_heads if kind in _ATTENTION else 0 for kind in config.layer_types]
    return replace(shape, kv_heads=kv_heads)


def _jamba(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _states(config).write(writer)
    if config.num_experts > 1:
        expert_fields(writer, config)


def _granite_hybrid(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    granite_scales(writer, config)
    if _has_states(config):
        _states(config).write(writer)
    writer.add_rope_scaling_finetuned(config.position_embedding_type == "rope")
    if config.num_local_experts:
        expert_fields(writer, config)
        writer.add_expert_shared_feed_forward_length(config.shared_intermediate_size)


def _granite_hybrid_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    inner = config.intermediate_size if config.num_local_experts else config.shared_intermediate_size
    return replace(_hybrid_shape(shape, config), inner=inner)


def _has_states(config: PreTrainedConfig) -> bool:
    return not set(config.layer_types) <= set(_ATTENTION)


def _granite_name(config: PreTrainedConfig) -> str:
    if _has_states(config):
        return "granitehybrid"
    return "granitemoe" if config.num_local_experts else "granite"


def _falcon_h1(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    states = _states(config)
    if states.inner != config.mamba_d_ssm:
        raise refusal(config, "mamba_d_ssm", config.mamba_d_ssm, states.inner)
    if config.mamba_rms_norm and config.mamba_norm_before_gate:
        raise refusal(config, "mamba_norm_before_gate", True, False)
    if config.tie_word_embeddings and config.embedding_multiplier != config.lm_head_multiplier:
        raise refusal(config, "embedding_multiplier", config.embedding_multiplier, config.lm_head_multiplier)
    states.write(writer)


def _falcon_h1_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """The family's multipliers, which llama.cpp has no settings for, go into the weights."""
    gate, down = config.mlp_multipliers
    attention = config.attention_in_multiplier
    scales = {
        "feed_forward.gate_proj.weight": gate,
        "feed_forward.down_proj.weight": down,
        "self_attn.q_proj.weight": attention,
        "self_attn.k_proj.weight": attention * config.key_multiplier,
        "self_attn.v_proj.weight": attention,
        "self_attn.o_proj.weight": config.attention_out_multiplier,
        "mamba.out_proj.weight": config.ssm_out_multiplier,
        "lm_head.weight": config.lm_head_multiplier,
        "embed_tokens.weight": config.embedding_multiplier,
    }
    scale = next((value for end, value in scales.items() if name.endswith(end)), None)
    if scale is not None:
        return tensor * scale
    if not name.endswith("mamba.in_proj.weight"):
        return _mamba2_tensor(name, tensor, config)
    states = _states(config)
    widths = [states.inner, states.inner, *[states.groups * states.state] * 2, states.ranks]
    parts = zip(tensor.split(widths), config.ssm_multipliers, strict=True)
    return torch.cat([part * factor for part, factor in parts]) * config.ssm_in_multiplier


def _nemotron_h_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    kinds = config.layers_block_type
    width = config.moe_intermediate_size if "moe" in kinds else config.intermediate_size
    return replace(
        _hybrid_shape(shape, config), inner=[width if kind in ("mlp", "moe") else 0 for kind in kinds], rms=True
    )


def _nemotron_h_name(config: PreTrainedConfig) -> str:
    return "nemotron_h_moe" if "moe" in config.layers_block_type else "nemotron_h"


def _nemotron_h(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    kinds = config.layers_block_type
    if "moe" in kinds and "mlp" in kinds:
        raise refusal(config, "layers_block_type", kinds, "without mlp where there is moe")
    writer.add_layer_norm_eps(config.layer_norm_epsilon)
    _states(config).write(writer)
    if "moe" not in kinds:
        return
    routed(ExpertGatingFuncType.SIGMOID, "n_shared_experts")(writer, config)
    writer.add_expert_shared_feed_forward_length(config.moe_shared_expert_intermediate_size)
    if config.moe_latent_size is not None:
        writer.add_moe_latent_size(config.moe_latent_size)


def _short_convolutions(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_shortconv_l_cache(config.conv_L_cache)


def _lfm2_moe(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _short_convolutions(writer, config)
    routed(ExpertGatingFuncType.SIGMOID)(writer, config)


def _lfm2_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    return tensor.squeeze(1) if name.endswith("conv.conv.weight") else tensor


def _lfm2_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    inner = config.intermediate_size
    if getattr(config, "block_auto_adjust_ff_dim", False):
        inner = int(2 * inner / 3)
        if config.block_ffn_dim_multiplier is not None:
            inner = int(config.block_ffn_dim_multiplier * inner)
            inner = -(-inner // config.block_multiple_of) * config.block_multiple_of
    return replace(_hybrid_shape(shape, config), inner=inner, rms=True)


def _linear_attention(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Sizes of the gated delta net, and which layers have it."""
    small_epsilon(config)
    recurrent = [kind == "linear_attention" for kind in config.layer_types]
    if recurrent != [(layer + 1) % 4 != 0 for layer in range(len(recurrent))]:
        every = len(recurrent) if all(recurrent) else recurrent.index(False) + 1
        if recurrent != [(layer + 1) % every != 0 for layer in range(len(recurrent))]:
            raise refusal(config, "layer_types", config.layer_types, "full attention in every n-th layer")
        writer.add_full_attention_interval(every)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_ssm_state_size(config.linear_key_head_dim)
    writer.add_ssm_group_count(config.linear_num_key_heads)
    writer.add_ssm_time_step_rank(config.linear_num_value_heads)
    writer.add_ssm_inner_size(config.linear_value_head_dim * config.linear_num_value_heads)


def _shared_expert(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    expert_fields(writer, config)
    writer.add_expert_shared_feed_forward_length(config.shared_expert_intermediate_size)


def _qwen3_next(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _linear_attention(writer, config)
    _shared_expert(writer, config)


def _qwen3_5(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Positions of text are the same in all sections."""
    _linear_attention(writer, config)
    rope = config.rope_parameters
    half = int(config.head_dim * rope.get("partial_rotary_factor", 1.0)) // 2
    sections = rope.get("mrope_section") or [(half + 2) // 3, (half + 1) // 3, half // 3]
    writer.add_rope_dimension_sections([*sections, 0][:4])


def _qwen3_5_moe(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _qwen3_5(writer, config)
    _shared_expert(writer, config)


def _delta_net(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    if ".linear_attn." in name:
        return _mamba_tensor(name, tensor, config)
    return norms_from_zero(name, tensor, config)


def _qwen3_next_parts(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    """The checkpoint has queries, keys, values and gates of a key head together."""
    if not name.endswith("in_proj_qkvz.weight"):
        return {name: tensor}
    heads, each = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    keys, values = config.linear_key_head_dim, each * config.linear_value_head_dim
    rows = tensor.reshape(heads, -1, tensor.shape[-1])
    *together, gates = (part.flatten(0, 1) for part in rows.split([keys, keys, values, values], dim=1))
    return {name.replace("qkvz", "qkv"): torch.cat(together), name.replace("qkvz", "z"): gates}


def _tiled(tensor: Tensor, config: PreTrainedConfig, dim: int = 0) -> Tensor:
    """Value heads in the order of llama.cpp: the first of each key head, then the second of each."""
    heads, each = config.linear_num_key_heads, config.linear_num_value_heads // config.linear_num_key_heads
    return tensor.unflatten(dim, (heads, each, -1)).transpose(dim, dim + 1).flatten(dim, dim + 2)


def _qwen3_5_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    tensor = _delta_net(name, tensor, config)
    if ".linear_attn." not in name or name.endswith("norm.weight"):
        return tensor
    if name.endswith("out_proj.weight"):
        return _tiled(tensor, config, 1)
    if name.endswith(("in_proj_qkv.weight", "conv1d.weight")):
        keys = 2 * config.linear_num_key_heads * config.linear_key_head_dim
        return torch.cat([tensor[:keys], _tiled(tensor[keys:], config)])
    return _tiled(tensor, config)


_MAMBA: dict[str, object] = {"use_bias": False, "use_conv_bias": True}
_MAMBA2: dict[str, object] = {**_NO_LIMIT, "mamba_proj_bias": False, "mamba_conv_bias": True}
_NO_BIAS: dict[str, object] = {"attention_bias": False, "mlp_bias": False}
_LFM2_NAMES = (
    (r"experts\.(\d+)\.w1\.", r"experts.\1.gate_proj."),
    (r"experts\.(\d+)\.w2\.", r"experts.\1.down_proj."),
    (r"experts\.(\d+)\.w3\.", r"experts.\1.up_proj."),
)

RECURRENT: dict[str, GgufFamily] = {
    "bamba": GgufFamily(
        "granitehybrid", _mamba2_of_llama, _state_fields, shape=_hybrid_shape, fixed=_MAMBA2 | _NO_BIAS
    ),
    "falcon_h1": GgufFamily(
        "falcon-h1", _falcon_h1_tensor, _falcon_h1, fixed=_MAMBA2 | _NO_BIAS | {"projectors_bias": False}
    ),
    "falcon_mamba": GgufFamily("mamba", _mamba_tensor, _mamba, shape=_no_attention, fixed=_MAMBA),
    "granitemoehybrid": GgufFamily(
        "granitehybrid",
        _mamba2_of_llama,
        _granite_hybrid,
        granite_parts,
        shape=_granite_hybrid_shape,
        named=_granite_name,
        names=GRANITE_NAMES,
        scalings=FACTORS,
        fixed=_MAMBA2 | _NO_BIAS,
    ),
    "jamba": GgufFamily(
        "jamba", _mamba_tensor, _jamba, shape=_hybrid_shape, fixed={"mamba_proj_bias": False, "mamba_conv_bias": True}
    ),
    "lfm2": GgufFamily("lfm2", _lfm2_tensor, _short_convolutions, shape=_lfm2_shape, fixed={"conv_bias": False}),
    "lfm2_moe": GgufFamily(
        "lfm2moe",
        _lfm2_tensor,
        _lfm2_moe,
        shape=_lfm2_shape,
        names=_LFM2_NAMES,
        fixed={"conv_bias": False, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "use_expert_bias": True},
    ),
    "mamba": GgufFamily("mamba", _mamba_tensor, _mamba, shape=_no_attention, fixed=_MAMBA),
    "mamba2": GgufFamily("mamba2", _mamba2_tensor, _state_fields, shape=_no_attention, fixed=_MAMBA | _NO_LIMIT),
    "nemotron_h": GgufFamily(
        "nemotron_h",
        _mamba2_tensor,
        _nemotron_h,
        shape=_nemotron_h_shape,
        named=_nemotron_h_name,
        names=(
            (r"^model\.", "backbone."),
            (r"^backbone\.layers\.(\d+)\.mixer\.experts\.", r"model.layers.\1.mlp.experts."),
        ),
        activation=RELU2,
        fixed=_NO_LIMIT | {"use_bias": False, "mamba_proj_bias": False, "use_conv_bias": True},
    ),
    "qwen3_5_moe_text": GgufFamily(
        "qwen35moe", _qwen3_5_tensor, _qwen3_5_moe, fixed=_NO_BIAS | {"norm_topk_prob": True}
    ),
    "qwen3_5_text": GgufFamily("qwen35", _qwen3_5_tensor, _qwen3_5, fixed=_NO_BIAS),
    "qwen3_next": GgufFamily(
        "qwen3next",
        _delta_net,
        _qwen3_next,
        _qwen3_next_parts,
        fixed=_NO_BIAS | {"norm_topk_prob": True, "mlp_only_layers": [], "decoder_sparse_step": 1},
    ),
}
