"""Saving: what a model brought stays with it, and what would fail after training fails before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

import spintune
from spintune.errors import ModelError
from spintune.models import saving
from spintune.models.loading import LoadedModel, load_model


def loaded_with(settings: object, tiny_model: Path, tmp_path: Path) -> LoadedModel:
    folder = tmp_path / "given"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text(json.dumps(settings))
    return load_model(str(folder), cache=tmp_path)


def saved(loaded: LoadedModel, folder: Path, stop_ids: frozenset[int] = frozenset({1})) -> dict[str, object]:
    saving.save_folder(loaded.model, loaded.tokenizer, folder, loaded.source, stop_ids)
    AutoModelForCausalLM.from_pretrained(folder)
    return json.loads((folder / "generation_config.json").read_text())


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20, "eos_token_id": [1, 7]},
        {"temperature": 0.6, "top_p": 0.9, "do_sample": False},
        {"min_p": 0.1},
        {"typical_p": 0.9},
        {"eta_cutoff": 1e-3, "epsilon_cutoff": 1e-3},
        {"top_h": 0.4},
        {"length_penalty": 2.0, "early_stopping": True},
        {"pad_token_id": -1},
        {"output_scores": True},
        {"num_beams": 4, "num_return_sequences": 2, "repetition_penalty": 1.05},
        {"a_setting_of_another_tool": {"deep": [1]}},
    ],
)
def test_generation_settings_come_back_as_they_were(settings, tiny_model, tmp_path):
    loaded = loaded_with({"eos_token_id": 1, **settings}, tiny_model, tmp_path)
    loaded.rehearse_saving()
    assert saved(loaded, tmp_path / "saved") == {"eos_token_id": 1, **settings}


@pytest.mark.parametrize(
    ("settings", "left_out"),
    [
        ({"num_return_sequences": 3, "bos_token_id": 0}, "num_return_sequences"),
        ({"num_beams": 2, "num_return_sequences": 3}, "num_return_sequences"),
        ({"early_stopping": "sometimes", "temperature": 0.7}, "early_stopping"),
        ({"cache_implementation": "nonesuch"}, "cache_implementation"),
        ({"max_new_tokens": 0, "top_k": 5}, "max_new_tokens"),
    ],
)
def test_only_a_setting_that_transformers_refuses_is_left_out(settings, left_out, tiny_model, tmp_path):
    loaded = loaded_with({"eos_token_id": 1, **settings}, tiny_model, tmp_path)
    written = saved(loaded, tmp_path / "saved")
    assert written == {"eos_token_id": 1, **{key: value for key, value in settings.items() if key != left_out}}
    GenerationConfig.from_pretrained(tmp_path / "saved").validate()


@pytest.mark.parametrize(
    ("own", "ours", "written"),
    [
        (1, {1}, 1),
        ([7, 1], {1}, [7, 1]),
        (7, {1}, [7, 1]),
        (None, {1}, [1]),
        (-1, {1}, [1]),
        ([9, 7], {1, 2}, [9, 7, 1, 2]),
    ],
)
def test_the_ends_of_training_are_added_to_the_models_own(own, ours, written, tiny_model, tmp_path):
    loaded = loaded_with({"eos_token_id": own}, tiny_model, tmp_path)
    assert saved(loaded, tmp_path / "saved", frozenset(ours))["eos_token_id"] == written
    again = load_model(str(tmp_path / "saved"), cache=tmp_path)
    assert again.stop_ids == ({written} if isinstance(written, int) else set(written))


def test_a_model_without_a_generation_file_gets_one_with_the_ends_of_training(tiny_model, tmp_path):
    folder = tmp_path / "given"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").unlink()
    loaded = load_model(str(folder), cache=tmp_path)
    assert saved(loaded, tmp_path / "saved", frozenset({1, 5}))["eos_token_id"] == [1, 5]
    assert load_model(str(tmp_path / "saved"), cache=tmp_path).stop_ids == {1, 5}


def test_saving_leaves_the_model_in_memory_as_it_was(tiny_model, tmp_path):
    loaded = loaded_with({"do_sample": True, "temperature": 0.6}, tiny_model, tmp_path)
    before = loaded.model.generation_config.to_dict()
    saved(loaded, tmp_path / "saved")
    assert loaded.model.generation_config.to_dict() == before


def test_a_damaged_generation_file_is_one_line(tiny_model, tmp_path):
    folder = tmp_path / "given"
    shutil.copytree(tiny_model, folder)
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"generation_config\.json"):
        load_model(str(folder), cache=tmp_path)


def test_weights_that_cannot_be_named_are_found_before_training(tiny_model, tmp_path):
    loaded = load_model(str(tiny_model), cache=tmp_path)
    layers = loaded.model.model.layers
    layers[1].mlp.up_proj.weight = layers[0].mlp.up_proj.weight  # tied, and nothing says so
    with pytest.raises(ModelError, match="could not be saved after training") as caught:
        loaded.rehearse_saving()
    assert "\n" not in str(caught.value)


def test_a_config_that_cannot_be_written_is_found_before_training(tiny_model, tmp_path):
    loaded = load_model(str(tiny_model), cache=tmp_path)
    loaded.model.config.custom = object()
    with pytest.raises(ModelError, match="could not be saved after training"):
        loaded.rehearse_saving()


def test_the_rehearsal_writes_no_weights_and_copies_none(tiny_model, tmp_path, monkeypatch):
    loaded = load_model(str(tiny_model), cache=tmp_path)
    sizes: list[int] = []
    rest = saving._save_rest

    def watched(*arguments):
        sizes.extend(path.stat().st_size for path in arguments[2].glob("*.safetensors"))
        rest(*arguments)

    monkeypatch.setattr(saving, "_save_rest", watched)
    before = {name: tensor.clone() for name, tensor in loaded.model.state_dict().items()}
    loaded.rehearse_saving()
    assert sum(sizes) == 0
    assert all(torch.equal(before[name], tensor) for name, tensor in loaded.model.state_dict().items())


def test_a_save_that_fails_leaves_a_checkpoint_from_which_the_same_command_ends_alike(
    tiny_model, alpaca_file, tmp_path, monkeypatch
):
    def run(name: str) -> Path:
        data = {"train": str(alpaca_file), "max_length": 96}
        sft = {"max_steps": 3, "tokens_per_step": 256, "checkpoint_minutes": 0.0, "learning_rate": 1e-3, "samples": 0}
        spintune.run({"out": str(tmp_path / name), "model": str(tiny_model), "data": data, "eval": [], "sft": sft})
        return tmp_path / name / "sft" / "model" / "model.safetensors"

    save = PreTrainedModel.save_pretrained

    def failing(self, folder, **options):
        if "state_dict" not in options:  # the rehearsal went well
            raise RuntimeError("something new\nand more")
        return save(self, folder, **options)

    with monkeypatch.context() as patch:
        patch.setattr(PreTrainedModel, "save_pretrained", failing)
        with pytest.raises(ModelError, match="the last checkpoint is kept") as caught:
            run("broken")
    assert "\n" not in str(caught.value)
    assert [folder.name for folder in (tmp_path / "broken/sft/checkpoints").glob("*/step-*")] == ["step-00000002"]
    assert run("broken").read_bytes() == run("whole").read_bytes()
    steps = [json.loads(line) for line in (tmp_path / "broken/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in steps if row["stage"] == "sft"] == [1, 2, 3]


def test_a_saved_folder_names_no_code(tiny_model: Path, cache: Path, tmp_path: Path) -> None:
    """The base model's files may: it was loaded without that code, and its folder does not have it."""
    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((base / name).read_text())
        (base / name).write_text(json.dumps({**settings, "auto_map": {"AutoTokenizer": ["x.X", None]}}))
    loaded = load_model(str(base), cache=cache)
    saving.save_folder(loaded.model, loaded.tokenizer, tmp_path / "saved", loaded.source)
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads((tmp_path / "saved" / name).read_text())
