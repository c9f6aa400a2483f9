"""Progress as lines and as events, and the tokens that inspect shows."""

from __future__ import annotations

import io
import json

import pytest

from spintune import progress_display
from spintune.console import print_tokens
from spintune.progress_display import JsonProgress, LineProgress, open_progress


def test_json_progress_is_one_object_an_event() -> None:
    stream = io.StringIO()
    progress = JsonProgress(stream)
    with progress.task("SFT", 10, "steps") as task:
        task.advance(4, loss=0.5)
        task.advance(6)
    progress.note("done")
    head = {"task": "SFT", "total": 10, "unit": "steps"}
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {**head, "done": 4, "loss": 0.5},
        {**head, "done": 10},
        {"note": "done"},
    ]


def test_line_progress_speaks_every_ten_seconds_and_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 steps of one second: a line at 10, 20, ... 100 seconds; the last is the end's as well."""
    clock = [0.0]
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: clock[0])
    stream = io.StringIO()
    with LineProgress(stream).task("SFT", 100, "steps") as task:
        for _ in range(100):
            clock[0] += 1
            task.advance(1, loss=0.123456)
    lines = stream.getvalue().splitlines()
    assert len(lines) == 10
    assert lines[0] == "SFT: 10/100 steps in 10 s, 1:30 min left  loss 0.1235"
    assert lines[-1] == "SFT: 100/100 steps in 1:40 min  loss 0.1235"


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (3599, "59:59 min"), (3660, "1:01 h")]
)
def test_durations(seconds: float, shown: str) -> None:
    assert progress_display.duration_text(seconds) == shown


def test_progress_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    for as_json in (False, True):
        with open_progress(as_json) as progress:
            progress.note("hello")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["hello", '{"note":"hello"}']


def test_bars_count_to_the_total(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """On a terminal; the text that rich draws is enough here."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "150")
    with open_progress(False) as progress, progress.task("SFT", 2, "steps") as task:
        task.advance(1, loss=0.5)
        task.advance(1, loss=0.25)
        progress.note("[brackets] stay")
    err = capsys.readouterr().err
    assert "2/2" in err
    assert "loss 0.25" in err
    assert "[brackets] stay" in err


def test_tokens_are_shown_as_they_are_and_the_trained_ones_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_tokens(["<|im_start|>user\n", "[red]hi"], [("a", True), ("[b]", False), ("\n", True)], "row 1")
    out = capsys.readouterr().out
    assert "row 1" in out
    assert "[red]hia[b]↵" in out
    assert "trained: 'a\\n'" in out
