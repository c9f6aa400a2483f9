"""Export copies what the run wrote, byte for byte, and nothing that somebody put beside it or in its place."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from model_files import FILES, write_model

from spintune.errors import RunError, SpintuneError, StorageError
from spintune.export.model import export_model

Make = Callable[..., Any]


@pytest.fixture
def run(whole: Make) -> Path:
    path: Path = whole().path
    for stage in ("sft", "spin/iterate-1", "spin/iterate-2"):
        write_model(path, stage)
    return path


def replace(path: Path, content: bytes) -> None:
    """Other content with the size and the times of the old one, which a start of the run does not see."""
    assert len(content) == path.stat().st_size
    times = path.stat().st_mtime_ns
    path.write_bytes(content)
    os.utime(path, ns=(times, times))


def refused(run: Path, out: Path, *parts: str) -> None:
    with pytest.raises(RunError) as caught:
        export_model(run, out, "sft")
    assert "\n" not in str(caught.value)
    for part in parts:
        assert part in str(caught.value)
    assert list(out.parent.glob("*")) == [run]  # nothing half-written


def test_what_the_run_wrote_is_copied_and_the_card_says_that_it_was_compared(run: Path, tmp_path: Path) -> None:
    assert export_model(run, tmp_path / "out") == "iterate-2"
    copied = {str(path.relative_to(tmp_path / "out")): path for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert {name: path.read_bytes() for name, path in copied.items() if name != "README.md"} == FILES
    assert "byte for byte, those that the run wrote" in copied["README.md"].read_text()


def test_files_that_somebody_put_beside_the_model_are_left_out_and_told(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "sft/model/notes.md").write_text("mine")
    (run / "sft/model/model.gguf").write_text("converted")
    export_model(run, tmp_path / "out", "sft")
    names = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert names == {*FILES, "README.md"}
    assert "model.gguf" in caplog.text
    assert "notes.md" in caplog.text


@pytest.mark.parametrize("name", ["model.safetensors", "vocab.json"])
def test_a_link_is_not_followed(run: Path, tmp_path: Path, name: str) -> None:
    secret = run / "id_rsa"
    secret.write_text("secret")
    link = run / "sft/model" / name
    link.unlink(missing_ok=True)
    link.symlink_to(secret)
    refused(run, tmp_path / "out", str(link), "is a link")


@pytest.mark.parametrize("place", ["sft/model", "sft"])
def test_a_folder_that_is_a_link_is_not_followed(run: Path, tmp_path: Path, place: str) -> None:
    (run / place).rename(run / "elsewhere")
    (run / place).symlink_to(run / "elsewhere")
    refused(run, tmp_path / "out", str(run / place), "is a link")


def test_a_run_behind_a_link_is_exported(run: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(run)
    assert export_model(tmp_path / "link", tmp_path / "out", "sft") == "sft"


@pytest.mark.parametrize("name", ["modeling_x.py", "adapter_config.json", "chat_template.jinja", "deep/tokenizer.json"])
def test_a_file_that_loading_would_read_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    path = run / "sft/model" / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("{}")
    refused(run, tmp_path / "out", str(path), "the run did not write this file", "move it away")


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_settings_that_name_code_are_refused(run: Path, tmp_path: Path, name: str) -> None:
    write_model(run, "sft", {**FILES, name: rb'{"auto\u005fmap": {"AutoConfig": "x.X"}}'})
    refused(run, tmp_path / "out", name, "auto_map")


def test_code_is_refused_even_where_the_manifest_names_it(run: Path, tmp_path: Path) -> None:
    write_model(run, "sft", {**FILES, "modeling_x.py": b"import os"})
    refused(run, tmp_path / "out", "modeling_x.py", "is code")


def test_weights_that_were_changed_are_refused_though_size_and_time_are_kept(run: Path, tmp_path: Path) -> None:
    replace(run / "sft/model/model.safetensors", bytes(256))
    refused(run, tmp_path / "out", "sft/model/model.safetensors", "was changed after the run wrote it", "delete it")


def test_a_file_that_is_gone_is_named(run: Path, tmp_path: Path) -> None:
    (run / "sft/model/tokenizer_config.json").unlink()
    refused(run, tmp_path / "out", "tokenizer_config.json: is gone")


@pytest.mark.parametrize("name", ["../../id_rsa", "/etc/hostname", "model/../../../x"])
def test_a_manifest_that_leads_out_of_its_folder_is_refused(run: Path, tmp_path: Path, name: str) -> None:
    manifest = run / "sft/manifest.json"
    document = json.loads(manifest.read_text())
    document["files"][name] = document["files"]["model/config.json"]
    manifest.write_text(json.dumps(document))
    refused(run, tmp_path / "out", "manifest.json", "outside")


def test_a_folder_that_is_there_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(StorageError, match="already exists"):
        export_model(run, tmp_path / "out")


@pytest.mark.parametrize(
    "best",
    [
        {"name": "iterate-1", "model": "../../elsewhere"},
        {"name": "iterate-1", "model": "/etc"},
        {"name": "iterate-1", "model": "spin/iterate-2/model"},
        {"name": "../sft", "model": "../sft/model"},
        {"name": "iterate-01", "model": "spin/iterate-01/model"},
        {"name": "base", "model": "/tmp/evil"},
        {"name": 3},
        [],
    ],
)
def test_best_json_names_a_model_of_the_run_only(run: Path, tmp_path: Path, best: Any) -> None:
    from spintune.run_models import final_model

    if isinstance(best, dict):
        best = {"why": "", **best}
    (run / "best.json").write_text(json.dumps(best))
    for use in (lambda: export_model(run, tmp_path / "out"), lambda: final_model(run)):
        with pytest.raises(SpintuneError, match=r"best\.json: "):
            use()


def test_the_best_model_is_used_where_it_is_whole(run: Path) -> None:
    from spintune.run_models import final_model

    assert final_model(run) == str(run / "spin/iterate-2/model")
    (run / "best.json").write_text(json.dumps({"name": "base", "model": "smollm2-135m-instruct", "why": ""}))
    assert final_model(run) == "smollm2-135m-instruct"
    (run / "best.json").unlink()
    assert final_model(run) == str(run / "spin/iterate-2/model")
    recipe = json.loads((run / "recipe.json").read_text())
    recipe["recipe"]["spin"]["iterations"] = 1  # what lies there beyond is of an earlier recipe
    (run / "recipe.json").write_text(json.dumps(recipe))
    assert final_model(run) == str(run / "spin/iterate-1/model")
    (run / "spin/iterate-1/model/adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="adapter_config"):
        final_model(run)


@pytest.mark.parametrize("parts", [1, 3])
def test_bfloat16_rounds_the_weights_of_the_copy_and_says_so(
    run: Path, tmp_path: Path, tiny_model: Path, parts: int
) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.save_pretrained(tmp_path / "model", max_shard_size="5GB" if parts == 1 else "40KB")
    files = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    assert sum(name.endswith(".safetensors") for name in files) >= parts
    shutil.rmtree(run / "sft/model")
    source = write_model(run, "sft", files)
    export_model(run, tmp_path / "out", "sft", dtype="bfloat16")
    assert (source / "config.json").read_bytes() == files["config.json"]
    rounded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")  # in the type that its config names
    assert rounded.dtype == torch.bfloat16
    for name, weight in model.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], weight.bfloat16()), name
    sizes = [sum(path.stat().st_size for path in place.glob("*.safetensors")) for place in (source, tmp_path / "out")]
    assert sizes[1] < 0.6 * sizes[0]
    card = (tmp_path / "out/README.md").read_text()
    assert "rounded to bfloat16" in card
    assert "byte for byte" not in card


def test_the_adapter_alone_is_copied_with_a_card_of_its_own(whole: Make, tmp_path: Path) -> None:
    import yaml

    made = whole(lora={"rank": 4})
    write_model(made.path, "sft")
    files = {"adapter_config.json": b'{"base_model_name_or_path": "owner/base"}', "adapter_model.safetensors": b"123"}
    stage = made.path / "sft"
    manifest = json.loads((stage / "manifest.json").read_text())
    for name, content in files.items():
        (stage / "adapter").mkdir(exist_ok=True)
        (stage / "adapter" / name).write_bytes(content)
        facts = {"bytes": len(content), "mtime_ns": (stage / "adapter" / name).stat().st_mtime_ns}
        manifest["files"][f"adapter/{name}"] = {**facts, "sha256": hashlib.sha256(content).hexdigest()}
    (stage / "manifest.json").write_text(json.dumps(manifest))
    assert export_model(made.path, tmp_path / "out", "sft", adapter=True) == "sft"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*files, "README.md"}
    card = (tmp_path / "out/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["library_name"] == "peft"
    assert "This is a LoRA adapter" in card
    with pytest.raises(SpintuneError, match="--adapter keeps the type of its weights"):
        export_model(made.path, tmp_path / "half", "sft", dtype="float16", adapter=True)
