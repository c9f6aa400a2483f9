"""Records the numbers of a run over time, in metrics.jsonl and in the recipe's trackers, and how long work takes."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from spintune.run_folder import MANIFEST
from spintune.step_log import StepLog
from spintune.trackers import TRACKERS

log = logging.getLogger(__name__)


class Metrics:
    """Writes each step of each stage once, into metrics.jsonl and to every tracker that the recipe names."""

    def __init__(self, folder: Path, tracking: Sequence[str]) -> None:
        self._log = StepLog(folder / "metrics.jsonl")
        if not self._log.path.exists() and (stage := next(_trained(folder), None)):
            log.warning(
                "%s is gone, with the steps of %s: reports lack their curves; the weights do not depend on them",
                self._log.path,
                stage,
            )
        self._log.mend()
        self._trackers = [TRACKERS[name](folder) for name in tracking]

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
        for tracker in self._trackers:
            tracker.begin(stage, step)
        return self._log.rewind(stage, step)

    def add(self, stage: str, step: int, **facts: float) -> None:
        """Writes the numbers of one step."""
        self._log.append(stage, step, **facts)
        for tracker in self._trackers:
            tracker.add(stage, step, facts)

    def sync(self) -> None:
        """Puts the log on disk, where a power cut does not reach it."""
        self._log.sync()

    def close(self) -> None:
        """Closes the log and every tracker."""
        self._log.close()
        for tracker in self._trackers:
            tracker.close()


def _trained(folder: Path) -> Iterator[str]:
    """The stages of a run that are finished and logged steps."""
    for stage in ("sft", "spin/iterate-1"):
        if (folder / stage / MANIFEST).is_file():
            yield stage


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
