"""Uploads go through the real client of the hub, to one on the loopback address."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_server import TOKEN, Hub, hub_server
from huggingface_hub import constants
from model_files import FILES, write_model

from spintune.export.push import push_folder


@pytest.fixture
def run(whole: Callable[..., Any]) -> Path:
    path: Path = whole().path
    write_model(path, "sft")
    return path


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_server() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def test_the_folder_and_its_card_are_on_the_hub(run: Path, hub: Hub, spintune: Callable[..., Any], here: Path) -> None:
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft", "--private", "--json")
    assert ended.code == 0, ended.err
    outcome = json.loads(ended.out)
    assert outcome["url"] == f"{hub.url}/me/mine/commit/abc"
    assert set(hub.files) == {*FILES, "README.md"} == set(outcome["files"])
    for name, content in FILES.items():
        assert hub.files[name] == content
    assert hub.created == [{"name": "mine", "organization": "me", "visibility": "private"}] or hub.created[0]["private"]
    assert outcome["files"] == {name: len(content) for name, content in hub.files.items()}
    assert b"library_name: transformers" in hub.files["README.md"]
    assert TOKEN not in ended.out + ended.err
    assert not list(here.iterdir())


def test_an_upload_is_one_commit_and_says_how_far_it_is(run: Path, hub: Hub, tmp_path: Path) -> None:
    folder, counted = tmp_path / "model", list[float]()
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(3_000_000))
    (folder / "second.safetensors").write_bytes(b"\1" * 1_000_000)
    (folder / "README.md").write_text("# A model\n")
    push_folder(folder, "me/mine", False, "as it is", counted.append)
    assert set(hub.files) == {"model.safetensors", "second.safetensors", "README.md"}
    assert sum("/commit/" in one for one in hub.asked) == 1
    assert len(counted) > 2
    assert max(counted) < 3
    assert sum(counted) == pytest.approx(4 + 10 / 1e6)


def test_private_weights_never_go_to_a_repository_that_is_public(
    run: Path, hub: Hub, spintune: Callable[..., Any]
) -> None:
    """The hub leaves a repository that exists as it is."""
    hub.public = True
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft", "--private")
    assert ended.code == 6
    assert "me/mine exists and is public, which --private does not change" in ended.err.splitlines()[-1]
    assert hub.files == {}
    assert hub.uploaded == {}


def test_a_dry_run_lists_what_would_go_and_asks_nobody(run: Path, hub: Hub, spintune: Callable[..., Any]) -> None:
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft", "--dry-run")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    listed = {line.split()[1]: int(line.split()[0].replace(",", "")) for line in lines[:-1]}
    assert {name: len(content) for name, content in FILES.items()}.items() <= listed.items()
    assert set(listed) == {*FILES, "README.md"}
    assert lines[-1] == f"5 files, {sum(listed.values()):,} bytes: this would go to me/mine"
    assert hub.asked == []


def test_the_folder_is_kept_where_it_is_named(run: Path, hub: Hub, spintune: Callable[..., Any], here: Path) -> None:
    ended = spintune("export", run, "kept", "--to", "hub", "--repo", "me/mine", "--model", "sft")
    assert ended.code == 0, ended.err
    assert (here / "kept/README.md").read_bytes() == hub.files["README.md"]


@pytest.mark.parametrize(
    ("status", "text"), [(403, "may not write there (403)"), (404, "no such owner"), (418, "the hub answered 418")]
)
def test_what_the_hub_refuses_is_one_line(
    run: Path, hub: Hub, spintune: Callable[..., Any], status: int, text: str
) -> None:
    hub.status = status
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft")
    assert ended.code == 6
    assert text in ended.err.splitlines()[-1]
    assert hub.files == {}
    kept = spintune("export", run, "kept", "--to", "hub", "--repo", "me/mine", "--model", "sft")
    assert kept.err.rstrip().endswith("; kept is written, and goes there by: hf upload me/mine kept")
    kept = spintune("export", run, "kept2", "--to", "hub", "--repo", "me/mine", "--model", "sft", "--private")
    assert kept.err.rstrip().endswith("; kept2 is written")


def test_a_wrong_token_is_not_shown(
    run: Path, hub: Hub, spintune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft")
    assert ended.code == 6
    assert "knows no such token (401)" in ended.err
    assert "hf_wrong" not in ended.err


def test_without_a_network_it_is_one_line(
    run: Path, hub: Hub, spintune: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft")
    assert ended.code == 6
    assert "the hub cannot be reached" in ended.err.splitlines()[-1]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    ended = spintune("export", run, "--to", "hub", "--repo", "me/mine", "--model", "sft")
    assert ended.code == 6
    assert "HF_HUB_OFFLINE" in ended.err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--to", "hub"], "needs --repo OWNER/NAME"),
        (["--to", "hub", "--repo", "mine"], "no name of a repository"),
        (["--to", "hub", "--repo", "me/mine.git"], "no name of a repository"),
        (["--to", "hub", "--repo", "me/caf\u00e9"], "no name of a repository"),
        (["--no-check"], "--no-check is for GGUF files"),
        (["--repo", "me/mine"], "--repo goes with --to hub only"),
        (["--dry-run"], "--dry-run goes with --to hub only"),
        (["--to", "gguf", "--adapter"], "takes the merged model"),
        (["--to", "gguf", "--dtype", "q9_9"], "no type of GGUF"),
        (["--dtype", "q8_0"], "or --to gguf"),
        (["--adapter"], "trained without LoRA"),
    ],
)
def test_options_that_do_nothing_are_refused(
    run: Path, spintune: Callable[..., Any], words: list[str], text: str
) -> None:
    ended = spintune("export", run, "out", "--model", "sft", *words)
    assert ended.code in (2, 4)
    assert text in ended.err
    assert not Path("out").exists()
