"""Families whose keys and values are made of one narrow vector for each token (multi-head latent attention)."""

from __future__ import annotations

from dataclasses import replace

import torch
from gguf import ExpertGatingFuncType, GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.export.gguf.families.experts import routed
from spintune.export.gguf.families.family import EVERYWHERE, GgufFamily, Parts, Shape, pairs_of, refusal, small_epsilon


def _apart(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    """llama.cpp multiplies queries by the keys' matrix and the attended vector by the values', so wants them apart."""
    if not name.endswith("kv_b_proj.weight"):
        return {name: _rotated_pairs(name, tensor, config)}
    heads = tensor.reshape(config.num_attention_heads, -1, tensor.shape[-1])
    keys, values = heads.split([config.qk_nope_head_dim, config.v_head_dim], dim=1)
    return {name.replace("kv_b", "k_b"): keys.transpose(1, 2), name.replace("kv_b", "v_b"): values}


def _rotated_pairs(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """What is rotated, with neighbors together, where the checkpoint has halves."""
    if getattr(config, "rope_interleave", True) or not name.endswith(
        ("q_proj.weight", "q_b_proj.weight", "kv_a_proj_with_mqa.weight")
    ):
        return tensor
    heads = 1 if "kv_a_proj" in name else config.num_attention_heads
    rows = tensor.reshape(heads, -1, tensor.shape[-1]).clone()
    width = config.qk_rope_head_dim
    turned = rows[:, -width:].reshape(heads * width, -1)
    rows[:, -width:] = pairs_of(turned, heads).reshape(heads, width, -1)
    return rows.reshape(tensor.shape)


def _shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    """One key and value for all heads."""
    rank, turned = config.kv_lora_rank, config.qk_rope_head_dim
    return replace(shape, kv_heads=1, key_width=rank + turned, value_width=rank, rotated=turned)


def latent_fields(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """How narrow the vector is, and how wide what is made of it."""
    small_epsilon(config)
    writer.add_q_lora_rank(config.q_lora_rank or 0)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)


def _deepseek_v2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """transformers does not norm its experts' weights, whatever its config says."""
    latent_fields(writer, config)
    routed(ExpertGatingFuncType.SOFTMAX, "n_shared_experts", norm=False, groups=False)(writer, config)


def _deepseek_v3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    latent_fields(writer, config)
    routed(ExpertGatingFuncType.SIGMOID, "n_shared_experts")(writer, config)


def _glm_dsa(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """A few keys are chosen by scores of their own, in some layers as in the one before."""
    _deepseek_v3(writer, config)
    if config.index_head_dim % 64:
        raise refusal(config, "index_head_dim", config.index_head_dim, "a multiple of 64")
    writer.add_indexer_head_count(config.index_n_heads)
    writer.add_indexer_key_length(config.index_head_dim)
    writer.add_indexer_top_k(config.index_topk)
    writer.add_array(f"{writer.arch}.attention.indexer.types", [kind == "full" for kind in config.indexer_types])


def _youtu(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    latent_fields(writer, config)
    writer.add_leading_dense_block_count(config.num_hidden_layers)
    writer.add_expert_feed_forward_length(config.intermediate_size)
    writer.add_expert_shared_count(0)


def _kimi(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """Linear attention in some layers; in the others, nothing is rotated."""
    if config.linear_num_heads != config.num_attention_heads:
        raise refusal(config, "linear_num_heads", config.linear_num_heads, config.num_attention_heads)
    small_epsilon(config)
    writer.add_kv_lora_rank(config.kv_lora_rank)
    writer.add_key_length_mla(config.qk_nope_head_dim + config.qk_rope_head_dim)
    writer.add_value_length_mla(config.v_head_dim)
    writer.add_rope_dimension_count(config.qk_rope_head_dim)
    writer.add_ssm_conv_kernel(config.linear_conv_kernel_dim)
    writer.add_kda_head_dim(config.linear_head_dim)
    routed(ExpertGatingFuncType.SIGMOID, "n_shared_experts")(writer, config)


def _kimi_tensor(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    return -torch.exp(tensor) if name.endswith(".A_log") else tensor


def _kimi_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    kv_heads = [int(kind == "full_attention") for kind in config.layer_types]
    return replace(_shape(shape, config), kv_heads=kv_heads)


def _minicpm3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_q_lora_rank(config.q_lora_rank)
    writer.add_kv_lora_rank(config.kv_lora_rank)


def _minicpm3_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    width = config.qk_nope_head_dim + config.qk_rope_head_dim
    return replace(shape, key_width=width, value_width=config.v_head_dim, rotated=config.qk_rope_head_dim)


_NO_BIAS: dict[str, object] = {"attention_bias": False, "mlp_bias": False}
_SCALINGS = EVERYWHERE - {"linear"}  # for which llama.cpp would grow the scores as for YaRN
_V3 = GgufFamily(
    "deepseek2", fields=_deepseek_v3, parts=_apart, shape=_shape, fixed=_NO_BIAS, scalings=_SCALINGS, latent=True
)

LATENT: dict[str, GgufFamily] = {
    "deepseek_v2": GgufFamily(
        "deepseek2",
        fields=_deepseek_v2,
        parts=_apart,
        shape=_shape,
        fixed=_NO_BIAS | {"topk_method": "greedy"},
        scalings=_SCALINGS,
        latent=True,
    ),
    "deepseek_v3": _V3,
    "glm4_moe_lite": _V3,
    "glm_moe_dsa": GgufFamily(
        "glm-dsa",
        fields=_glm_dsa,
        parts=_apart,
        shape=_shape,
        fixed=_NO_BIAS,
        scalings=_SCALINGS - {"yarn"},  # logits differ: llama.cpp's indexer rotates otherwise
        latent=True,
    ),
    "kimi_linear": GgufFamily(
        "kimi-linear",
        _kimi_tensor,
        _kimi,
        parts=_apart,
        shape=_kimi_shape,
        names=((r"block_sparse_moe\.(gate|up|down)_proj\.", r"mlp.\1_proj."),),
        fixed=_NO_BIAS | {"q_lora_rank": None, "norm_topk_prob": True},
        head=True,
    ),
    "minicpm3": GgufFamily(
        "minicpm3",
        fields=_minicpm3,
        shape=_minicpm3_shape,
        scalings=EVERYWHERE | {"longrope"},
        fixed=_NO_BIAS | {"scale_emb": 12, "scale_depth": 1.4, "dim_model_base": 256},
    ),
    "youtu": GgufFamily(
        "deepseek2", fields=_youtu, parts=_apart, shape=_shape, fixed=_NO_BIAS, scalings=_SCALINGS, latent=True
    ),
}
