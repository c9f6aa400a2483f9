"""A model of each family gives the same logits in llama.cpp as in transformers, whatever was done to its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families.variants import DECODERS
from gguf import MODEL_ARCH_NAMES, GGUFReader
from gguf_table import NEWER, PAGE, REASONS, page
from gguf_variants import EXPERTS, LATENT_SIZES, LLAMA3, NO_ROTATION, SCALINGS, VARIANTS, YARN, rope, scaled
from llama_cpp_models import logits_of, write_random_model
from numpy.typing import NDArray
from tiny_folders import write_llama
from transformers import AutoConfig, AutoModelForCausalLM

from spintune.errors import ModelError
from spintune.export.gguf.families import FAMILIES
from spintune.export.gguf.families.family import GELU
from spintune.export.gguf.writing import GgufMetadata, write_gguf
from spintune.progress import Silent

ABOUT = GgufMetadata("tiny", "a random model")
FILES = ("apart", "together")
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
COMMON = {
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


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a tiny model, of 400 tokens."""
    return write_llama(tmp_path_factory.mktemp("tokenizer") / "tiny")


def model_folder(folder: Path, tokenizer_folder: Path, family: str, changes: dict[str, Any]) -> Path:
    write_random_model(folder, family, **{**COMMON, **changes})
    for name in TOKENIZER:
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    return folder


