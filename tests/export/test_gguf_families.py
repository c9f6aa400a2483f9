"""A model of each family gives the same logits in llama.cpp as in transformers, whatever was done to its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_variants import VARIANTS
from llama_cpp_models import logits_of, write_random_model
from tiny_folders import write_llama
from transformers import AutoModelForCausalLM

from spintune.errors import ModelError
from spintune.export.gguf.families import FAMILIES
from spintune.export.gguf.writing import GgufMetadata, write_gguf
from spintune.progress import Silent

ABOUT = GgufMetadata("tiny", "a random model")


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
