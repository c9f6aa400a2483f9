"""Records the numbers of a run over time, in metrics.jsonl and in the recipe's trackers, and how long work takes."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from spintune.errors import MissingExtraError, RunError, StorageError
from spintune.run_folder import MANIFEST
from spintune.step_log import StepLog
from spintune.storage import read_json, read_json_lines, write_json_if_changed
from spintune.text.words import one_line
from spintune.trackers import OUTCOME, TRACKERS, SentOnce, TrackedRun, Tracker
from spintune.typed_json import JsonObject, from_json, to_json

log = logging.getLogger(__name__)

STATE = "tracking.json"


class Metrics:
    """Writes each step of each stage once, into metrics.jsonl and to every tracker that the recipe names.

    Args:
        recipe: what trackers show as the settings of the run.

    Raises MissingExtraError when the package of a tracker is not installed.
    """

    def __init__(self, folder: Path, tracking: Sequence[str], recipe: Mapping[str, object] | None = None) -> None:
        self._log = StepLog(folder / "metrics.jsonl")
        if not self._log.path.exists() and (stage := next(_trained(folder), None)):
            log.warning(
                "%s is gone, with the steps of %s: reports lack their curves; the weights do not depend on them",
                self._log.path,
                stage,
            )
        self._log.mend()
        self._trackers = _Trackers(folder, tracking, recipe or {}, self._log.path) if tracking else None

    def trains(self, stage: str, inputs: str) -> None:
        """The stage is trained, or copied, for inputs of this digest. Trackers forget its numbers for other inputs."""
        if self._trackers:
            self._trackers.trains(stage, inputs)

    def begin(self, stage: str, step: int) -> None:
        """The stage starts or resumes after ``step``: later entries of an earlier attempt are dropped."""
        self._begin(stage, step)

    def begin_steps(self, stage: str, step: int) -> None:
        """Like :meth:`begin` for a stage that logs each step: those up to ``step`` are there, or a line tells."""
        last = self._begin(stage, step)
        if last < step:
            lost = f"steps {last + 1} to {step} of {stage}"  # steps without rows have no line either
            log.warning("%s has no lines for %s; the weights do not depend on them", self._log.path, lost)

    def _begin(self, stage: str, step: int) -> int:
        if self._trackers:
            self._trackers.begin(stage, step)
        return self._log.rewind(stage, step)

    def add(self, stage: str, step: int, **facts: float) -> None:
        """Writes the numbers of one step."""
        self._log.append(stage, step, **facts)
        if self._trackers:
            self._trackers.add(stage, step, facts)

    def sync(self) -> None:
        """Puts the log on disk, where a power cut does not reach it."""
        self._log.sync()

    def places(self) -> list[str]:
        """Where to look at what the trackers got, a line for each that says so."""
        return self._trackers.places() if self._trackers else []

    def finish(self, evaluations: Mapping[str, Mapping[str, Mapping[str, float]]], facts: Mapping[str, str]) -> None:
        """Gives trackers what a complete run found out.

        Args:
            evaluations: by name, then by model in order, then by measure.
            facts: the decision in words.
        """
        if self._trackers:
            self._trackers.finish(evaluations, facts)

    def close(self) -> None:
        """Closes the log and every tracker."""
        self._log.close()
        if self._trackers:
            self._trackers.close()


def _trained(folder: Path) -> Iterator[str]:
    """The stages of a run that are finished and logged steps."""
    for stage in ("sft", "spin/iterate-1"):
        if (folder / stage / MANIFEST).is_file():
            yield stage


# Trackers ------------------------------------------------------------------------------------------------------------


@dataclass
class _TrackerState:
    """What a tracker has of a run.

    Attributes:
        sent: the last step of each stage.
        open: a process sends to it, or was killed while it did; then it also has what metrics.jsonl has.
        restarts: how often it was given another run, because a stage was trained on other inputs.
        held: stages of metrics.jsonl that may be trained again too, so that it gets them with the end of the run.
    """

    sent: dict[str, int] = field(default_factory=dict)
    open: bool = False
    restarts: int = 0
    held: list[str] = field(default_factory=list)


@dataclass
class _TrackingState:
    """``tracking.json``: under which id trackers know the run, what each has, and the digest of each stage's inputs."""

    id: str
    trackers: dict[str, _TrackerState] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)


