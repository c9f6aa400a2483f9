"""Model folders and files that are broken or made to harm: one line that names the model, and soon."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file

from spintune.errors import ModelError
from spintune.models.loading import check_model, load_model, load_tokenizer


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """Ends a test that would go on for ever."""

    def end(*_: object) -> None:
        raise AssertionError("it takes too long")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(15)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "given")
    return tmp_path / "given"


def refusal(path: Path, check: Callable[..., object] = load_model) -> str:
    with pytest.raises(ModelError) as caught:
        check(str(path), cache=path.parent)
    message = str(caught.value)
    assert "\n" not in message
    assert path.name in message
    return message


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": -1},
        {"hidden_size": "x"},
        {"hidden_size": 0},
        {"hidden_size": 1.5},
        {"hidden_size": None},
        {"num_attention_heads": 0},
        {"num_attention_heads": -4},
        {"num_attention_heads": []},
        {"num_hidden_layers": -1},
        {"num_hidden_layers": "x"},
        {"num_hidden_layers": 10_000_000},
        {"vocab_size": 10**12},
        {"vocab_size": -1},
        {"intermediate_size": 10**12},
        {"model_type": 3},
        {"model_type": []},
        {"model_type": "unheard"},
        {"architectures": "x"},
        {"rope_parameters": []},
        {"rope_scaling": 3},
        {"layer_types": 5},
        {"layer_types": ["x"] * 3},
        {"torch_dtype": "nothing", "dtype": "nothing"},
        {"eos_token_id": {"a": 1}},
        {"hidden_act": "x"},
        {"head_dim": 10**9},
        {"max_position_embeddings": 10**15},
        {"max_position_embeddings": "x"},
        {"text_config": []},
    ],
    ids=str,
)
def test_a_config_that_makes_no_sense_is_one_line(changes: dict[str, object], folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **changes}))
    try:
        load_model(str(folder), cache=folder.parent)
    except ModelError as error:
        assert "\n" not in str(error)
        assert str(folder) in str(error)


@pytest.mark.parametrize("content", ["[]", "3", "null", "{", "", "\udc80", '{"a": ' * 20_000, "[" * 100_000])
@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json", "tokenizer.json", "generation_config.json"])
def test_a_file_of_another_shape_is_one_line(name: str, content: str, folder: Path) -> None:
    (folder / name).write_bytes(content.encode(errors="surrogateescape"))
    try:
        load_model(str(folder), cache=folder.parent)
    except ModelError as error:
        assert "\n" not in str(error)


def test_ten_million_layers_are_refused_by_the_small_files(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 10_000_000}))
    assert "num_hidden_layers is 10,000,000" in refusal(folder, check_model)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch harmed",)


def test_a_pickle_is_one_line_and_never_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for content in (pickle.dumps(Harmful()), pickle.dumps({**tensors, "x": Harmful()}), b"junk", b""):
        (folder / "pytorch_model.bin").write_bytes(content)
        refusal(folder)
    torch.save({**tensors, "x": Harmful()}, folder / "pytorch_model.bin")
    refusal(folder)
    assert not (folder / "harmed").exists()


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x08" + b"\0" * 7 + b"{}", b"\0" * 7 + b"\x40{}"])
def test_weights_that_are_cut_are_one_line(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refusal(folder)


def test_a_tokenizer_that_panics_is_one_line(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(?:x+x+)+y" * 5 + "(?=("},
        "behavior": "Isolated",
        "invert": False,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    refusal(folder, load_tokenizer)


def gguf_file(path: Path) -> bytes:
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(8)
    writer.add_tensor("token_embd.weight", np.zeros((4, 8), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def test_a_cut_or_forged_gguf_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    whole = gguf_file(path)
    forged = bytearray(whole)
    forged[8:16] = (2**60).to_bytes(8, "little")  # tensors
    many = bytearray(whole)
    many[16:24] = (2**60).to_bytes(8, "little")  # keys
    for content in (whole, whole[:20], whole[:100], whole[: len(whole) // 2], bytes(forged), bytes(many), b"GGUF", b""):
        path.write_bytes(content)
        refusal(path)
