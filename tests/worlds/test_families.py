"""Whole runs of models whose layers are not Llama's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

Spintune = Callable[..., Any]


@pytest.fixture
def tiny_gpt2(tiny_model: Path, tmp_path: Path) -> Path:
    """A random GPT-2 with the tokenizer of the tiny Llama."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=128, bos_token_id=0, eos_token_id=1
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    model.save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


def test_gpt2_trains_plays_and_says_what_share_of_the_peak_it_reached(
    spintune: Spintune, values: Callable[..., dict[str, Any]], tiny_gpt2: Path, tmp_path: Path
) -> None:
    recipe = values(
        tmp_path / "out", model=str(tiny_gpt2), spin={"iterations": 1, "max_new_tokens": 4}, sft={"samples": 0}
    )
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    result = spintune("run", tmp_path / "recipe.yaml")
    assert result.code == 0, result.err
    assert result.err.count("scores: packed (") == result.err.count("; generation: batch (") == 1
    facts = json.loads((tmp_path / "out" / "results.json").read_text())
    assert 0 < facts["sft"]["hardware"]["share_of_peak"] < 1
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "spin" / "iterate-1" / "model")
    before = AutoModelForCausalLM.from_pretrained(tiny_gpt2)
    assert not torch.equal(trained.transformer.h[0].mlp.c_fc.weight, before.transformer.h[0].mlp.c_fc.weight)
