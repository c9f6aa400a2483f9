"""Operations by hand, and a best product that is measured without touching anything."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForSeq2SeqLM, LlamaConfig, LlamaForCausalLM

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


def test_encoder_decoders_have_no_such_count(tiny_t5: Path) -> None:
    assert arithmetic(AutoModelForSeq2SeqLM.from_pretrained(tiny_t5)) is None


def test_measuring_leaves_weights_gradients_and_random_numbers_alone() -> None:
    model = llama()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    state = torch.random.get_rng_state()
    for autocast in (None, torch.bfloat16):
        assert 1e6 < best_product(model, autocast) < 1e16
    assert torch.equal(state, torch.random.get_rng_state())
    for name, weight in model.named_parameters():
        assert weight.grad is None
        assert torch.equal(weight, before[name])
    assert not any("forward" in module.__dict__ for module in model.modules())
