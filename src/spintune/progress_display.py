"""Shows progress as two live lines on a terminal, as a line a minute in a log, or as JSON events."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import orjson
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from spintune.progress import ExpectedStage, Progress, ProgressTask, Silent
from spintune.terminal import SafeConsole, visible
from spintune.time_left import RunTimes, TimedTask, TimeLeft

SECONDS_BETWEEN_LINES = 60.0
"""How often a log gets a line while a stage goes on."""

WIDTH_OF_FILES = 120
"""Columns of tables when the output is no terminal."""

_REFRESHES = 4  # a second
_BAR = 14  # columns, where there is room
PROMISE_AFTER = 5.0
"""Measured work after which a line says how long the whole run takes. [s]"""
_SELDOM = ("held_out",)
"""Facts that stay for many steps; on a terminal they stand beside the stage."""
_SHORTEST_PROMISED = 30.0  # seconds
_SHORTEST_KEPT = 2.0
"""A task outside of a run's stages that took less leaves no line in a log. [s]"""


def open_progress(as_json: bool, quiet: bool = False) -> contextlib.AbstractContextManager[Progress]:
    """Live lines on a terminal, plain lines elsewhere, or JSON events on request; all on standard error."""
    if as_json:
        return contextlib.nullcontext(JsonProgress(sys.stderr))
    if quiet:
        return contextlib.nullcontext(Silent())
    console = SafeConsole(stderr=True)
    return _live(console) if console.is_terminal else contextlib.nullcontext(LineProgress(sys.stderr))


@contextlib.contextmanager
def _live(console: Console) -> Iterator[Progress]:
    progress = LiveProgress(console)
    with Live(
        get_renderable=progress.lines, console=console, refresh_per_second=_REFRESHES, transient=True
    ) as progress.live:
        yield progress


# What both show ------------------------------------------------------------------------------------------------------


@dataclass
class _Summary:
    """What is told of a stage when it is over: its longest task."""

    task: TimedTask | None = None
    facts: str = ""


class _Board:
    """Keeps what is under way. Downloads count from threads of their own."""

    def __init__(self) -> None:
        self.times = RunTimes()
        self.lock = threading.RLock()
        self.facts: Mapping[str, object] = {}
        self._summary = _Summary()
        self._idle: list[tuple[int, str]] = []
        self._promised = False

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Takes the stages of a run."""
        with self.lock:
            self.times.expect(stages)

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Shows a stage, and leaves a line about it."""
        with self.lock:
            counts, self._summary = self.times.begin_stage(name), _Summary()
        try:
            yield
        except BaseException:
            with self.lock:
                if counts:
                    self.times.end_stage()
            raise
        if not counts:
            return
        with self.lock:
            told, number, worked = self._told(), self.times.number, self.times.worked
            self.times.end_stage()
            if not worked:
                self._idle.append((number, name))
                if number == self.times.count:
                    self._tell_idle()
        if worked:
            self.note(told)

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        """Counts a task."""
        with self.lock:
            self._tell_idle()
            timed = self.times.begin_task(name, total, unit)
            self.facts = {}
        task = _Task(self, timed)
        try:
            yield task
        finally:
            with self.lock:
                self.times.end_task(timed)
                longest = self._summary.task
                if self.times.stage and (longest is None or timed.seconds >= longest.seconds):
                    self._summary = _Summary(timed, task.last)
                self.facts = {}
        self.ended(timed, task.last)

    def note(self, text: str) -> None:
        """Shows one line of text."""
        raise NotImplementedError

    def advanced(self) -> None:
        """Called after a task has moved."""

    def ended(self, task: TimedTask, facts: str) -> None:
        """Called after a task."""

    def promise(self) -> None:
        """Says once how long the run takes here, as soon as its first seconds of work were measured."""
        if self._promised or self.times.measured < PROMISE_AFTER or not (left := self.times.run_left()):
            return
        self._promised = True
        if left.seconds >= _SHORTEST_PROMISED:
            measured = about_text(self.times.measured)
            self.note(f"{length_text(left)} to the end on this machine, by the first {measured} of work")

    def _tell_idle(self) -> None:
        """One line about all stages that were finished by an earlier command."""
        if idle := self._idle:
            self._idle = []
            numbers = f"stages {idle[0][0]} to {idle[-1][0]}" if len(idle) > 1 else f"stage {idle[0][0]}"
            self.note(f"{numbers} of {self.times.count} ({', '.join(name for _, name in idle)}): nothing left to do")

    def _told(self) -> str:
        """The line about the stage that is over."""
        task, facts = self._summary.task, self._summary.facts
        did = f"{task.done:,.0f} {task.unit} in " if task and task.done else ""
        loss = f", {facts}" if facts else ""
        times = self.times
        return f"stage {times.number} of {times.count}, {times.stage}: {did}{duration_text(times.stage_seconds)}{loss}"


