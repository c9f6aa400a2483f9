"""Training with our kernels gives the gradients of transformers in float64, in models that use layers in odd ways."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from spintune.kernels.linear import training_kernels

pytestmark = pytest.mark.usefixtures("compiled")

COMMON = {
    "vocab_size": 61,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
T5 = {"d_model": 64, "d_kv": 16, "d_ff": 96, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32},
    "olmo": {"clip_qkv": 0.1},  # clamp_ of a product
    "llama4_text": {"num_local_experts": 3, "intermediate_size_mlp": 96, "no_rope_layers": [1, 0]},
    "gemma3n_text": {
        "vocab_size_per_layer_input": 61,
        "hidden_size_per_layer_input": 16,
        "num_kv_shared_layers": 0,
        "layer_types": ["full_attention", "full_attention"],
        "activation_sparsity_pattern": [0.5, 0.0],
        "altup_num_inputs": 2,
        "laurel_rank": 8,
    },
    "mixtral": {"num_local_experts": 32, "num_experts_per_tok": 2},  # experts without a token
    "falcon_h1": {
        "mamba_d_ssm": 64,
        "mamba_n_heads": 4,
        "mamba_d_head": 16,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
        "mlp_multipliers": [0.7, 1.3],
    },
    "longt5": {**T5, "encoder_attention_type": "transient-global", "local_radius": 3, "global_block_size": 64},
}


def build(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **{**COMMON, **MODELS[family]})
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: PreTrainedModel = kind.from_config(config, dtype=torch.float32)
    model.set_experts_implementation("eager")  # grouped products know no float64
    return model.eval()


@pytest.mark.parametrize("family", MODELS)
def test_gradients_are_those_of_transformers(family: str) -> None:
    ids = torch.arange(1, 10)[None] * 5
    models = [build(family), build(family).double()]
    for model in models:
        if model.config.is_encoder_decoder:
            inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :5]}
        else:
            inputs = {"input_ids": ids, "use_cache": False}
        with training_kernels(model, None):
            model(**inputs).logits.square().sum().backward()
    for (name, mine), theirs in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None), name
        if mine.grad is not None:
            scale = theirs.grad.norm() + 1e-6 * theirs.norm()
            assert (mine.grad.double() - theirs.grad).norm() <= 2e-3 * scale, name
