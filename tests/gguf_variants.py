"""Random models of each family that GGUF files are made of, as (family, changes of its config).

What changes the computation has a value that is not its default, so a setting that a file lacks changes the logits.
"""

from __future__ import annotations

from typing import Any

from spintune.export.gguf.families import FAMILIES

Variant = tuple[str, dict[str, Any]]
WINDOW = {"sliding_window": 8}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 1e4,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7],
    "long_factor": [2.0, 4.0, 6.0, 9.0, 9.5, 10.0, 11.0, 12.0],
}
LINEAR = {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16}
ALL_KEYS = {"num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2}
ROUTED = {"n_routed_experts": 8, "moe_intermediate_size": 32, "norm_topk_prob": True, **EXPERTS}
GROUPS = {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 1.7}
FIFTH = ["sliding_attention"] * 4 + ["full_attention"]
HYBRID = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
GEMMA4 = {"head_dim": 16, "global_head_dim": 32, "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 400}
MULTIPLIERS = {
    "logits_scaling": 4.0,
    "embedding_multiplier": 2.0,
    "attention_multiplier": 0.3,
    "residual_multiplier": 0.7,
}


def rope(**parameters: Any) -> dict[str, Any]:
    """Rotary positions, by default as they are by default."""
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **parameters}}


DENSE: list[Variant] = [
    ("apertus", {**rope(**LLAMA3)}),
    ("arcee", {**rope(**LLAMA3)}),
    ("bloom", {"n_layer": 2, "n_head": 4, **ALL_KEYS}),
    ("cohere", {"logit_scale": 0.25}),
    ("cohere", {"logit_scale": 0.25, "num_hidden_layers": 64, "hidden_size": 32, "use_qk_norm": True}),
    ("cohere2", {"num_hidden_layers": 4, "layer_types": HYBRID, **WINDOW}),
    ("cwm", {"sliding_window": 64}),
    ("ernie4_5", {}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 2, **rope(**LLAMA3)}),
    ("exaone4", {"num_hidden_layers": 64, "layer_types": HYBRID * 16, "hidden_size": 32, **WINDOW}),
    ("falcon", {"multi_query": True, "num_kv_heads": 1, "new_decoder_architecture": False}),
    ("falcon", {"multi_query": False, "num_kv_heads": 4, "new_decoder_architecture": False}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1}),
    ("gemma", {"head_dim": 16}),
    (
        "gemma2",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0}
        | WINDOW,
    ),
    (
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 4, "layer_types": HYBRID, **WINDOW},
    ),
    (
        "gemma3_text",
        {"head_dim": 16, "query_pre_attn_scalar": 16, "num_hidden_layers": 4, "layer_types": HYBRID, **WINDOW}
        | {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_theta": 1e3}}},
    ),
    (
        "gemma3n_text",
        {"num_hidden_layers": 22, "num_kv_shared_layers": 2, "layer_types": (FIFTH * 5)[:22], "head_dim": 16}
        | {"activation_sparsity_pattern": [0.95] * 10 + [0.0] * 12, "laurel_rank": 64, **WINDOW}
        | {"vocab_size_per_layer_input": 390, "intermediate_size": 2048},
    ),
    ("gemma4_text", {"num_hidden_layers": 4, "layer_types": HYBRID, **GEMMA4, **WINDOW}),
    (
        "gemma4_text",
        {"num_hidden_layers": 4, "layer_types": HYBRID[2:] * 2, "num_kv_shared_layers": 2, "use_double_wide_mlp": True}
        | {**GEMMA4, **WINDOW, "hidden_size_per_layer_input": 16, "final_logit_softcapping": 3.0},
    ),
    (
        "gemma4_text",
        {"num_hidden_layers": 4, "layer_types": HYBRID, "attention_k_eq_v": True, "num_global_key_value_heads": 1}
        | {**GEMMA4, **WINDOW, "enable_moe_block": True, "num_experts": 4, "top_k_experts": 2}
        | {"moe_intermediate_size": 32},
    ),
    ("gemma4_unified_text", {"num_hidden_layers": 4, "layer_types": HYBRID, **GEMMA4, **WINDOW}),
    ("glm", {"head_dim": 16}),
    ("glm4", {"head_dim": 16, "attention_bias": True}),
    ("gpt-sw3", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96, **ALL_KEYS}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96, **ALL_KEYS}),
    ("gpt_bigcode", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96}),
    (
        "gpt_bigcode",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96, "multi_query": False, **ALL_KEYS},
    ),
    ("gpt_neox", {"rotary_pct": 0.5, **ALL_KEYS}),
    ("gpt_neox", {"use_parallel_residual": False, **ALL_KEYS}),
    ("granite", {**MULTIPLIERS}),
    ("granite", {"attention_bias": True, "mlp_bias": True, **rope(**LLAMA3)}),
    ("helium", {"head_dim": 16, "attention_bias": False}),
    ("hunyuan_v1_dense", {"head_dim": 16}),
    ("hunyuan_v1_dense", {"head_dim": 16, **rope(rope_type="dynamic", factor=1.0, alpha=50.0)}),
    ("hyperclovax", {"use_post_norm": False, **MULTIPLIERS}),
    ("internlm3", {}),
    ("iquestcoder", {}),
    ("jais2", {}),
    ("llama", {}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("llama", {**rope(**LLAMA3)}),
    ("llama", {**rope(**LINEAR)}),
    ("llama", {**rope(**YARN, beta_fast=8, beta_slow=2, truncate=False)}),
    ("llama", {**rope(rope_type="dynamic", factor=4.0)}),
    ("llama", {"head_dim": 32}),
    ("ministral", {"layer_types": ["full_attention"] * 2, "head_dim": 16, "sliding_window": 64}),
    (
        "ministral3",
        {"head_dim": 16, **rope(**YARN, mscale=1.0, mscale_all_dim=0.5, beta_fast=8, llama_4_scaling_beta=0.5)},
    ),
    ("mistral", {"sliding_window": None}),
    (
        "mpt",
        {"d_model": 64, "n_layers": 2, "n_heads": 4, "max_seq_len": 128, "attn_config": {"clip_qkv": 0.5}} | ALL_KEYS,
    ),
    ("nemotron", {"head_dim": 16, **rope(partial_rotary_factor=0.5)}),
    ("nemotron", {"head_dim": 16, "attention_bias": True, "mlp_bias": True}),
    ("olmo", {"clip_qkv": 0.5}),
    ("olmo2", {}),
    ("olmo2", {"tie_word_embeddings": True}),
    ("olmo3", {"num_hidden_layers": 4, "layer_types": HYBRID, **WINDOW}),
    (
        "olmo3",
        {"num_hidden_layers": 4, "layer_types": HYBRID[::-1], **WINDOW}
        | {
            "rope_parameters": {
                "full_attention": YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            }
        },
    ),
    ("phi", {"partial_rotary_factor": 0.5, **ALL_KEYS}),
    ("phi3", {}),
    # llama.cpp takes the factors by its context, at least 256 here, transformers by the length, which is 40
    ("phi3", {"max_position_embeddings": 1024, "original_max_position_embeddings": 512, "rope_parameters": LONGROPE}),
    ("phi3", {"max_position_embeddings": 1024, "original_max_position_embeddings": 32, "rope_parameters": LONGROPE}),
    ("qwen2", {}),
    ("qwen2", {**rope(**YARN, attention_factor=1.3)}),
    ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    ("seed_oss", {"head_dim": 32}),
    ("smollm3", {"num_hidden_layers": 4}),
    ("stablelm", {"partial_rotary_factor": 0.5}),
    ("stablelm", {"use_parallel_residual": True, "qk_layernorm": True, "use_qkv_bias": True}),
    ("starcoder2", {"sliding_window": None}),
]
LATENT_SIZES = {"q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 12}
LATENT: list[Variant] = [
    ("deepseek_v2", {**LATENT_SIZES, **ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, **ALL_KEYS}),
    (
        "deepseek_v2",
        {
            **LATENT_SIZES,
            **ROUTED,
            "n_shared_experts": 1,
            "q_lora_rank": None,
            "routed_scaling_factor": 2.0,
            **ALL_KEYS,
        },
    ),
    (
        "deepseek_v3",
        {**LATENT_SIZES, **ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 1, **GROUPS, **ALL_KEYS},
    ),
    (
        "deepseek_v3",
        {**LATENT_SIZES, **ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 0, "rope_interleave": False}
        | {"norm_topk_prob": False, "n_group": 1, "topk_group": 1, **ALL_KEYS}
        | rope(**YARN, mscale=0.7, mscale_all_dim=0.7),
    ),
    ("glm4_moe_lite", {**LATENT_SIZES, **ROUTED, "n_shared_experts": 1, **ALL_KEYS}),
    (
        "glm_moe_dsa",
        {**LATENT_SIZES, **ROUTED, "n_shared_experts": 1, "num_hidden_layers": 4, "index_topk": 8, "index_n_heads": 24}
        | {"index_head_dim": 64, "indexer_types": ["full", "full", "shared", "full"], **GROUPS, **ALL_KEYS},
    ),
    (
        "kimi_linear",
        {**LATENT_SIZES, "q_lora_rank": None, "num_hidden_layers": 4, "linear_head_dim": 16, "linear_num_heads": 4}
        | {"layer_types": ["linear_attention", "full_attention"] * 2, "num_local_experts": 8, "n_shared_experts": 1}
        | {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"], "moe_intermediate_size": 32}
        | {**GROUPS, **ALL_KEYS, **EXPERTS},
    ),
    ("minicpm3", {**LATENT_SIZES, **ALL_KEYS}),
    (
        "minicpm3",
        {**LATENT_SIZES, **ALL_KEYS, "max_position_embeddings": 1024, "original_max_position_embeddings": 32}
        | rope(rope_type="longrope", short_factor=[1.0, 1.1, 1.2, 1.3], long_factor=[2.0, 4.0, 6.0, 9.0]),
    ),
    ("youtu", {**LATENT_SIZES, **ALL_KEYS, "pad_token_id": None}),  # loading sets the row of padding to zero,
]
EXPERT: list[Variant] = [
    (
        "afmoe",
        {"num_hidden_layers": 4, "layer_types": HYBRID, "head_dim": 16, "num_experts": 8, "moe_intermediate_size": 32}
        | {"num_shared_experts": 1, "route_scale": 2.0, "mup_enabled": True, **WINDOW, **EXPERTS},
    ),
    (
        "dbrx",
        {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128, "resid_pdrop": 0.0}
        | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 0.5, "rope_theta": 1e4}}
        | {"ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64}},
    ),
    (
        "dots1",
        {**ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "head_dim": 16, **GROUPS, **WINDOW, **ALL_KEYS},
    ),
    (
        "ernie4_5_moe",
        {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 2}
        | {"num_hidden_layers": 4, "moe_layer_start_index": 2},
    ),
    (
        "exaone_moe",
        {"num_hidden_layers": 4, "layer_types": HYBRID, "num_experts": 8, "moe_intermediate_size": 32, "head_dim": 16}
        | {"num_shared_experts": 2, "first_k_dense_replace": 1, **GROUPS, **WINDOW, **EXPERTS},
    ),
    ("glm4_moe", {**ROUTED, "n_shared_experts": 2, "first_k_dense_replace": 1, "head_dim": 16, **GROUPS}),
    (
        "glm4_moe",
        {**ROUTED, "n_shared_experts": 1, "first_k_dense_replace": 0, "head_dim": 16, "use_qk_norm": True}
        | {"attention_bias": True, "norm_topk_prob": False},
    ),
    (
        "gpt_oss",
        {"num_hidden_layers": 4, "head_dim": 16, "num_local_experts": 4, **EXPERTS, **WINDOW, **rope(**YARN)},
    ),
    ("granitemoe", {"num_local_experts": 4, **MULTIPLIERS, **EXPERTS}),
    ("granitemoeshared", {"num_local_experts": 4, "shared_intermediate_size": 80, **MULTIPLIERS, **EXPERTS}),
    ("hunyuan_v1_moe", {"num_experts": 4, "moe_topk": [2, 2], "head_dim": 16}),
    (
        "llama4_text",
        {"num_hidden_layers": 4, "num_local_experts": 4, "intermediate_size_mlp": 80, "head_dim": 16}
        | {"interleave_moe_layer_step": 2, "num_experts_per_tok": 1, **rope(**LLAMA3)},
    ),
    (
        "mimo_v2_flash",
        {
            **ROUTED,
            "num_hidden_layers": 4,
            "layer_types": HYBRID,
            "head_dim": 24,
            "v_head_dim": 16,
            "num_key_value_heads": 1,
        }
        | {**WINDOW, "n_group": 1, "topk_group": 1},
    ),
    ("minimax_m2", {"num_local_experts": 4, "head_dim": 16, **rope(partial_rotary_factor=0.5), **EXPERTS}),
    ("mixtral", {"num_local_experts": 4, "head_dim": 16, **EXPERTS}),
    ("olmoe", {"num_experts": 4, "norm_topk_prob": False, **ALL_KEYS, **EXPERTS}),
    (
        "qwen2_moe",
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 80, **EXPERTS},
    ),
    ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16, "norm_topk_prob": True, **EXPERTS}),
    ("solar_open", {**ROUTED, "n_shared_experts": 1, "head_dim": 16, **GROUPS}),
]
MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_d_conv": 4, "mamba_n_groups": 2}
DELTA = {
    "num_hidden_layers": 4,
    "head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
QWEN_EXPERTS = {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 48, **EXPERTS}
RECURRENT: list[Variant] = [
    ("bamba", {"num_hidden_layers": 3, "attn_layer_indices": [1], **MAMBA2}),
    (
        "falcon_h1",
        {"mamba_d_ssm": 128, "head_dim": 16, "mlp_multipliers": [0.5, 2.0], "key_multiplier": 0.5}
        | {"ssm_multipliers": [0.5, 1.5, 1.0, 0.7, 2.0], "lm_head_multiplier": 0.5, "embedding_multiplier": 2.0}
        | {"attention_in_multiplier": 0.8, "attention_out_multiplier": 1.2, "ssm_in_multiplier": 1.3}
        | {"ssm_out_multiplier": 0.6, **MAMBA2},
    ),
    ("falcon_h1", {"mamba_d_ssm": 128, "mamba_rms_norm": True, "mamba_norm_before_gate": False, **MAMBA2}),
    ("falcon_mamba", {"state_size": 16, "time_step_rank": 4, "intermediate_size": 128}),
    (
        "granitemoehybrid",
        {"num_hidden_layers": 3, "layer_types": ["mamba", "attention", "mamba"], "num_local_experts": 4, **MULTIPLIERS}
        | {"shared_intermediate_size": 80, "position_embedding_type": "rope", **EXPERTS, **MAMBA2},
    ),
    (
        "granitemoehybrid",
        {"layer_types": ["mamba", "attention"], "num_local_experts": 0, "shared_intermediate_size": 80}
        | {"num_experts_per_tok": 0, **MULTIPLIERS, **MAMBA2},
    ),
    (
        "granitemoehybrid",
        {"layer_types": ["attention", "attention"], "num_local_experts": 0, "shared_intermediate_size": 80}
        | {"num_experts_per_tok": 0, "position_embedding_type": "rope", **MULTIPLIERS, **MAMBA2},
    ),
    (
        "jamba",
        {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False}
        | {"num_experts": 4, "mamba_dt_rank": 4, "mamba_d_state": 16, **EXPERTS},
    ),
    ("lfm2", {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 32}),
    (
        "lfm2_moe",
        {"num_hidden_layers": 3, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1}
        | {"num_experts": 4, "moe_intermediate_size": 32, **EXPERTS},
    ),
    ("mamba", {"state_size": 16, "time_step_rank": 4, "intermediate_size": 128}),
    ("mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2}),
    (
        "nemotron_h",
        {"layers_block_type": ["mamba", "attention", "mlp", "mamba"], "head_dim": 16, "mamba_num_heads": 8}
        | {"mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2},
    ),
    (
        "nemotron_h",
        {"layers_block_type": ["mamba", "attention", "moe", "moe"], "head_dim": 16, "mamba_num_heads": 8}
        | {"mamba_head_dim": 16, "ssm_state_size": 16, "n_groups": 2, **ROUTED, **GROUPS}
        | {"moe_shared_expert_intermediate_size": 80, "moe_intermediate_size": 32},
    ),
    ("qwen3_5_moe_text", {**DELTA, **QWEN_EXPERTS, **rope(partial_rotary_factor=0.25)}),
    ("qwen3_5_text", {**DELTA, **rope(partial_rotary_factor=0.5)}),
    ("qwen3_next", {**DELTA, **QWEN_EXPERTS, **rope(partial_rotary_factor=0.5)}),
]
NO_ROTATION = {
    *("bloom", "falcon_mamba", "gpt-sw3", "gpt2", "gpt_bigcode", "jamba", "kimi_linear", "mamba", "mamba2", "mpt"),
    "nemotron_h",
}
SCALINGS = {"dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}, "linear": LINEAR, "llama3": LLAMA3}
SCALINGS["yarn"] = YARN


def scaled(family: str, kind: str, rotated: dict[str, Any]) -> dict[str, Any]:
    """The first variant of a family, with positions scaled. ``rotated`` are its rotary parameters as they are."""
    changes = next(changes for name, changes in VARIANTS if name == family)
    by_layer = "full_attention" in rotated
    own = rotated["full_attention"] if by_layer else rotated
    share = {key: own[key] for key in ("partial_rotary_factor", "llama_4_scaling_beta") if key in own}
    other = {**share, **SCALINGS[kind], "original_max_position_embeddings": 16}
    if kind == "yarn" and FAMILIES[family].latent:
        other |= {"mscale": 0.7, "mscale_all_dim": 0.7}
    if by_layer:
        other["rope_theta"] = own["rope_theta"]
    return {**changes, "rope_parameters": {**rotated, "full_attention": other} if by_layer else other}


VARIANTS = [*DENSE, *LATENT, *EXPERT, *RECURRENT]
