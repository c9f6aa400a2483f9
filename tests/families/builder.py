"""Tiny models of every text-generating family that the installed transformers knows.

A generic shrinker sets sizes by the names of a config's attributes; :mod:`variants` says what a family needs besides.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from variants import ENCODER_DECODERS, VARIANTS

VOCABULARY = 97
LARGEST = 500_000

# the first pattern that matches an attribute of the config decides; None keeps the config's own value
SIZES: tuple[tuple[str, Any], ...] = (
    (r"vocab_size|n_vocab", VOCABULARY),
    (r"(decoder_|attention_)?(hidden_size|d_model|n_embd|word_embed_proj_dim|embedding_size)|dim", 32),
    (r"hidden_size_per_layer_input", 8),
    (r"vocab_size_per_layer_input", VOCABULARY),
    (r"num_(hidden_|decoder_|encoder_)?layers|n_layers?|(en|de)coder_layers", 2),
    (r"num_(en|de)coder_(attention_)?heads|(en|de)coder_attention_heads|num_attention_heads|n_heads?|num_heads", 4),
    (r"num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num", 2),
    (r"global_head_dim", 16),
    (r"head_dim|d_kv|attention_head_dim|swa_head_dim|kv_channels", 8),
    (r"qk_nope_head_dim|v_head_dim|index_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"(q|kv|o|index_q)_lora_rank", 12),
    (r"intermediate_size|d_ff|ffn_dim|(en|de)coder_ffn_dim|n_inner|ffn_hidden_size|.*_intermediate_size|.*_ffn_dim", 48),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_expert", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|num_selected_experts|top_k_experts|moe_top_k", 2),
    (r"n_group|topk_group|num_expert_groups?", 1),
    (r"n_shared_experts|num_shared_experts|moe_num_shared_experts", 1),
    (r"max_position_embeddings|n_positions|max_seq_len|n_ctx|max_sequence_length", 128),
    (r"sliding_window(_size)?|window_size|local_attention|attention_window_size", 7),
    (r"attention_chunk_size", 16),
    (r"mamba_(num|n)_heads|mamba_heads", 4),
    (r"mamba_(d_head|head_dim)|mamba_headdim", 16),
    (r"mamba_(n|num)_groups|n_groups|mamba_ngroups|num_mem_blocks", 1),
    (r"(mamba_|ssm_)?(d_state|state_size|state_dim)", 8),
    (r"(mamba_)?chunk_size|block_size", 8),
    (r"(mamba_|time_step_)?(dt_)?rank", 4),
    (r"linear_num_key_heads", 2),
    (r"linear_num_value_heads", 4),
    (r"linear_(key|value)_head_dim", 8),
)
SMALL_IDS = re.compile(r"(.*_)?(token_id|token_index)")


def tiny_config(name: str) -> PreTrainedConfig:
    """The config of a variant."""
    family, changes = VARIANTS[name]
    kind = CONFIG_MAPPING[family]
    default = kind()
    values = {**shrunk(default), **changes}
    config = kind(**{key: value for key, value in values.items() if value is not ...})
    config.use_cache = True
    return config


def shrunk(default: PreTrainedConfig) -> dict[str, Any]:
    """Small values for the attributes of a config."""
    values: dict[str, Any] = {}
    known = default.to_dict()
    for key, value in known.items():
        if key == "head_dim" and "qk_rope_head_dim" in known:
            continue  # derived
        if key in default.sub_configs and value is not None:
            values[key] = shrunk(getattr(default, key))
            continue
        if SMALL_IDS.fullmatch(key):
            values[key] = None if value is None else {"bos_token_id": 1, "eos_token_id": 2}.get(key, 0)
            continue
        size = next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), None)
        if size is not None and isinstance(value, int) and not isinstance(value, bool):
            values[key] = size
    if "qk_rope_head_dim" in known and "num_key_value_heads" in known:  # latent attention has no groups
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values


def tiny_model(name: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A random model of a variant: equal names give equal weights.

    The weights are wide, so that what a token sees, and where, changes its prediction by whole nats.
    """
    config = tiny_config(name)
    kind = AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"{name} is not tiny: {weights:,} weights; shrink more of its config")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind.from_config(config, dtype=torch.float32, attn_implementation=None).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                spread(parameter)
            model.tie_weights()
    if model.generation_config is not None:
        model.generation_config.do_sample = False
    return model.to(dtype)


def spread(parameter: torch.Tensor) -> None:
    """Makes a parameter random: matrices wide, vectors near what they were made with."""
    if parameter.ndim >= 2:
        fan = parameter.shape[-1]
        parameter.normal_(0, 1.7 * fan**-0.5)
    else:
        parameter.add_(torch.randn_like(parameter) * 0.3)
