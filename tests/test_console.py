"""Progress as lines and as events, and the tokens that inspect shows."""

from __future__ import annotations

import io
import json
import re

import pytest

from spintune import progress_display
from spintune.cli.data_tables import print_tokens
from spintune.progress import ExpectedStage, ExpectedTask
from spintune.progress_display import JsonProgress, LineProgress, LiveProgress, open_progress
from spintune.terminal import SafeConsole
from spintune.time_left import RunTimes


def test_json_progress_is_one_object_an_event() -> None:
    stream = io.StringIO()
    progress = JsonProgress(stream)
    with progress.task("SFT", 10, "steps") as task:
        task.advance(4, loss=0.5)
        task.advance(6)
    progress.note("done")
    with progress.stage("never expected"):
        pass
    head = {"task": "SFT", "total": 10, "unit": "steps"}
    assert [json.loads(line) for line in stream.getvalue().splitlines()] == [
        {**head, "done": 0},
        {**head, "done": 4, "loss": 0.5},
        {**head, "done": 10},
        {"note": "done"},
    ]


STAGES = [
    ExpectedStage("data"),
    ExpectedStage("SFT", (ExpectedTask("steps", 100, 10),)),
    ExpectedStage("iteration 1: training", (ExpectedTask("steps", 40, 10),)),
]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time that progress reads, in seconds."""
    now = [0.0]
    monkeypatch.setattr(progress_display.time, "monotonic", lambda: now[0])
    defaults = RunTimes.__init__.__defaults__ or ()
    monkeypatch.setattr(RunTimes.__init__, "__defaults__", (lambda: now[0], *defaults[1:]))
    return now


def test_a_log_gets_a_line_a_minute_and_one_at_the_end_of_each_stage(clock: list[float]) -> None:
    """100 steps of 2 s, and 40 more expected: after a minute 30 are done, 140 s are left here and 80 s later."""
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.expect(STAGES)
    with progress.stage("data"):
        pass
    with progress.stage("SFT"), progress.task("SFT", 100, "steps") as task:
        for _ in range(100):
            clock[0] += 2
            task.advance(1, loss=0.123456, tokens_per_s=5.0)
    with progress.task("short", 1, "MB") as task:
        task.advance()
    assert stream.getvalue().splitlines() == [
        "stage 1 of 3 (data): nothing left to do",
        "about 5 min to the end on this machine, by the first 10 s of work",
        "stage 2 of 3, SFT: 30/100 steps, 2 min left, about 4 min left in all, loss 0.123  5 tokens/s",
        "stage 2 of 3, SFT: 60/100 steps, 80 s left, about 3 min left in all, loss 0.123  5 tokens/s",
        "stage 2 of 3, SFT: 90/100 steps, 20 s left, about 2 min left in all, loss 0.123  5 tokens/s",
        "stage 2 of 3, SFT: 100 steps in 3:20 min, loss 0.123",
    ]


def test_what_is_restored_or_short_promises_nothing(clock: list[float]) -> None:
    """10 s of 20 were measured, and 10 s are left: not worth a line. Restored steps measure nothing."""
    for restored, seconds in ((False, 1), (True, 1000)):
        stream = io.StringIO()
        progress = LineProgress(stream)
        progress.expect([ExpectedStage("SFT", (ExpectedTask("steps", 20, 10),))])
        with progress.stage("SFT"), progress.task("SFT", 20, "steps") as task:
            for _ in range(10):
                clock[0] += seconds
                task.advance(1, restored=restored)
        assert "to the end" not in stream.getvalue()


def live(width: int, encoding: str = "utf-8") -> tuple[LiveProgress, io.TextIOWrapper]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return LiveProgress(SafeConsole(file=file, force_terminal=True, width=width, color_system=None)), file


def drawn(progress: LiveProgress, file: io.TextIOWrapper) -> list[str]:
    """The live lines as text."""
    file.buffer.seek(0)
    file.buffer.truncate()
    progress._console.print(progress.lines())
    return file.buffer.getvalue().decode(file.encoding).splitlines()  # type: ignore[attr-defined]


@pytest.mark.parametrize("width", [30, 60, 80, 120])
def test_the_run_is_two_lines_at_any_width(clock: list[float], width: int) -> None:
    progress, file = live(width)
    assert drawn(progress, file) == []
    progress.expect(STAGES)
    with progress.stage("SFT"), progress.task("SFT", 100, "steps") as task:
        lines = drawn(progress, file)
        assert len(lines) == 2
        assert "each" not in lines[1]  # no rate before the first step
        clock[0] += 50
        task.advance(25, loss=2.345678, tokens_per_s=1234.5)
        lines = drawn(progress, file)
    assert len(lines) == 2
    assert all(len(line.rstrip()) <= width for line in lines)
    assert lines[0].startswith("stage 2 of 3: SFT")
    if width >= 60:
        assert lines[0].endswith("about 4 min left in all")
        for told in ("25 %", "25/100 steps", "2 min left", "loss 2.35", "1,234 tokens/s"):
            assert told in lines[1]
    if width >= 80:
        assert re.match({80: "━{4}─{10}  ", 120: "━{7}─{21}  "}[width], lines[1])


@pytest.mark.parametrize("width", [30, 60, 80])
def test_the_newest_held_out_loss_stands_beside_the_stage(clock: list[float], width: int) -> None:
    progress, file = live(width)
    progress.expect(STAGES)
    with progress.stage("SFT"), progress.task("SFT", 100, "steps") as task:
        clock[0] += 50
        task.advance(25, loss=0.25, held_out=0.30125, tokens_per_s=1234.5)
        first, second = drawn(progress, file)
    assert first.startswith("stage 2 of 3: SFT")
    assert max(len(first.rstrip()), len(second.rstrip())) <= width
    if width == 30:
        assert "held-out" not in first  # a part of a number would be a wrong one
    else:
        assert first.split("  ")[0] == "stage 2 of 3: SFT, held-out 0.301"
        assert "loss 0.25  1,234 tokens/s" in second


def test_a_finished_training_tells_the_held_out_loss_before_and_after(clock: list[float]) -> None:
    """In a log: at most a line a minute, whatever was measured between."""
    stream = io.StringIO()
    progress = LineProgress(stream)
    progress.expect(STAGES[1:])
    with progress.stage("SFT"), progress.task("SFT", 100, "steps") as task:
        for step in range(100):
            clock[0] += 0.9
            task.advance(1, loss=0.5, held_out=6.2 - step / 20, tokens_per_s=5.0)
        task.advance(0, held_out=(6.1791, 1.2))
    _, minute, end = stream.getvalue().splitlines()
    assert minute.endswith("loss 0.5  held-out 2.9  5 tokens/s")
    assert end == "stage 1 of 2, SFT: 100 steps in 1:30 min, held-out 6.18 to 1.2"


def test_a_terminal_without_unicode_gets_plain_signs(clock: list[float]) -> None:
    progress, file = live(80, "ascii")
    with progress.task("verify", 10, "MB") as task:
        clock[0] += 1
        task.advance(5)
        (line,) = drawn(progress, file)
    assert line.startswith("#######-------  verify   50 %  5/10 MB  10 s left  5.0/s")


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


def test_a_finished_stage_leaves_one_line_on_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with open_progress(False) as progress:
        progress.expect(STAGES[1:])
        with progress.stage("SFT"), progress.task("SFT", 2, "steps") as task:
            task.advance(1, loss=0.5)
            task.advance(1, loss=0.25)
            progress.note("[brackets] stay")
    left = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", capsys.readouterr().err).splitlines()
    assert "[brackets] stay" in left
    assert "stage 1 of 2, SFT: 2 steps in 0 s, loss 0.25" in left


def test_quiet_progress_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with open_progress(False, quiet=True) as progress, progress.stage("SFT"), progress.task("SFT", 2, "steps") as task:
        task.advance(1)
        progress.note("hello")
    assert capsys.readouterr() == ("", "")


def test_tokens_are_shown_as_they_are_and_the_trained_ones_told(capsys: pytest.CaptureFixture[str]) -> None:
    print_tokens(["<|im_start|>user\n", "[red]hi"], [("a", True), ("[b]", False), ("\n", True)], "row 1")
    out = capsys.readouterr().out
    assert "row 1" in out
    assert "[red]hia[b]↵" in out
    assert "trained: 'a\\n'" in out
