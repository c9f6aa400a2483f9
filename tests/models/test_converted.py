"""A GGUF file is converted once, and what comes from the cache is what comes from the file."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from models.gguf_files import tiny_gguf

from spintune.errors import ModelError
from spintune.models import converted as conversion
from spintune.models import digests
from spintune.models.loading import (
    _read_model,
    _read_tokenizer,
    load_model,
    load_tokenizer,
    locate_model,
    model_identity,
)

TEXT = "the quick brown fox\n<|im_end|> 2024 überall  "


@pytest.fixture
def gguf(tiny_model: Path, tmp_path: Path) -> Path:
    (tmp_path / "files").mkdir()
    return tiny_gguf(tmp_path / "files" / "tiny.gguf", tiny_model)


@pytest.fixture(autouse=True)
def another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process could not keep is forgotten."""
    monkeypatch.setattr(conversion, "_unkept", set())


def plain(config: Any) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in ("architectures", "_name_or_path")}


def test_what_comes_from_the_cache_is_what_comes_from_the_file(gguf: Path, tmp_path: Path) -> None:
    arguments = {"gguf_file": gguf.name}
    tokenizer = _read_tokenizer(str(gguf.parent), arguments)
    direct = _read_model("m", str(gguf.parent), arguments, tokenizer, torch.float32)
    for _ in range(2):
        loaded = load_model(str(gguf), cache=tmp_path, device=torch.device("cpu"))
        mine, theirs = direct.model.state_dict(), loaded.model.state_dict()
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)
        assert plain(loaded.model.config) == plain(direct.model.config)
        assert (loaded.stop_ids, loaded.source) == (direct.stop_ids, direct.source)
        assert loaded.tokenizer(TEXT)["input_ids"] == tokenizer(TEXT)["input_ids"]
        assert type(loaded.tokenizer) is type(tokenizer)
        assert loaded.tokenizer.chat_template == tokenizer.chat_template


def test_a_file_is_read_once_and_told_of(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    load_tokenizer(str(gguf), cache=tmp_path)
    assert "converting it into the cache, once" in caplog.text
    caplog.clear()
    monkeypatch.setattr("transformers.modeling_gguf_pytorch_utils.load_gguf_checkpoint", None)
    monkeypatch.setattr("gguf.GGUFReader", None)
    monkeypatch.setattr(digests, "digest_file", None)
    load_model(str(gguf), cache=tmp_path)
    assert caplog.text == ""


def test_another_file_another_version_and_a_copy_are_told_apart(
    gguf: Path, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, _ = locate_model(str(gguf), tmp_path)
    identity = model_identity(str(gguf), tmp_path)
    moved = shutil.copy(gguf, tmp_path / "files" / "copy.gguf")
    assert locate_model(str(moved), tmp_path)[0] == first
    changed = gguf.stat()
    tiny_gguf(gguf, tiny_model, seed=1)
    os.utime(gguf, ns=(changed.st_atime_ns, changed.st_mtime_ns))  # not even the time tells
    second, _ = locate_model(str(gguf), tmp_path)
    monkeypatch.setattr(conversion, "version", lambda package: "99")
    third, _ = locate_model(str(gguf), tmp_path)
    assert len({first, second, third}) == 3
    assert model_identity(str(gguf), tmp_path) != identity == model_identity(str(moved), tmp_path)


def test_where_nothing_can_be_kept_the_file_is_read_as_it_is(
    gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "gguf").write_text("a file where the folder should be")
    loaded = load_model(str(gguf), cache=tmp_path)
    assert loaded.tokenizer("fox")["input_ids"]
    assert locate_model(str(gguf), tmp_path) == (str(gguf.parent), {"gguf_file": gguf.name})
    assert caplog.text.count("is read anew by every stage") == 1


def test_a_disk_without_room_for_float32_is_not_filled(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 1000))
    assert locate_model(str(gguf), tmp_path)[1] == {"gguf_file": gguf.name}
    assert "as float32 it takes" in caplog.text
    assert not list((tmp_path / "gguf").iterdir())


def test_a_tokenizer_that_would_come_back_changed_is_not_kept(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    write = load_model.__globals__["_write_gguf"]

    def spoiled(path: Path, folder: Path) -> Any:
        tokenizer = write(path, folder)
        settings = json.loads((folder / "tokenizer.json").read_text())
        settings["pre_tokenizer"] = None
        (folder / "tokenizer.json").write_text(json.dumps(settings))
        return tokenizer

    monkeypatch.setitem(load_model.__globals__, "_write_gguf", spoiled)
    assert locate_model(str(gguf), tmp_path)[1] == {"gguf_file": gguf.name}
    assert "would not come back as it is (tokenizer.json)" in caplog.text


def test_a_model_that_cannot_be_saved_is_read_as_it_is(
    gguf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: Any, **__: Any) -> None:
        raise ValueError("no such tensor")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", failing)
    assert load_model(str(gguf), cache=tmp_path).tokenizer("fox")["input_ids"]
    assert "is read anew by every stage" in caplog.text
    assert not list((tmp_path / "gguf").iterdir())


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_one_line_and_leaves_nothing(gguf: Path, tmp_path: Path, share: float) -> None:
    whole = gguf.read_bytes()
    gguf.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(ModelError, match=r"tiny\.gguf") as caught:
        load_model(str(gguf), cache=tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.glob("gguf/*"))


def test_beyond_their_bound_those_unused_for_a_day_are_removed(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [str(tiny_gguf(tmp_path / f"{seed}.gguf", tiny_model, seed)) for seed in range(3)]
    old, fresh = (Path(locate_model(file, tmp_path)[0]) for file in files[:2])
    os.utime(old, (0, 0))
    monkeypatch.setattr(conversion, "MAX_BYTES", 1)
    newest, _ = locate_model(files[2], tmp_path)
    assert sorted(tmp_path.glob("gguf/*")) == sorted([fresh, Path(newest)])
