"""A hub that does not answer costs one question, and files from before are found without it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from spintune import hub
from spintune.data.sources import Source, read_source
from spintune.errors import DataError, ModelError
from spintune.models.loading import check_model, load_tokenizer


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """The hub is at an address where nobody listens; gives the pauses that its client makes between retries."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_asked", None)
    return pauses


def test_a_model_of_a_hub_that_does_not_answer_is_one_line_and_no_waiting(waits: list[float], tmp_path: Path) -> None:
    for load in (load_tokenizer, check_model):
        with pytest.raises(ModelError) as refused:
            load("nobody-here/nothing", cache=tmp_path)
        line = str(refused.value)
        assert (
            "'nobody-here/nothing': there is no such folder, no earlier download, and the hub cannot be asked (" in line
        )
        assert "http://127.0.0.1:9 cannot be reached: " in line
        assert "\n" not in line
    assert not waits
    assert not constants.HF_HUB_OFFLINE


def test_data_of_a_hub_that_does_not_answer_are_one_line_and_no_waiting(waits: list[float]) -> None:
    with pytest.raises(
        DataError, match=r"^nobody-here/nothing: there is no such file, no earlier .* cannot be asked \(http"
    ):
        read_source(Source("nobody-here/nothing"))
    assert not waits


def test_a_model_that_was_downloaded_before_is_found_without_the_hub(
    waits: list[float], tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    (kept / "snapshots").mkdir()
    (kept / "snapshots" / "abc").symlink_to(tiny_model)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub.is_kept("owner/name", None)
    assert not hub.is_kept("owner/name", "other")
    check_model("owner/name", cache=tmp_path)
    assert not waits


def test_a_hub_that_is_silent_is_waited_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_asked", None)
    monkeypatch.setattr(hub, "TIMEOUT", 0.05)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "cannot be reached" in (hub.unreachable() or "")
    assert "cannot be reached" in (hub.unreachable() or "")  # known, though now nobody listens
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.unreachable() == "HF_HUB_OFFLINE is set"