class _Task:
    def __init__(self, board: _Board, timed: TimedTask) -> None:
        self._board, self._timed = board, timed
        self.last = ""

    def advance(
        self,
        amount: float = 1,
        safe: bool = True,
        restored: bool = False,
        under_way: float | None = None,
        **facts: object,
    ) -> None:
        with self._board.lock:
            self._board.times.advance(self._timed, amount, restored, under_way)
            if facts:
                self._board.facts = facts
                self.last = "  ".join(_facts({name: facts[name] for name in facts if not name.endswith("_s")}))
            self._board.promise()
        self._board.advanced()


# On a terminal -------------------------------------------------------------------------------------------------------


class LiveProgress(_Board):
    """Two lines that are drawn again and again: the run, and what it is doing. Notes scroll by above them."""

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.live: Live | None = None
        self._console = console
        encoding = (console.encoding or "").lower()
        self._full, self._empty = ("━", "─") if encoding.startswith("utf") else ("#", "-")

    def note(self, text: str) -> None:
        """Prints a line above the live ones."""
        self._console.print(text, highlight=False, markup=False)

    def lines(self) -> Group:
        """The live lines as they are now, no wider than the terminal."""
        with self.lock:
            width = self._console.width
            shown = []
            if self.times.stage:
                shown.append(self._run_line(width))
            if self.times.tasks:
                shown.append(self._task_line(self.times.tasks[-1], width))
            return Group(*shown)

    def _run_line(self, width: int) -> Text:
        times = self.times
        stage = f"stage {times.number} of {times.count}: {times.stage}"
        for fact in _facts({name: self.facts[name] for name in _SELDOM if name in self.facts}):
            stage += f", {fact}" if len(stage) + len(fact) + 2 <= width else ""
        left = times.run_left()
        forms = [run_text(left), run_text(left).removesuffix(" in all"), ""] if left else [""]
        right = next(form for form in forms if len(stage) + len(form) + 2 <= width or not form)
        line = Text(stage, style="bold", no_wrap=True, overflow="ellipsis")
        return line.append(" " * max(0, width - len(stage) - len(right)) + right, style="not bold") if right else line

    def _task_line(self, task: TimedTask, width: int) -> Text:
        times = self.times
        share = times.share_done() if times.stage else (task.done / task.total if task.has_end else None)
        left = times.stage_left() if times.stage else task.left
        facts = _facts({name: self.facts[name] for name in self.facts if not (times.stage and name in _SELDOM)})
        pieces = [
            f"{min(share, 1):4.0%}".replace("%", " %") if share is not None else "",
            _count(task),
            f"{about_text(left)} left" if left is not None else "",
            *facts,
            _rate(task) if not any("/s" in fact for fact in facts) else "",
        ]
        if not times.stage:
            pieces.insert(0, task.name)
        text = "  ".join(piece for piece in pieces if piece)
        bar = min(_BAR if width < 100 else 2 * _BAR, width - len(text) - 2)
        line = Text(no_wrap=True, overflow="ellipsis")
        if share is not None and bar >= 6:
            full = round(bar * min(share, 1.0))
            line.append(self._full * full, style="green").append(self._empty * (bar - full) + "  ", style="dim")
        for piece in pieces:
            if piece and len(line) + len(piece) <= width:  # what does not fit is left out whole
                line.append(piece + "  ", style="dim" if piece in facts else "")
        line.rstrip()
        return line


# In a log ------------------------------------------------------------------------------------------------------------