def log_probabilities(folder: Path, file: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Of 40 tokens after each of 40 others: as transformers computes them, and as llama.cpp does."""
    ids = [int(id) for id in np.random.default_rng(5).integers(2, 400, 40)]
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        expected = model(torch.tensor([ids])).logits[0].log_softmax(-1).numpy()
    assert np.ptp(expected, axis=1).min() > 0.2  # else anything would be close
    return expected, torch.from_numpy(logits_of(file, ids)).log_softmax(-1).numpy()


def tolerance(family: str) -> float:
    """Largest difference, as a share of how far apart log-probabilities are."""
    if family == "gemma3n_text":  # 20 layers at least; its cutoffs divide by n - 1 in llama.cpp, by n in transformers
        return 2e-2
    if FAMILIES[family].activation == GELU:  # llama.cpp looks it up in a table of float16
        return 2e-3
    return 5e-4


@pytest.mark.parametrize(
    ("family", "changes"), VARIANTS, ids=[f"{family}-{i}" for i, (family, _) in enumerate(VARIANTS)]
)
def test_a_family_gives_the_same_logits_in_llama_cpp(
    tmp_path: Path, tokenizer_folder: Path, family: str, changes: dict[str, Any]
) -> None:
    pytest.importorskip("llama_cpp")
    folder = model_folder(tmp_path / "model", tokenizer_folder, family, changes)
    write_gguf(folder, tmp_path / "model.gguf", "f32", ABOUT, Silent())
    expected, found = log_probabilities(folder, tmp_path / "model.gguf")
    assert np.abs(found - expected).max() < tolerance(family) * max(1.0, np.ptp(expected))


@pytest.mark.slow
@pytest.mark.parametrize("kind", SCALINGS)
@pytest.mark.parametrize("family", sorted(set(FAMILIES) - NO_ROTATION))
def test_positions_are_scaled_as_in_transformers(
    tmp_path: Path, tokenizer_folder: Path, family: str, kind: str
) -> None:
    pytest.importorskip("llama_cpp")
    if kind not in FAMILIES[family].scalings:
        pytest.skip(f"refused for {family}")
    first = next(changes for name, changes in VARIANTS if name == family)
    rotated = AutoConfig.for_model(family, **{**COMMON, **first}).rope_parameters
    folder = model_folder(tmp_path / "model", tokenizer_folder, family, scaled(family, kind, rotated))
    write_gguf(folder, tmp_path / "model.gguf", "f32", ABOUT, Silent())
    expected, found = log_probabilities(folder, tmp_path / "model.gguf")
    assert np.abs(found - expected).max() < tolerance(family) * max(1.0, np.ptp(expected))


@pytest.mark.parametrize("family", ["gpt_oss", "jamba", "lfm2", "mamba2", "qwen3_5_text"])
def test_what_must_stay_float32_does(tmp_path: Path, tokenizer_folder: Path, family: str) -> None:
    """llama.cpp computes convolutions, states and biases of experts in float32 alone."""
    pytest.importorskip("llama_cpp")
    changes = next(changes for name, changes in VARIANTS if name == family)
    folder = model_folder(tmp_path / "model", tokenizer_folder, family, changes)
    write_gguf(folder, tmp_path / "model.gguf", "f16", ABOUT, Silent())
    expected, found = log_probabilities(folder, tmp_path / "model.gguf")
    assert (np.exp(expected) * (expected - found)).sum(1).mean() < 1e-3


@pytest.mark.parametrize("family", ["ernie4_5_moe", "granitemoe", "mixtral", "nemotron_h", "qwen3_moe"])
def test_experts_in_one_tensor_are_written_as_experts_apart(
    tmp_path: Path, tokenizer_folder: Path, family: str
) -> None:
    changes = [changes for name, changes in VARIANTS if name == family][-1]
    for name in FILES:
        folder = model_folder(tmp_path / name, tokenizer_folder, family, changes)
        if name == "together":
            model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            (folder / "model.safetensors").unlink()
            model.save_pretrained(folder, save_original_format=False)
        write_gguf(folder, tmp_path / f"{name}.gguf", "f32", ABOUT, Silent())
    apart, together = ({one.name: one.data for one in GGUFReader(tmp_path / f"{name}.gguf").tensors} for name in FILES)
    assert apart.keys() == together.keys()
    assert all((apart[name] == together[name]).all() for name in apart)


def test_every_family_is_compared() -> None:
    assert {family for family, _ in VARIANTS} == set(FAMILIES)


def test_the_page_of_the_docs_is_the_table() -> None:
    assert PAGE.read_text() == page()


def test_every_decoder_is_written_or_has_a_reason() -> None:
    reasons = [name for names in REASONS.values() for name in names]
    assert len(reasons) == len(set(reasons))
    assert not set(reasons) & set(FAMILIES)
    assert {family for family, _ in DECODERS.values()} - {*reasons, *FAMILIES} == set()
    assert {*reasons} <= {family for family, _ in DECODERS.values()}


def test_the_gguf_package_does_not_know_what_it_is_said_not_to() -> None:
    assert not set(NEWER.values()) & set(MODEL_ARCH_NAMES.values())


def test_a_family_that_was_not_compared_is_refused(tmp_path: Path, tokenizer_folder: Path) -> None:
    folder = model_folder(tmp_path / "model", tokenizer_folder, "xglm", {})
    with pytest.raises(ModelError, match=r"family xglm cannot be written to GGUF, [0-9]+ others can .*gguf-fam"):
        write_gguf(folder, tmp_path / "model.gguf", "f32", ABOUT, Silent())
    assert not (tmp_path / "model.gguf").exists()


OTHER_BASES = {
    "full_attention": {"rope_type": "default", "rope_theta": 1e5},
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
}
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "gelu"}, "llama models with hidden_act gelu cannot be written to GGUF, where it is silu"),
    (
        "qwen2",
        {**rope(**LLAMA3)},
        "type llama3 cannot be written to GGUF for qwen2; default, dynamic, linear",
    ),
    ("qwen2", {**rope(**YARN, truncate=False)}, "yarn with truncate False cannot be written to GGUF, where it is True"),
    ("arcee", {"mlp_bias": True}, "arcee models with mlp_bias True cannot be"),
    ("cohere", {"use_qk_norm": True}, "use_qk_norm True .* 64 layers"),
    ("glm_moe_dsa", {**LATENT_SIZES, "index_head_dim": 16}, "index_head_dim 16"),
    ("olmo3", {"rope_parameters": OTHER_BASES}, "rope_theta of windows"),
    ("exaone4", {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 8}, "models of 64 layers"),
    ("falcon", {"alibi": True, "new_decoder_architecture": False}, "alibi True"),
    ("qwen3_moe", {"num_experts": 4, "decoder_sparse_step": 2}, "decoder_sparse_step 2"),
    ("dots1", {"n_routed_experts": 4, "n_shared_experts": 1, **EXPERTS}, "num_key_value_heads 2"),
    ("deepseek_v2", {"topk_method": "group_limited_greedy", "n_group": 2, "topk_group": 1}, "topk_method"),
    (
        "deepseek_v3",
        {**LATENT_SIZES, **rope(**YARN, mscale=1.0, mscale_all_dim=0.5)},
        "only with mscale and mscale_all_dim equal",
    ),
    ("llama4_text", {"attention_chunk_size": 16}, "attention_chunk_size 16"),
    ("glm", {"head_dim": 32}, "head_dim 32 .* where it is 16"),
    ("mamba", {"intermediate_size": 96}, "intermediate_size 96"),
    ("gemma3n_text", {"num_hidden_layers": 4, "num_kv_shared_layers": 0}, "laurel_rank|activation_sparsity_pattern"),
]


@pytest.mark.parametrize(
    ("family", "changes", "message"), REFUSED, ids=[f"{one[0]}-{i}" for i, one in enumerate(REFUSED)]
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, tokenizer_folder: Path, family: str, changes: dict[str, Any], message: str
) -> None:
    folder = tmp_path / "model"
    config = AutoConfig.for_model(family, **{**COMMON, **changes})
    config.save_pretrained(folder)
    for name in TOKENIZER:
        (folder / name).write_bytes((tokenizer_folder / name).read_bytes())
    with pytest.raises(ModelError, match=message):
        write_gguf(folder, tmp_path / "model.gguf", "f32", ABOUT, Silent())
