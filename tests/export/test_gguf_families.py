"""A model of each family gives the same logits in llama.cpp as in transformers, whatever was done to its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp_models import logits_of, write_random_model
from tiny_folders import write_llama
from transformers import AutoModelForCausalLM

from spintune.errors import ModelError
from spintune.export.gguf.families import FAMILIES
from spintune.export.gguf.writing import GgufMetadata, write_gguf
from spintune.progress import Silent

ABOUT = GgufMetadata("tiny", "a random model")
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
ALL_KEYS = {"num_key_value_heads": 4}
EXPERTS = {"num_experts_per_tok": 2}
HYBRID = ["sliding_attention", "sliding_attention", "sliding_attention", "full_attention"]
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("llama", {}),
    ("llama", {"attention_bias": True, "tie_word_embeddings": True}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    ("llama", {"head_dim": 32}),
    ("mistral", {"sliding_window": None}),
    ("mixtral", {"num_local_experts": 4, **EXPERTS}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    ("qwen3_moe", {"num_experts": 4, "moe_intermediate_size": 32, "head_dim": 16, "norm_topk_prob": True, **EXPERTS}),
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
    ("phi3", {}),
    # llama.cpp takes the factors by its context, at least 256 here, transformers by the length, which is 40
    (
        "phi3",
        {"max_position_embeddings": 1024, "rope_parameters": LONGROPE | {"original_max_position_embeddings": 512}},
    ),
    ("phi3", {"max_position_embeddings": 1024, "rope_parameters": LONGROPE | {"original_max_position_embeddings": 32}}),
    ("phi", {"partial_rotary_factor": 0.5, **ALL_KEYS}),
    ("gpt2", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128, "n_inner": 96, **ALL_KEYS}),
    ("gpt_neox", {"rotary_pct": 0.5, **ALL_KEYS}),
    ("gpt_neox", {"use_parallel_residual": False, **ALL_KEYS}),
    ("starcoder2", {"sliding_window": None}),
    ("olmo2", {}),
    ("smollm3", {"num_hidden_layers": 4}),
    ("granite", {"logits_scaling": 4.0, "embedding_multiplier": 2.0, "attention_multiplier": 0.3}),
    ("cohere", {"logit_scale": 0.25}),
    ("cohere2", {"num_hidden_layers": 4, "layer_types": HYBRID, **WINDOW}),
    ("stablelm", {"partial_rotary_factor": 0.5}),
]


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a tiny model, of 400 tokens."""
    return write_llama(tmp_path_factory.mktemp("tokenizer") / "tiny")


def model_folder(folder: Path, tokenizer_folder: Path, family: str, changes: dict[str, Any]) -> Path:
    common = {
        "vocab_size": 400,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    write_random_model(folder, family, **{**common, **changes})
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    return folder


@pytest.mark.parametrize(
    ("family", "changes"), VARIANTS, ids=[f"{family}-{i}" for i, (family, _) in enumerate(VARIANTS)]
)
def test_a_family_gives_the_same_logits_in_llama_cpp(
    tmp_path: Path, tokenizer_folder: Path, family: str, changes: dict[str, Any]
) -> None:
    pytest.importorskip("llama_cpp")
    folder = model_folder(tmp_path / "model", tokenizer_folder, family, changes)
    write_gguf(folder, tmp_path / "model.gguf", "f32", ABOUT, Silent())
    ids = [int(id) for id in np.random.default_rng(5).integers(2, 400, 40)]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    found = torch.from_numpy(logits_of(tmp_path / "model.gguf", ids)).log_softmax(-1).numpy()
    assert np.ptp(expected, axis=1).min() > 0.2  # else anything would be close
    assert np.abs(found - expected).max() < 2e-3 * max(1.0, np.ptp(expected))


def test_every_family_is_compared() -> None:
    assert {family for family, _ in VARIANTS} == set(FAMILIES)


def test_a_family_that_was_not_compared_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = model_folder(tmp_path / "model", tokenizer_folder, "bloom", {"n_layer": 2, "n_head": 4})
    with pytest.raises(ModelError, match="family bloom cannot be written to GGUF; cohere,"):
        write_gguf(folder, tmp_path / "model.gguf", "f32", ABOUT, Silent())
    assert not (tmp_path / "model.gguf").exists()
