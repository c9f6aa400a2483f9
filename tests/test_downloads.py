"""Bars of other libraries become tasks of ours."""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.utils
from huggingface_hub.utils import _xet_progress_reporting, disable_progress_bars, enable_progress_bars
from huggingface_hub.utils.tqdm import _get_progress_bar_context, tqdm_stream_file
from watching import Watching

from spintune.downloads import conversion_shown, shown_on, shown_progress, uploads_counted


class Counting(Watching):
    """Adds up what its tasks count."""

    def __init__(self) -> None:
        super().__init__()
        self.done: dict[str, float] = {}
        self.open: list[str] = []

    def task(self, name: str, total: float, unit: str) -> Any:
        self.tasks.append(f"{name}: {total:g} {unit}")

        @contextlib.contextmanager
        def counted() -> Any:
            self.open.append(name)
            yield self
            self.open.remove(name)

        self.name = name
        return counted()

    def advance(self, amount: float = 1, **facts: Any) -> None:
        self.done[self.name] = self.done.get(self.name, 0) + amount


def test_a_download_of_the_hub_is_a_task_even_where_its_own_bars_are_off(capsys: Any) -> None:
    progress = Counting()
    disable_progress_bars()  # as transformers does where its own are switched off
    try:
        with shown_on(progress):
            bar: Any
            with _get_progress_bar_context(desc="model.safetensors", log_level=20, total=4_000_000, initial=0) as bar:
                assert progress.open == ["downloading model.safetensors"]
                bar.update(3_000_000)
                bar.update(1_000_000)
            assert shown_progress() is progress
    finally:
        enable_progress_bars()
    assert progress.tasks == ["downloading model.safetensors: 4 MB"]
    assert progress.done == {"downloading model.safetensors": 4.0}
    assert progress.open == []
    assert shown_progress() is not progress
    assert capsys.readouterr() == ("", "")


def test_a_conversion_counts_its_tensors_and_writes_no_lines(capsys: Any) -> None:
    conversion = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    progress, before = Counting(), conversion.tqdm
    with shown_on(progress), conversion_shown():
        bar = conversion.tqdm([1, 2, 3], desc="Converting and de-quantizing GGUF tensors...")
        assert list(bar) == [1, 2, 3]
    assert progress.tasks == ["converting GGUF: 3 tensors"]
    assert progress.done == {"converting GGUF": 3}
    assert conversion.tqdm is before
    assert capsys.readouterr() == ("", "")


def test_what_an_upload_has_read_is_counted(tmp_path: Path, capsys: Any) -> None:
    """Once: Xet has a bar of all files, one of new data and one for each file."""
    counted: list[float] = []
    file = tmp_path / "model.safetensors"
    file.write_bytes(bytes(3_000_000))
    disable_progress_bars()
    with uploads_counted(counted.append):
        assert not huggingface_hub.utils.are_progress_bars_disabled()  # else Xet's client reports nothing
        with tqdm_stream_file(file) as stream:
            assert len(stream.read(1_000_000)) == 1_000_000
            stream.read()
        assert counted == [1.0, 2.0]
        reporter = _xet_progress_reporting.XetUploadProgressReporter()
        for done in (500_000, 2_000_000):
            one = SimpleNamespace(item_name="model.safetensors", bytes_completed=done, total_bytes=2_000_000)
            all_ = SimpleNamespace(
                total_bytes_completed=done,
                total_bytes=2_000_000,
                total_bytes_completion_rate=None,
                total_transfer_bytes_completed=done // 2,
                total_transfer_bytes=1_000_000,
                total_transfer_bytes_completion_rate=None,
            )
            reporter.update_progress(all_, {"model": one})
    assert counted == [1.0, 2.0, 0.5, 1.5]
    assert huggingface_hub.utils.are_progress_bars_disabled()
    enable_progress_bars()
    assert capsys.readouterr() == ("", "")
