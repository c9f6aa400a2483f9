"""Tiny models of every text-generating family that the installed transformers knows, as folders that a user brings.

A generic shrinker sets sizes by the names of a config's attributes; :mod:`.variants` says what a family needs besides.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from families.variants import ENCODER_DECODERS, VARIANTS
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

VOCABULARY = 97
LARGEST = 500_000
"""Weights of the largest model that counts as tiny."""

# the first pattern that matches an attribute of a config sets its value
SIZES: tuple[tuple[str, int], ...] = (
    (r"n_vocab|vocab_size(_per_layer_input)?", VOCABULARY),
    (r"(decoder_|attention_)?(hidden_size|d_model|n_embd|word_embed_proj_dim|embedding_size)|dim", 32),
    (r"hidden_size_per_layer_input|head_dim|d_kv|attention_head_dim|swa_head_dim|kv_channels", 8),
    (r"num_(hidden_|decoder_|encoder_)?layers|n_layers?|(en|de)coder_layers", 2),
    (r"num_(en|de)coder_(attention_)?heads|((en|de)coder|num)_attention_heads|n_heads?|num_heads", 4),
    (r"num_key_value_heads|num_kv_heads|n_head_kv|multi_query_group_num", 2),
    (r"global_head_dim", 16),
    (r"qk_nope_head_dim|v_head_dim|index_head_dim", 8),
    (r"qk_rope_head_dim|rotary_dim", 4),
    (r"(q|kv|o|index_q)_lora_rank", 12),
    (r"d_ff|n_inner|ffn_hidden_size|(.*_)?(intermediate_size|ffn_dim)", 48),
    (r"num_(local_|routed_)?experts|n_routed_experts|moe_num_experts|num_expert", 4),
    (r"num_experts_per_tok(en)?|moe_topk|moe_k|num_selected_experts|top_k_experts|moe_top_k", 2),
    (r"n_group|topk_group|num_expert_groups?", 1),
    (r"(n|num|moe_num)_shared_experts", 1),
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
CONTROL_IDS = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
CONTROL = re.compile(r"(.*_)?token_(id|index)")


def save_tiny(name: str, folder: Path) -> None:
    """Writes the folder of a variant: a random model, and a tokenizer whose token i is the word "wi"."""
    tiny_model(name).save_pretrained(folder)
    backend = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="w1", eos_token="w2", pad_token="w0")
    tokenizer.save_pretrained(folder)


def tiny_model(name: str) -> PreTrainedModel:
    """A random model of a variant: equal names give equal weights."""
    config, kind = tiny_config(name), auto_class(name)
    with torch.device("meta"):
        weights = sum(parameter.numel() for parameter in kind.from_config(config).parameters())
    if weights > LARGEST:
        raise ValueError(f"{name} is not tiny: {weights:,} weights; shrink more of its config")
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = kind.from_config(config, dtype=torch.float32).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                _spread(parameter)
        model.tie_weights()
    return model


def auto_class(name: str) -> type:
    """What loads a variant in transformers."""
    return AutoModelForSeq2SeqLM if name in ENCODER_DECODERS else AutoModelForCausalLM


def tiny_config(name: str) -> PreTrainedConfig:
    """The config of a variant."""
    family, changes = VARIANTS[name]
    kind = CONFIG_MAPPING[family]
    values = {**_shrunk(kind()), **changes}
    if name in ENCODER_DECODERS and values.get("decoder_start_token_id") is None:
        values["decoder_start_token_id"] = 0  # T5 starts with its padding
    return kind(**values)


def _shrunk(default: PreTrainedConfig) -> dict[str, Any]:
    """Small values for the attributes of a config."""
    known, values = default.to_dict(), dict[str, Any]()
    latent = "qk_rope_head_dim" in known
    for key, value in known.items():
        if key in default.sub_configs and value is not None:
            values[key] = _shrunk(getattr(default, key))
        elif CONTROL.fullmatch(key):
            values[key] = None if value is None else CONTROL_IDS.get(key, 0)
        elif type(value) is int and not (latent and key == "head_dim"):  # derived there
            size = next((size for pattern, size in SIZES if re.fullmatch(pattern, key)), None)
            values |= {} if size is None else {key: size}
    if latent and "num_key_value_heads" in known:
        values["num_key_value_heads"] = values["num_attention_heads"]
    return values


def _spread(parameter: torch.Tensor) -> None:
    """Makes matrices wide, so that what a token sees, and where, changes its prediction by whole nats."""
    if parameter.ndim >= 2:
        parameter.normal_(0, 1.3 * parameter.shape[-1] ** -0.5)
    else:
        parameter.add_(torch.randn_like(parameter) * 0.3)
