"""Folders that cannot be trained are refused by their small files, in one line that says what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from spintune.errors import ModelError
from spintune.models import files
from spintune.models.loading import check_model, load_model, load_tokenizer


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "given")
    return tmp_path / "given"


def with_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))


def refusal(folder: Path, check: Callable[..., object] = load_model) -> str:
    with pytest.raises(ModelError) as caught:
        check(str(folder), cache=folder.parent)
    message = str(caught.value)
    assert "\n" not in message
    assert str(folder) in message
    return message


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "bitsandbytes, 4 bits"),
        ({"quantization_config": {"load_in_8bit": True}}, "8 bits"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq, 4 bits"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq"),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, "compressed-tensors"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "4 bits"),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, "fp8"),
    ],
)
def test_quantized_weights_are_refused_before_they_are_read(changes, told, folder):
    with_config(folder, **changes)
    (folder / "model.safetensors").unlink()
    for check in (check_model, load_model):
        assert told in refusal(folder, check)


@pytest.mark.parametrize("file", ["quantize_config.json", "quant_config.json", "hf_quant_config.json"])
def test_a_quantizer_that_leaves_its_mark_in_a_file_of_its_own_is_known(file, folder):
    (folder / file).write_text(json.dumps({"bits": 4}))
    assert file in refusal(folder)


def test_the_model_that_was_quantized_is_named_where_the_folder_knows_it(folder):
    with_config(folder, quantization_config={"quant_method": "gptq", "bits": 4}, _name_or_path="owner/Base-7B")
    assert refusal(folder).endswith("owner/Base-7B")
    (folder / "README.md").write_text("---\nlicense: mit\nbase_model:\n  - owner/Other.7B\n---\n# Card\n")
    assert refusal(folder).endswith("owner/Other.7B")
    (folder / "README.md").write_text('---\nbase_model: "owner/Third"\n---\n')
    assert refusal(folder).endswith("owner/Third")


def test_merged_weights_beside_an_adapter_are_refused_with_what_to_do(folder):
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base", "r": 8}))
    told = refusal(folder)
    assert "move the adapter_* files away" in told
    assert "owner/base" in told


@pytest.mark.parametrize("with_a_config", [True, False])
def test_an_adapter_alone_names_its_base(with_a_config, folder):
    (folder / "model.safetensors").unlink()
    if not with_a_config:
        (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "owner/base"}))
    (folder / "adapter_model.safetensors").write_bytes(b"")
    for check in (check_model, load_model):
        told = refusal(folder, check)
        assert "is an adapter of owner/base" in told


def test_code_that_comes_with_a_model_is_not_run(folder):
    (folder / "modeling_own.py").write_text("raise SystemExit('it ran')\n")
    with_config(folder, model_type="own", auto_map={"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "x.M"})
    for check in (check_model, load_model):
        refusal(folder, check)
    assert "Python code of its own" in refusal(folder)


def test_code_beside_an_architecture_that_is_known_is_not_run_and_not_saved(folder):
    with_config(folder, auto_map={"AutoConfig": "modeling_own.C", "AutoModelForCausalLM": "modeling_own.M"})
    loaded = load_model(str(folder), cache=folder.parent)
    assert type(loaded.model).__module__.startswith("transformers.models.llama")
    assert not hasattr(loaded.model.config, "auto_map")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "large"},
        {"num_attention_heads": 0},
        {"num_attention_heads": 5},
        {"rope_scaling": {"rope_type": "nonesuch"}},
        {"rope_parameters": {"rope_type": "yarn"}},
        {"rope_scaling": 3},
        {"hidden_act": "nonesuch"},
        {"vocab_size": 90},
        {"vocab_size": None},
        {"num_hidden_layers": 3},
        {"layer_types": ["full_attention"]},
        {"model_type": "bert"},
        {"model_type": "clip"},
        {"model_type": None},
        {"pad_token_id": 10**9},
        {"intermediate_size": -1},
        {"tie_word_embeddings": False},
    ],
    ids=str,
)
def test_a_config_that_builds_no_model_is_one_line(changes, folder):
    with_config(folder, **changes)
    refusal(folder)


@pytest.mark.parametrize("content", ["", "[]", "null", '"text"', "\x00\xff", '{"a": NaN,'])
def test_a_config_that_is_no_object_is_one_line(content, folder):
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    refusal(folder)


def with_another_shape(weights: dict) -> None:
    weights["model.norm.weight"] = weights["model.norm.weight"][:5].clone()


def with_the_names_of_a_wrapper(weights: dict) -> None:
    for name in list(weights):
        weights["_orig_mod." + name] = weights.pop(name)


def with_no_tensors(weights: dict) -> None:
    weights.clear()


@pytest.mark.parametrize("change", [with_another_shape, with_the_names_of_a_wrapper, with_no_tensors])
def test_weights_that_do_not_fit_are_one_line(change, folder):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    refusal(folder)


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder):
    with_config(folder, vocab_size=90)
    told = refusal(folder)
    assert "model.embed_tokens.weight" in told
    assert "(90, 32)" in told


@pytest.mark.parametrize("keep", [0, 4, 60, -10])
def test_a_download_that_stopped_is_one_line(keep, folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    refusal(folder)


@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "model.gguf"])
def test_what_git_lfs_did_not_fetch_says_how_to_fetch_it(file, folder):
    """A pointer as git-lfs writes it, for a vocabulary that 130 bytes could not hold."""
    with_config(folder, vocab_size=151_936, hidden_size=896)
    digest = "fdf756fa7fcbe7404d5c60e26bff1a0c8b8aa1f72ced49e7dd0210fe288fb7fe"
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{digest}\nsize 988097824\n"
    (folder / file).write_text(text)
    named = folder / file if file.endswith(".gguf") else folder
    for check in (check_model, load_model, load_tokenizer):
        told = refusal(named, check)
        assert told.endswith(f"{file} is a pointer of git-lfs, not the file itself; run git lfs pull in its folder")


def test_weights_too_small_for_their_config_are_incomplete_or_of_another_model(folder):
    with_config(folder, vocab_size=151_936, hidden_size=896)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(folder).endswith("its weights are incomplete, or config.json belongs to another model")


def test_a_shard_that_is_absent_is_one_line(folder):
    index = {"metadata": {}, "weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refusal(folder)


def test_tensors_without_a_use_are_told_once(folder, caplog):
    weights = load_file(folder / "model.safetensors")
    weights["model.mtp.weight"] = weights["model.norm.weight"].clone()
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    load_model(str(folder), cache=folder.parent)
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("spintune")]
    assert "model.mtp.weight" in told


def test_a_hub_model_is_asked_about_once_and_offline_from_what_was_kept(tmp_path, monkeypatch):
    requests: list[str] = []

    def offline(repository: str, **_: object) -> None:
        requests.append(repository)
        raise OSError("no network")

    monkeypatch.setattr(files, "model_info", offline)
    files._listing.cache_clear()
    assert [files.find_file("owner/absent", {}, name) for name in ("a.json", "b.json")] == [None, None]
    assert requests == ["owner/absent"]
    files._listing.cache_clear()
