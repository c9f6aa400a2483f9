"""A run folder as a live page: looks at its files again and again, and draws again what changed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from spintune.errors import SpintuneError
from spintune.progress_display import about_text
from spintune.report.facts import RunFacts
from spintune.report.reading import read_run, stage_manifests
from spintune.watch import parts
from spintune.watch.follow import LiveMetrics, modified
from spintune.watch.resources import ResourceWatch, lock_holder
from spintune.watch.samples import NewestSamples
from spintune.watch.stages import StageList, stage_list

SILENT_SECONDS = 300.0
"""A run whose files say that it works, of which no process is on this machine, and that wrote nothing for longer, may
be dead."""

_DECIDING = ("recipe.json", "results.json", "best.json")


class Watched(Protocol):
    """What a live page shows: its parts as HTML by name, and ``title`` and ``line`` as texts."""

    shown: dict[str, str]

    def look(self) -> None:
        """Looks again, and replaces in ``shown`` what changed. Never raises for what a folder holds or lacks."""


@dataclass
class WatchedRun:
    """The folder of one run, which may be empty, be deleted, or begin anew at any time."""

    folder: Path
    name: str
    shown: dict[str, str] = field(default_factory=dict)
    _run: RunFacts | None = None
    _files: tuple[object, ...] = ()
    _sign: float = 0.0
    _was_there: bool = False

    def __post_init__(self) -> None:
        self._begin_anew()

    def _begin_anew(self) -> None:
        self.metrics = LiveMetrics(self.folder / "metrics.jsonl")
        self.samples = NewestSamples(self.folder)
        self.resources = ResourceWatch()
        self._run, self._files, self._drawn_final = None, (), False
        self.shown = dict.fromkeys((*parts.PARTS, "line"), "")

    def look(self) -> None:
        """Looks at the folder again."""
        if not (self.folder / "recipe.json").is_file():
            self._begin_anew()
            told = f"{self.folder} was deleted." if self._was_there and not self.folder.exists() else ""
            self.shown |= {"title": self.name, "line": told}
            waiting = "deleted" if told else "waiting: no run has begun here yet"
            self.shown["head"] = parts.head(self.name, "waiting", waiting)
            return
        self._was_there = True
        pid = lock_holder(self.folder / "run.lock")
        changed = self._read()
        if self.metrics.look() or changed:
            self._draw_curves()
        if self.samples.look():
            self.shown["samples"] = parts.samples(self.samples.found)
        run = self._run
        if run is None:
            return
        state, working = self._state(run, pid)
        listed = stage_list(run, self.metrics.by_stage, working)
        text = _status_text(state, listed, self._quiet_for())
        self.shown["stages"] = parts.stages(listed, self.resources.look(pid))
        self.shown["title"] = _title(self.name, state, listed)
        if changed or text != self._text:
            self._text = text
            self.shown["head"] = parts.head(self.name, state, text, run)
        self.shown["nav"] = parts.links(self.shown)

    _text: str = ""

    def _read(self) -> bool:
        """Reads the run again when a stage has finished, or begun anew. Returns whether it did."""
        files = tuple(_finished(self.folder))
        if files == self._files:
            return False
        try:
            self._run = read_run(self.folder)
        except SpintuneError as error:  # damaged, of another version, or just being replaced
            self.shown["line"] = str(error)
            if self._run is None:
                self.shown |= {"title": self.name, "head": parts.head(self.name, "silent", "cannot be read")}
            return False
        self._files = files
        self.shown |= {"line": "", "rest": parts.rest(self._run)}
        return True

    def _draw_curves(self) -> None:
        if self._run is None:
            return
        known = {**self._run.metrics, **self.metrics.by_stage}
        run = replace(self._run, metrics=known)
        try:
            self.shown["curves"] = parts.live_curves(run) if run.missing else parts.all_curves(run)
        except (KeyError, TypeError, ValueError) as error:  # rows of another version
            self.shown["line"] = f"{self.folder / 'metrics.jsonl'}: cannot be drawn ({type(error).__name__}: {error})"

    def _state(self, run: RunFacts, pid: int | None) -> tuple[str, bool]:
        """How the run stands, and whether a process works on it as far as this machine can see."""
        if pid is not None:
            return "running", True
        if not run.missing:
            return "finished", False
        try:
            marked = (self.folder / "run.lock").stat().st_size > 0
        except OSError:
            marked = False
        if not marked:
            return "stopped", False
        return ("running", True) if self._quiet_for() < SILENT_SECONDS else ("silent", False)

    def _quiet_for(self) -> float:
        """Seconds since the run wrote anything."""
        files = (self.folder / "run.lock", self.folder / "recipe.json", *self.folder.rglob("*.jsonl"))  # also shards
        newest = max(*map(modified, files), *(at for _, at, _ in _stamps(self.folder)))
        return max(0.0, time.time() - newest)


def _finished(folder: Path) -> Iterator[object]:
    """Names, times and sizes of what the report is made of."""
    for name in _DECIDING:
        yield name, modified(folder / name)
    yield from _stamps(folder)


def _stamps(folder: Path) -> list[tuple[str, float, int]]:
    found = []
    for path in stage_manifests(folder):
        try:
            status = path.stat()
        except OSError:
            continue
        found.append((str(path), status.st_mtime, status.st_size))
    return found


def _status_text(state: str, listed: StageList, quiet: float) -> str:
    current = listed.current
    if state == "finished":
        return "finished"
    if state == "stopped":
        return "not running; the command that started it goes on with it"
    if state == "silent":
        return f"no sign of life for {about_text(quiet)}: killed, or its machine is gone"
    text = f"running: stage {listed.number} of {len(listed.stages)}, {current.name}" if current else "running"
    return f"{text}; {parts.left_text(listed.left.seconds, listed.left.at_least)}" if listed.left and current else text


def _title(name: str, state: str, listed: StageList) -> str:
    done = f"{listed.number} of {len(listed.stages)}" if state == "running" and listed.stages else state
    return f"{done} · {name}"
