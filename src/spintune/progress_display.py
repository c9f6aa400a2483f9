"""Shows progress as bars on a terminal, as plain lines in a log, or as JSON events."""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

import orjson
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from spintune.progress import Progress, ProgressTask
from spintune.terminal import SafeConsole, visible

SECONDS_BETWEEN_LINES = 10.0

WIDTH_OF_FILES = 120
"""Columns of tables when the output is no terminal."""


def open_progress(as_json: bool) -> contextlib.AbstractContextManager[Progress]:
    """Bars on a terminal, plain lines elsewhere, or JSON events on request; all on standard error."""
    if as_json:
        return contextlib.nullcontext(JsonProgress(sys.stderr))
    console = SafeConsole(stderr=True)
    return _bars(console) if console.is_terminal else contextlib.nullcontext(LineProgress(sys.stderr))


@contextlib.contextmanager
def _bars(console: Console) -> Iterator[Progress]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}  {task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}", style="dim", markup=False),
    )
    with Bars(*columns, console=console) as bars:
        yield BarProgress(bars)


class BarProgress:
    """A live bar per task."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        known = math.isfinite(total)
        handle = self._bars.add_task(name, total=total if known else None, unit=unit, rate="", facts="")
        yield _Bar(self._bars, handle, unit)
        if known:
            self._bars.update(handle, completed=total)

    def note(self, text: str) -> None:
        self._bars.console.print(text, highlight=False, markup=False, soft_wrap=True)


class _Bar:
    def __init__(self, bars: Bars, handle: TaskID, unit: str) -> None:
        self._bars, self._handle, self._unit = bars, handle, unit
        self._started, self._done = time.monotonic(), 0.0

    def advance(self, amount: float = 1, **facts: object) -> None:
        self._done += amount
        rate = self._done / max(1e-6, time.monotonic() - self._started)
        shown = f"{rate:.1f}/s" if rate >= 1 else f"{1 / max(rate, 1e-6):.1f} s each"
        self._bars.update(self._handle, advance=amount, rate=shown, facts=_facts(facts))


class LineProgress:
    """Plain lines for logs: one every ten seconds of a task, and one at its end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        line = _Line(self, name, total, unit)
        yield line
        line.close()

    def note(self, text: str) -> None:
        self._stream.write(visible(text) + "\n")
        self._stream.flush()


class _Line:
    _reported = -1.0

    def __init__(self, progress: LineProgress, name: str, total: float, unit: str) -> None:
        self._progress, self._name, self._total, self._unit = progress, name, total, unit
        self._started = self._shown = time.monotonic()
        self._done, self._facts = 0.0, ""

    def advance(self, amount: float = 1, **facts: object) -> None:
        self._done += amount
        self._facts = _facts(facts)
        if time.monotonic() - self._shown >= SECONDS_BETWEEN_LINES:
            self.report()

    def close(self) -> None:
        if self._reported != self._done:
            self.report()

    def report(self) -> None:
        self._shown, self._reported = time.monotonic(), self._done
        seconds = self._shown - self._started
        rate = self._done / max(1e-6, seconds)
        known = math.isfinite(self._total)
        unfinished = known and 0 < self._done < self._total
        left = f", {duration_text((self._total - self._done) / rate)} left" if unfinished else ""
        total = f"/{self._total:g}" if known else ""
        self._progress.note(
            f"{self._name}: {self._done:g}{total} {self._unit} in {duration_text(seconds)}{left}"
            + (f"  {self._facts}" if self._facts else "")
        )


class JsonProgress:
    """One JSON object per line and event: an advance of a task, or a note."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        yield _JsonTask(self, name, total, unit)

    def note(self, text: str) -> None:
        self.emit({"note": text})

    def emit(self, event: Mapping[str, object]) -> None:
        """Writes one event."""
        self._stream.write(orjson.dumps(event).decode() + "\n")
        self._stream.flush()


class _JsonTask:
    def __init__(self, progress: JsonProgress, name: str, total: float, unit: str) -> None:
        self._progress, self._event, self._done = progress, {"task": name, "total": total, "unit": unit}, 0.0

    def advance(self, amount: float = 1, **facts: object) -> None:
        self._done += amount
        self._progress.emit({**self._event, "done": self._done, **facts})


def _facts(facts: Mapping[str, object]) -> str:
    return "  ".join(
        f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in facts.items()
    )


def duration_text(seconds: float) -> str:
    """A duration to the second, or above an hour to the minute: "59 s", "1:30 min", "2:05 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
