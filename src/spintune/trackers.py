"""Where the numbers of a run go besides ``metrics.jsonl``: TensorBoard, or a tracker of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from spintune.errors import MissingExtraError
from spintune.plugins import Table


class Tracker(Protocol):
    """Receives the numbers of one run. It is made anew when a stopped run goes on."""

    def begin(self, stage: str, step: int) -> None:
        """A stage starts or resumes after ``step``. Later numbers of an earlier attempt are void: they come again."""

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one step, 1 and up: loss, grad_norm, learning_rate, ..."""

    def close(self) -> None:
        """The run ends, finished or not."""


class TensorBoard:
    """Event files in the run folder. Raises MissingExtraError when tensorboard is not installed."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise MissingExtraError(
                "tracking: tensorboard is not installed; pip install 'spintune[tracking]' or drop it from the recipe"
            ) from None
        self._open, self._folder = SummaryWriter, folder / "tensorboard"
        self._writers: dict[str, Any] = {}

    def begin(self, stage: str, step: int) -> None:
        self._writers[stage] = self._open(str(self._folder / stage), purge_step=step + 1)

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if stage in self._writers:
            for name, value in numbers.items():
                self._writers[stage].add_scalar(name, value, step)
            self._writers[stage].flush()

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()


TrackerFactory = Callable[[Path], Tracker]
"""Makes the tracker of a run from its folder. Errors of a missing package or account are raised here."""

TRACKERS: Table[TrackerFactory] = Table("tracker", "spintune.trackers", {"tensorboard": TensorBoard})


def register_tracker(name: str, factory: TrackerFactory) -> None:
    """Makes ``tracking: [name]`` possible in recipes. Raises RecipeError when the name is taken."""
    TRACKERS.register(name, factory)