class LineProgress(_Board):
    """Plain lines for logs: one a minute, and one at the end of each stage."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream
        self._spoke = time.monotonic()

    def note(self, text: str) -> None:
        """Writes a line."""
        self._stream.write(visible(text) + "\n")
        self._stream.flush()

    def advanced(self) -> None:
        """Writes where the work is, once a minute."""
        with self.lock:
            if time.monotonic() - self._spoke >= SECONDS_BETWEEN_LINES and self.times.tasks:
                self._spoke = time.monotonic()
                self.note(self._line())

    def ended(self, task: TimedTask, facts: str) -> None:
        """Writes a line about a longer task outside of a run."""
        if not self.times.stage and task.seconds >= _SHORTEST_KEPT:
            self.note(f"{task.name}: {_count(task)} in {duration_text(task.seconds)}" + (f", {facts}" if facts else ""))

    def _line(self) -> str:
        times, task = self.times, self.times.tasks[-1]
        if not times.stage:
            left = f", {about_text(task.left)} left" if task.left else ""
            return f"{task.name}: {_count(task)}{left}"
        stage, run = times.stage_left(), times.run_left()
        parts = [
            f"stage {times.number} of {times.count}, {times.stage}: {_count(task)}",
            f"{about_text(stage)} left" if stage is not None else "",
            run_text(run) if run else "",
            "  ".join(_facts(self.facts)),
        ]
        return ", ".join(part for part in parts if part)


# For programs --------------------------------------------------------------------------------------------------------


class JsonProgress:
    """One JSON object per line and event: the stages, a stage that begins or ends, an advance of a task, or a note."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._expected: list[str] = []

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Writes the names of the stages, where they are not those that it wrote last."""
        names = [stage.name for stage in stages]
        if names != self._expected:
            self._expected = names
            self.emit({"stages": names})

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Writes when an expected stage begins and ends."""
        if name not in self._expected:
            yield
            return
        began = time.monotonic()
        self.emit({"stage": name, "state": "begins"})
        yield
        self.emit({"stage": name, "state": "done", "seconds": round(time.monotonic() - began, 3)})

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        """Counts a task, which is announced before anything of it is done."""
        task = _JsonTask(self, name, total, unit)
        self.emit({**task.event, "done": 0.0})
        yield task

    def note(self, text: str) -> None:
        """Writes a note."""
        self.emit({"note": text})

    def emit(self, event: Mapping[str, object]) -> None:
        """Writes one event."""
        self._stream.write(orjson.dumps(event).decode() + "\n")
        self._stream.flush()


class _JsonTask:
    def __init__(self, progress: JsonProgress, name: str, total: float, unit: str) -> None:
        self._progress, self.event, self._done = progress, {"task": name, "total": total, "unit": unit}, 0.0

    def advance(
        self,
        amount: float = 1,
        safe: bool = True,
        restored: bool = False,
        under_way: float | None = None,
        **facts: object,
    ) -> None:
        self._done += amount
        if amount or facts:
            self._progress.emit({**self.event, "done": self._done, **facts})


# Words ---------------------------------------------------------------------------------------------------------------


def _facts(facts: Mapping[str, object]) -> list[str]:
    return list(map(_fact, facts, facts.values()))


def _fact(name: str, value: object) -> str:
    if name.endswith("_per_s") and isinstance(value, float):
        return f"{value:,.0f} {name.removesuffix('_per_s')}/s"
    told = " to ".join(map(_number, value)) if isinstance(value, tuple) else _number(value)
    return f"{name.replace('_', '-')} {told}"


def _number(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _count(task: TimedTask) -> str:
    return f"{task.done:,.0f}/{task.total:,.0f} {task.unit}" if task.has_end else f"{task.done:,.0f} {task.unit}"


def _rate(task: TimedTask) -> str:
    each = task.item_seconds
    if each is None:
        return ""
    return f"{1 / each:,.0f}/s" if each < 0.1 else f"{1 / each:.1f}/s" if each < 1 else f"{each:.1f} s each"


def run_text(left: TimeLeft) -> str:
    """The time that a run still takes, in words."""
    return f"{length_text(left)} left in all"


def length_text(left: TimeLeft) -> str:
    """How long something takes, in words."""
    return f"{'at least' if left.at_least else 'about'} {about_text(left.seconds)}"


def about_text(seconds: float) -> str:
    """A duration as well as it can be known: "10 s", "4 min", "1.5 h", "2.3 days"."""
    if seconds < 90:
        return f"{max(10, 10 * round(seconds / 10))} s"
    if seconds < 90 * 60:
        return f"{round(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h" if seconds < 36 * 3600 else f"{seconds / 86400:.1f} days"


def duration_text(seconds: float) -> str:
    """A duration to the second, or above an hour to the minute: "59 s", "1:30 min", "2:05 h"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes}:{rest:02d} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02d} h"