class _Trackers:
    """The trackers of one run. One that fails is told in a line and left; the next start sends what it missed."""

    def __init__(self, folder: Path, names: Sequence[str], recipe: Mapping[str, object], numbers: Path) -> None:
        self._folder, self._recipe, self._numbers = folder, recipe, numbers
        self._path = folder / STATE
        is_new = not self._path.exists()
        self._state = self._read()
        rows = self._rows()
        self._open: dict[str, Tracker] = {}
        states = {name: self._state.trackers.setdefault(name, _TrackerState()) for name in names}
        killed = {name: state.open for name, state in states.items()}
        for state in states.values():
            for row in rows if state.open else ():
                if row["stage"] not in state.held:
                    _raise_to(state.sent, row["stage"], row["step"])
            state.open = True
        self._write()  # before a tracker makes a run of this id
        try:
            for name in states:
                with self._guarded(name):
                    self._start(name, killed[name])
        except MissingExtraError:
            self.close()
            if is_new:
                self._path.unlink(missing_ok=True)
            raise
        for name in list(self._open):
            self._catch_up(name, rows)

    def _read(self) -> _TrackingState:
        try:
            if self._path.exists():
                return from_json(_TrackingState, read_json(self._path), self._path)
        except RunError as error:
            log.warning("%s; trackers show what follows as another run", error)
        return _TrackingState(secrets.token_hex(6))

    def _rows(self) -> Sequence[JsonObject]:
        return read_json_lines(self._numbers) if self._numbers.is_file() else []

    def _write(self) -> None:
        try:
            write_json_if_changed(self._path, to_json(self._state))
        except StorageError as error:  # no reason to end a run
            log.warning("%s", error)

    def _start(self, name: str, was_killed: bool) -> None:
        state, sweep = self._state.trackers[name], self._folder.resolve().parent
        group = sweep.name if (sweep / "sweep.json").is_file() else None
        id = f"{self._state.id}-{state.restarts}" if state.restarts else self._state.id
        self._open[name] = TRACKERS[name](TrackedRun(self._folder, id, group, self._recipe, state.sent, was_killed))

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Leaves a tracker that raises an error, which becomes a line."""
        try:
            yield
        except MissingExtraError:
            raise
        except Exception as error:  # whatever its package raises: training goes on
            self._open.pop(name, None)
            log.warning(
                "tracking: %s failed (%s); the run goes on without it, metrics.jsonl has its numbers, and the next "
                "start sends them",
                name,
                one_line(f"{type(error).__name__}: {error}")[:300],
            )
            self._state.trackers[name].open = False
            self._write()

    def trains(self, stage: str, inputs: str) -> None:
        known = self._state.inputs.get(stage, inputs)
        self._state.inputs[stage] = inputs
        if known != inputs:
            for name in self._state.trackers:
                self._forget(name, stage)
        self._write()

    def _forget(self, name: str, stage: str) -> None:
        """Has a tracker forget a stage, and what was measured after it. One that cannot gets another run."""
        state = self._state.trackers[name]
        old = [one for one in state.sent if f"{one}/".startswith(f"{stage}/")]
        if not old:
            return
        if name in self._open and not isinstance(self._open[name], SentOnce):
            for one in [*old, *(one for one in state.sent if one == OUTCOME or one.startswith("eval/"))]:
                del state.sent[one]
            return
        self._call(name, lambda one: one.close())
        state.sent.clear()
        state.restarts += 1
        state.held = list(dict.fromkeys(row["stage"] for row in self._rows()))
        if self._open.pop(name, None) is None:
            return
        log.warning(
            "tracking: %s cannot take numbers back, and %s is trained on other inputs; what follows is another run "
            "there, %s-%d",
            name,
            stage,
            self._state.id,
            state.restarts,
        )
        with self._guarded(name):
            self._start(name, was_killed=False)

    def _catch_up(self, name: str, rows: Iterable[JsonObject]) -> None:
        """Sends what metrics.jsonl has and the tracker lacks, such as one that the recipe did not name before."""
        begun: set[str] = set()
        sent, held = self._state.trackers[name].sent, frozenset(self._state.trackers[name].held)
        for row in rows:
            stage, step = row["stage"], row["step"]
            numbers = {key: value for key, value in row.items() if key != "step" and isinstance(value, (int, float))}
            if stage in held or step <= sent.get(stage, -1):
                continue
            if stage not in begun:
                begun.add(stage)
                self._begin(name, stage, sent.get(stage, step - 1))
            self._add(name, stage, step, numbers)

    def _call(self, name: str, action: Callable[[Tracker], None]) -> None:
        if name in self._open:
            with self._guarded(name):
                action(self._open[name])

    def _begin(self, name: str, stage: str, step: int) -> None:
        if stage in (held := self._state.trackers[name].held):
            held.remove(stage)
            self._write()
        self._call(name, lambda one: one.begin(stage, step))

    def _add(self, name: str, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if name in self._open:
            with self._guarded(name):
                self._open[name].add(stage, step, numbers)
                _raise_to(self._state.trackers[name].sent, stage, step)

    def begin(self, stage: str, step: int) -> None:
        for name in list(self._open):
            self._begin(name, stage, step)

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        for name in list(self._open):
            self._add(name, stage, step, numbers)

    def places(self) -> list[str]:
        told = {name: getattr(tracker, "where", "") for name, tracker in self._open.items()}
        return [f"numbers also go to {name}: {where}" for name, where in told.items() if where]

    def finish(self, evaluations: Mapping[str, Mapping[str, Mapping[str, float]]], facts: Mapping[str, str]) -> None:
        for name in list(self._open):
            if held := self._state.trackers[name].held:
                held.clear()
                self._catch_up(name, self._rows())
        for evaluation, models in evaluations.items():
            stage = f"eval/{evaluation}"
            for name in list(self._open):
                sent = self._state.trackers[name].sent.get(stage, 0)
                if sent < len(models):
                    self._begin(name, stage, sent)
                for step, numbers in list(enumerate(models.values(), 1))[sent:]:
                    self._add(name, stage, step, numbers)
        for name in list(self._open):
            self._call(name, lambda one: one.finish(facts))

    def close(self) -> None:
        for name in list(self._open):
            self._call(name, lambda one: one.close())
            self._state.trackers[name].open = False
        self._open.clear()
        self._write()


def _raise_to(sent: dict[str, int], stage: str, step: int) -> None:
    sent[stage] = max(step, sent.get(stage, step))


# Time ----------------------------------------------------------------------------------------------------------------


class Stopwatch:
    """Measures how long each kind of work takes. Nested work counts only as itself, not as the work around it.

    Attributes:
        seconds: by name of the work, in this process: a resumed stage counts what it did since.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]

    @contextlib.contextmanager
    def __call__(self, work: str) -> Iterator[None]:
        """Measures the block as the named work."""
        started = time.monotonic()
        self._inside.append(0.0)
        try:
            yield
        finally:
            whole = time.monotonic() - started
            self.seconds[work] = self.seconds.get(work, 0.0) + whole - self._inside.pop()
            self._inside[-1] += whole


def flat(facts: Mapping[str, object], prefix: str = "") -> dict[str, float]:
    """The numbers of nested facts on one level: ``{"a": {"b": 1}}`` becomes ``{"a/b": 1}``; None is left out."""
    level: dict[str, float] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            level |= flat(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)):
            level[f"{prefix}{key}"] = value
    return level
