"""Numbers of a run over time: metrics.jsonl always, TensorBoard when the recipe asks for it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from spintune.errors import MissingExtraError
from spintune.run import StepLog


class Metrics:
    """Writes each step of each stage once, to every place the recipe names."""

    def __init__(self, folder: Path, tracking: Sequence[str]) -> None:
        self._log = StepLog(folder / "metrics.jsonl")
        self._folder = folder / "tensorboard" if "tensorboard" in tracking else None
        self._writers: dict[str, Any] = {}
        if self._folder:
            _summary_writer()

    def begin(self, stage: str, step: int) -> None:
        """The stage starts, or goes on, behind ``step``: later entries of an earlier attempt are dropped."""
        self._log.rewind(stage, step)
        if self._folder:
            self._writers[stage] = _summary_writer()(str(self._folder / stage), purge_step=step + 1)

    def add(self, stage: str, step: int, **facts: float) -> None:
        self._log.append(stage, step, **facts)
        if stage in self._writers:
            for name, value in facts.items():
                self._writers[stage].add_scalar(name, value, step)
            self._writers[stage].flush()

    def close(self) -> None:
        self._log.close()
        for writer in self._writers.values():
            writer.close()


class Stopwatch:
    """How long each kind of work takes. Work inside other work counts for itself alone.

    Attributes:
        seconds: by name of the work; of this process, so a resumed stage counts what it did since.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inside = [0.0]

    @contextlib.contextmanager
    def __call__(self, work: str) -> Iterator[None]:
        started = time.monotonic()
        self._inside.append(0.0)
        try:
            yield
        finally:
            whole = time.monotonic() - started
            self.seconds[work] = self.seconds.get(work, 0.0) + whole - self._inside.pop()
            self._inside[-1] += whole


def flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested facts as one level, ``{"a": {"b": 1}}`` as ``{"a/b": 1}``; what is None is left out."""
    level: dict[str, float] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            level |= flat(value, f"{prefix}{key}/")
        elif value is not None:
            level[f"{prefix}{key}"] = value
    return level


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise MissingExtraError(
            "tracking: tensorboard is not installed; pip install 'spintune[tracking]' or drop it from the recipe"
        ) from None
    return SummaryWriter
