"""Operations by hand, and a best product that is measured without touching anything."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from spintune.engine.peak import Arithmetic, arithmetic, best_product


def llama() -> LlamaForCausalLM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=50,
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                tie_word_embeddings=True,
            )
        )


def test_operations_are_six_a_weight_and_four_a_frozen_one() -> None:
    # q and o 16 x 16, k and v 16 x 8, three of 16 x 24, in each of three layers; head 16 x 50
    layer = 2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24
    model = llama()
    assert arithmetic(model) == Arithmetic(token=6 * 3 * layer, scored=6 * 16 * 50)
    for weight in model.model.layers[0].parameters():
        weight.requires_grad_(False)
    assert arithmetic(model) == Arithmetic(token=6 * 2 * layer + 4 * layer, scored=6 * 16 * 50)


def test_gpt2s_transposed_layers_count_and_are_timed() -> None:
    model = GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=32))
    # attention in and out 16 x 48 and 16 x 16, the block's 16 x 64 twice; the head is tied to the embeddings
    assert arithmetic(model) == Arithmetic(token=6 * 2 * (16 * 48 + 16 * 16 + 2 * 16 * 64), scored=6 * 16 * 50)
    rate = best_product(model, None)
    assert rate is not None
    assert 1e6 < rate < 1e16


EXPERTS = {
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "qwen3_moe": {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "decoder_sparse_step": 1},
    "gpt_oss": {"num_local_experts": 8, "num_experts_per_tok": 2},
}


@pytest.mark.parametrize("family", EXPERTS)
def test_of_experts_those_count_that_a_token_uses(family: str) -> None:
    config = AutoConfig.for_model(
        family,
        vocab_size=50,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        **EXPERTS[family],
    )
    model = AutoModelForCausalLM.from_config(config)
    # q and o 16 x 16, k and v 16 x 8; of eight experts with three of 16 x 24 each, two
    assert arithmetic(model) == Arithmetic(token=6 * (2 * 16 * 16 + 2 * 16 * 8 + 2 * 3 * 16 * 24), scored=6 * 16 * 50)


def test_a_model_without_linear_layers_has_no_best_product() -> None:
    model = llama()
    model.model.layers = torch.nn.ModuleList()
    assert best_product(model, None) is None
    assert arithmetic(model) == Arithmetic(token=0, scored=6 * 16 * 50)


def test_encoder_decoders_have_no_such_count(tiny_t5: Path) -> None:
    assert arithmetic(AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)) is None


def test_measuring_leaves_weights_gradients_and_random_numbers_alone() -> None:
    model = llama()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.random.get_rng_state()
    for autocast in (None, torch.bfloat16):
        rate = best_product(model, autocast)
        assert rate is not None
        assert 1e6 < rate < 1e16
    assert torch.equal(state, torch.random.get_rng_state())
    for name, weight in model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])
    assert not any("forward" in module.__dict__ for module in model.modules())
