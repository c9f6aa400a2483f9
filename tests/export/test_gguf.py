"""A model of a run as a GGUF file and as a folder for Ollama: what they say, and what they refuse."""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from go_templates import read_modelfile, render_go
from llama_cpp_models import opened
from model_files import write_model
from safetensors.torch import load_file, save_file
from tiny_folders import write_llama
from transformers import AutoTokenizer

from spintune.api import load
from spintune.errors import MissingExtraError, ModelError, RunError, StorageError
from spintune.export.card import CardFields
from spintune.export.gguf import checking
from spintune.export.gguf.checking import can_check, check_gguf, swap_divergence
from spintune.export.gguf.quantizing import PROGRAM
from spintune.export.ollama import build_modelfile, export_ollama, ollama_name
from spintune.export.packed import conversations_of, export_gguf
from spintune.export.source import export_source
from spintune.progress import Silent
from spintune.report.reading import read_run

FIELDS = CardFields("apache-2.0", ("en",), ("support",))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose probabilities are far from equal, so that a wrong tensor shows."""
    folder = write_llama(tmp_path_factory.mktemp("models") / "tiny", tie_word_embeddings=False, hidden_size=64)
    weights = load_file(folder / "model.safetensors")
    wide = {name: weight * 6 if weight.ndim == 2 else weight for name, weight in weights.items()}
    save_file(wide, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.fixture
def run(whole: Callable[..., Any], tiny: Path) -> Path:
    path: Path = whole().path
    write_model(path, "sft", {file.name: file.read_bytes() for file in tiny.iterdir()})
    return path


def export(run: Path, out: Path, dtype: str, check: bool = True) -> Any:
    return export_gguf(run, out, "sft", dtype=dtype, fields=FIELDS, check=check)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_the_numbers_are_the_models_in_every_type(run: Path, tiny: Path, tmp_path: Path, dtype: str) -> None:
    export(run, tmp_path / "model.gguf", dtype, check=False)
    stored = {one.name: one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    weights = load_file(tiny / "model.safetensors")
    names = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output.weight": "lm_head.weight",
        "output_norm.weight": "model.norm.weight",
        "blk.1.attn_v.weight": "model.layers.1.self_attn.v_proj.weight",
        "blk.0.ffn_down.weight": "model.layers.0.mlp.down_proj.weight",
    }
    kinds = {"f32": 0.0, "f16": 2**-11, "bf16": 2**-8, "q8_0": 0.01}
    for name, source in names.items():
        tensor, expected = stored[name], weights[source].numpy()
        assert tensor.tensor_type.name == ("F32" if expected.ndim == 1 else dtype.upper())
        found = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert np.abs(found - expected).max() <= kinds[dtype] * np.abs(expected).max()
    assert len(stored) == len(weights)


def test_the_file_says_what_it_is(run: Path, tmp_path: Path) -> None:
    made = export(run, tmp_path / "model.gguf", "f16", check=False)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    said = {key: field.contents() for key, field in fields.items()}
    assert made.model == "sft"
    assert said["general.architecture"] == "llama"
    assert said["general.name"] == "run sft"
    assert said["general.license"] == "apache-2.0"
    assert said["general.languages"] == ["en"]
    assert said["general.tags"] == ["spintune", "support"]
    assert said["llama.context_length"] == 512
    assert said["llama.attention.head_count_kv"] == 2
    assert said["tokenizer.ggml.model"] == "gpt2"
    assert said["tokenizer.ggml.pre"] == "gpt-2"
    assert said["tokenizer.ggml.eos_token_id"] == 1
    assert said["tokenizer.ggml.token_type"][:3] == [3, 3, 1]
    assert "<|im_start|>" in said["tokenizer.chat_template"]


def test_float16_that_would_overflow_is_refused_and_nothing_is_left(run: Path, tiny: Path, tmp_path: Path) -> None:
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    weights = load_file(tiny / "model.safetensors")
    weights["lm_head.weight"][3, 5] = 70000.0
    save_file(weights, tmp_path / "large.safetensors", {"format": "pt"})
    write_model(run, "sft", {**files, "model.safetensors": (tmp_path / "large.safetensors").read_bytes()})
    with pytest.raises(ModelError, match=r"output\.weight holds 7e\+04, beyond float16's 65504; take bf16 or q8_0"):
        export(run, tmp_path / "out/model.gguf", "f16", check=False)
    assert list((tmp_path / "out").iterdir()) == []
    from spintune.export.model import export_model

    with pytest.raises(ModelError, match=r"lm_head\.weight holds 7e\+04, beyond float16"):
        export_model(run, tmp_path / "out/folder", "sft", dtype="float16")
    assert list((tmp_path / "out").iterdir()) == []
    export(run, tmp_path / "out/model.gguf", "bf16", check=False)


def test_files_that_are_there_and_files_that_were_changed_are_refused(run: Path, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_text("mine")
    with pytest.raises(StorageError, match="already exists"):
        export(run, tmp_path / "model.gguf", "f16")
    assert (tmp_path / "model.gguf").read_text() == "mine"
    weights = run / "sft/model/model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(RunError, match="was changed after the run wrote it"):
        export(run, tmp_path / "other.gguf", "f16")
    assert not (tmp_path / "other.gguf").exists()


def test_k_quants_without_llama_cpp_are_refused_with_advice(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if can_check():
        pytest.skip("llama-cpp-python is installed")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingExtraError, match=rf"put its {PROGRAM} on the PATH, or pip install 'spintune\[gguf\]'"):
        export(run, tmp_path / "model.gguf", "q4_k_m")
    assert not (tmp_path / "model.gguf").exists()


def test_ollama_gets_a_modelfile_that_writes_the_trained_prompts(run: Path, tmp_path: Path) -> None:
    export_ollama(run, tmp_path / "out", "sft", dtype="q8_0", fields=FIELDS, check=False)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["Modelfile", "README.md", "model-q8_0.gguf"]
    instructions = read_modelfile((tmp_path / "out/Modelfile").read_text())
    said = dict(instructions)
    assert said["FROM"] == "./model-q8_0.gguf"
    assert said["LICENSE"] == "apache-2.0"
    assert ("PARAMETER", 'stop "<|im_end|>"') in instructions
    sampling = [text for name, text in instructions if name == "PARAMETER" and not text.startswith("stop")]
    assert sampling == ["temperature 0.7", "top_p 1", "top_k 0", "min_p 0", "repeat_penalty 1"]
    assert "SYSTEM" not in said
    tokenizer = AutoTokenizer.from_pretrained(run / "sft/model")
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert render_go(said["TEMPLATE"], messages) == expected
    assert "were rounded to q8_0" in (tmp_path / "out/README.md").read_text()


def test_the_card_of_an_ollama_folder_tells_how_it_is_used(run: Path, tmp_path: Path) -> None:
    export_ollama(run, tmp_path / "My model", "sft", dtype="f32", check=False)
    card = (tmp_path / "My model/README.md").read_text()
    assert "\n```sh\nollama create my-model -f Modelfile\nollama run my-model\n```\n" in card
    assert "library_name: gguf\n" in card
    assert not any(words in card for words in ("pipeline(", "```python", "rounded to", "byte for byte"))


@pytest.mark.parametrize(
    ("folder", "name"),
    [("Run 1/2-ollama", "2-ollama"), ("a b(c)é", "a-b-c-"), (".-x", "x"), ("é", "model"), ("n" * 90, "n" * 80)],
)
def test_ollama_takes_the_names_that_are_printed(folder: str, name: str) -> None:
    """Up to 80 letters, digits, _, . and -, of which the first is none of the last two."""
    assert ollama_name(Path(folder)) == name


def test_the_printed_command_names_the_written_file(run: Path, spintune: Callable[..., Any], tmp_path: Path) -> None:
    out = tmp_path / "it's mine"
    ended = spintune("export", run, out, "--to", "ollama", "--model", "sft", "--no-check")
    words = shlex.split(ended.out.splitlines()[-1])
    assert words == ["ollama", "create", "it-s-mine", "-f", str(out / "Modelfile")]
    assert (out / "Modelfile").is_file()


def test_sampling_is_that_of_the_models_configuration(run: Path, tiny: Path) -> None:
    """Ollama reads top_k and repeat_last_n as integers: no point and no exponent."""
    settings = {"temperature": 0.15, "top_p": 0.95, "top_k": 1_000_000, "min_p": 0.05, "repetition_penalty": 1.05}
    files = {file.name: file.read_bytes() for file in tiny.iterdir()}
    write_model(run, "sft", {**files, "generation_config.json": json.dumps(settings).encode()})
    found = build_modelfile(export_source(run, "sft"), "model.gguf", None).parameters
    assert [one for one in found if one[0] != "stop"] == [
        ("temperature", "0.15"),
        ("top_p", "0.95"),
        ("top_k", "1000000"),
        ("min_p", "0.05"),
        ("repeat_penalty", "1.05"),
        ("repeat_last_n", "-1"),
    ]


def test_the_system_message_of_the_data_is_the_modelfiles(whole: Callable[..., Any], tmp_path: Path) -> None:
    from spintune.export.ollama import usual_system
    from spintune.records import Example, Message

    facts = read_run(whole().path)
    assert usual_system(facts) is None
    shared = tuple(
        Example((Message("system", "Be kind."), Message("user", text), Message("assistant", "a"))) for text in "ab"
    )
    from dataclasses import replace

    assert usual_system(replace(facts, heldout=shared)) == "Be kind."
    assert usual_system(replace(facts, heldout=(*shared, *facts.heldout))) is None


def test_the_least_divergence_that_swaps_two_tokens() -> None:
    """By hand: probabilities 0.5 and 0.25 meet at 0.375, 0.5 ln 4/3 + 0.25 ln 2/3 nats away. By search among the
    distributions in which the second is as likely as the first, no other is nearer.
    """
    first = np.log(np.array([[0.5, 0.25, 0.25], [0.4, 0.2, 0.4], [0.9, 0.1, 0.0 + 1e-12]], np.float32))
    assert swap_divergence(first[:1], [0], np.array([1])) == pytest.approx(0.0424746, rel=1e-5)
    assert swap_divergence(first[:2], [0, 0], np.array([1, 2])) == pytest.approx(0.0424746, rel=1e-5)  # a tie is free
    assert swap_divergence(first[2:], [0], np.array([2])) == pytest.approx(0.9 * np.log(2), rel=1e-5)
    p = np.array([0.5, 0.3, 0.2])
    both = np.linspace(0.01, 0.49, 4801)
    nearest = min((p * np.log(p / np.array([q, q, 1 - 2 * q]))).sum() for q in both)
    assert swap_divergence(np.log(p)[None], [0], np.array([1])) == pytest.approx(nearest, abs=1e-7)


class SameTokens:
    """A stand-in for llama.cpp that cuts texts as a tokenizer does."""

    def __init__(self, folder: Path) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)

    def tokenize(self, text: bytes, add_bos: bool, special: bool) -> list[int]:
        return list(self._tokenizer(text.decode(), add_special_tokens=False)["input_ids"])

    def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("kind", "gap", "refused"),
    [("f32", 0.02, False), ("f32", 0.05, True), ("f16", 0.05, False), ("f16", 0.12, True), ("bf16", 0.12, False)],
)
def test_another_greedy_answer_is_refused_unless_its_token_is_nearly_as_likely(
    run: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch, kind: str, gap: float, refused: bool
) -> None:
    """Of 200 places the file swaps two tokens at one, whose logits are g apart: the mean divergence is g²/400, far
    below every bound, but the swap needs g²/8 there: 0.00005, 0.0003 and 0.0018 nats. bf16 may answer otherwise.
    """
    model = np.log(np.tile([0.9, 0.1 - 1e-6, 1e-6], (200, 1)))
    model[7] = np.log([1 / (1 + np.exp(-gap)) - 1e-6, 1 / (1 + np.exp(gap)), 1e-6])
    file = model.copy()
    file[7] = model[7][[1, 0, 2]]
    answered = checking._Answered("Hi.", (1,), (0,) * 200, model)
    monkeypatch.setattr(checking, "_answers", lambda *arguments: [answered])
    monkeypatch.setattr(checking, "_open", lambda *arguments: SameTokens(tiny))
    monkeypatch.setattr(checking, "_ends", lambda *arguments: True)
    monkeypatch.setattr(checking, "_logprobs", lambda *arguments: file)
    asked = conversations_of(read_run(run))
    if refused:
        with pytest.raises(ModelError, match=rf"a greedy answer differs from the model's, .*{kind} explains"):
            check_gguf(Path("model.gguf"), tiny, kind, asked, Silent())
    else:
        found = check_gguf(Path("model.gguf"), tiny, kind, asked, Silent())
        assert (found.same_text, found.tokens) == (0, 200)
        assert found.divergence == pytest.approx(gap**2 / 400, rel=0.01)


# With llama.cpp ------------------------------------------------------------------------------------------------------

needs_llama_cpp = pytest.mark.skipif(not can_check(), reason="llama_cpp is not installed (extra gguf)")


@needs_llama_cpp
@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16", "q8_0"])
def test_a_file_is_held_against_its_model(run: Path, tmp_path: Path, dtype: str) -> None:
    made = export(run, tmp_path / "model.gguf", dtype)
    assert made.check.prompts == 8
    assert made.check.tokens > 8
    assert made.check.divergence < {"f32": 1e-4, "f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2}[dtype]
    assert made.check.same_text >= 6 or dtype in ("bf16", "q8_0")  # a random model's likeliest tokens are close


@needs_llama_cpp
def test_greedy_answers_that_are_counted_as_equal_are_what_llama_cpp_writes(run: Path, tmp_path: Path) -> None:
    made = export(run, tmp_path / "model.gguf", "f32")
    ours = load(run / "sft/model", precision="float32")
    conversations = conversations_of(read_run(run))
    written = ours.generate(conversations, max_new_tokens=32)
    model, equal = opened(tmp_path / "model.gguf", 256), 0
    for messages, completion in zip(conversations, written, strict=True):
        turns = [{"role": one.role, "content": one.content} for one in messages]
        text = ours.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        model.reset()
        model.eval(model.tokenize(text.encode(), add_bos=False, special=True))
        found: list[int] = []
        while len(found) < len(completion.ids):
            found.append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(found[-1:])
        equal += tuple(found) == completion.ids
    model.close()
    assert equal == made.check.same_text >= 6


@needs_llama_cpp
def test_a_file_of_another_model_is_not_exported(run: Path, tiny: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model.gguf", "f32", check=False)
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    weights = load_file(other / "model.safetensors")
    heads = weights["model.layers.0.self_attn.q_proj.weight"]
    weights["model.layers.0.self_attn.q_proj.weight"] = heads.flip(0)
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    conversations = conversations_of(read_run(run))
    with pytest.raises(ModelError, match="nats a token away from the model's, more than f32 explains"):
        check_gguf(tmp_path / "model.gguf", other, "f32", conversations, Silent())


@needs_llama_cpp
def test_other_tokens_are_told(run: Path, tiny: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model.gguf", "f32", check=False)
    other = tmp_path / "other"
    shutil.copytree(tiny, other)
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][:2]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ModelError, match="into other tokens"):
        check_gguf(tmp_path / "model.gguf", other, "f32", conversations_of(read_run(run)), Silent())


@needs_llama_cpp
def test_k_quants_are_written_by_llama_cpp(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # the library, not the program
    export(run, tmp_path / "model.gguf", "q4_0", check=False)
    kinds = {one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert "Q4_0" in kinds
    assert sorted(path.name for path in tmp_path.glob("*.gguf*")) == ["model.gguf"]


def test_k_quants_are_written_by_llama_quantize_where_it_is_there(run: Path, tmp_path: Path) -> None:
    if shutil.which(PROGRAM) is None:
        pytest.skip(f"{PROGRAM} is not installed")
    export(run, tmp_path / "model.gguf", "q4_0", check=False)
    assert "Q4_0" in {one.tensor_type.name for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}


def test_what_llama_quantize_prints_need_not_be_text(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It cuts metadata by bytes, also within a character."""
    program = tmp_path / PROGRAM
    program.write_text('#!/bin/sh\nprintf "general.name str = caf\\303..."\ncp "$1" "$2"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    export(run, tmp_path / "model.gguf", "q4_0", check=False)
    assert (tmp_path / "model.gguf").is_file()


def test_the_digest_of_an_export_is_the_same_twice(run: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        export(run, tmp_path / name, "q8_0", check=False)
    digests = {hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() for name in ("a.gguf", "b.gguf")}
    assert len(digests) == 1
