"""What a tracker is, and the table of trackers that recipes can name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Protocol

from spintune.errors import MissingExtraError
from spintune.plugins import Table

OUTCOME = "outcome"
"""The stage under which a tracker that would write the decision anew at each start notes that it has it."""


@dataclass(frozen=True)
class TrackedRun:
    """The run that a tracker follows.

    Attributes:
        folder: of the run.
        id: stays the same when the run is stopped and goes on, or its folder is moved. A :class:`SentOnce` gets another
            one when a stage is trained on other inputs.
        group: the sweep that the run belongs to; None without one.
        recipe: the resolved recipe as plain JSON.
        sent: the last step of each stage that this tracker has, also from earlier processes. A tracker that cannot take
            numbers back leaves out steps up to it; spintune keeps it up to date after each :meth:`Tracker.add`. What a
            new tracker removes from it here is sent again.
        was_killed: the last process did not end by itself, so that what it had not stored is lost.
    """

    folder: Path
    id: str
    group: str | None = None
    recipe: Mapping[str, object] = field(default_factory=dict)
    sent: dict[str, int] = field(default_factory=dict)
    was_killed: bool = False

    @property
    def name(self) -> str:
        """What people call the run: the name of its folder."""
        return self.folder.resolve().name

    @property
    def title(self) -> str:
        """The name, after that of the sweep."""
        return f"{self.group}/{self.name}" if self.group else self.name


class Tracker(Protocol):
    """Receives the numbers of one run. It is made anew when a stopped run goes on.

    Whatever it raises becomes one line, and the run goes on without it. What it missed comes at the next start.
    """

    def begin(self, stage: str, step: int) -> None:
        """A stage starts or resumes after ``step``, -1 before step 0.

        Later numbers of an earlier attempt are void: they come again.
        """

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Numbers of one step: loss, grad_norm, learning_rate, ...; what is measured before training has step 0.

        In the stages ``eval/heldout``, ``eval/ifeval`` and so on, step 1 is the first model of the run, 2 the second.
        """

    def finish(self, facts: Mapping[str, str]) -> None:
        """The run is complete: the model to use, why, and the models of the evaluations in order."""

    def close(self) -> None:
        """The process ends, the run finished or not."""


class SentOnce:
    """Base of trackers that cannot take numbers back: each step of a stage is passed to :meth:`log` once."""

    def __init__(self, run: TrackedRun) -> None:
        self.run = run

    def begin(self, stage: str, step: int) -> None:
        """Nothing is void: a resumed run computes the same numbers again."""

    def add(self, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        if step > self.run.sent.get(stage, -1):
            others = sum(last + 1 for name, last in self.run.sent.items() if name != stage)
            self.log(others + step, stage, step, numbers)

    def log(self, place: int, stage: str, step: int, numbers: Mapping[str, float]) -> None:
        """Sends the numbers of a step. ``place`` grows from each call to the next, over all stages and processes."""
        raise NotImplementedError


TrackerFactory = Callable[[TrackedRun], Tracker]
"""Makes the tracker of a run. Raises MissingExtraError where a package is not installed."""


def require(module: str, tracker: str) -> ModuleType:
    """Imports a tracker's package. Raises MissingExtraError."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"tracking: {tracker} cannot be imported ({error}); pip install 'spintune[{tracker}]', "
            "or drop it from the recipe"
        ) from None


def _built_in(module: str, kind: str) -> TrackerFactory:
    """The factory of a tracker whose module is imported when a run asks for it."""

    def make(run: TrackedRun) -> Tracker:
        tracker: Tracker = getattr(importlib.import_module(f"spintune.trackers.{module}"), kind)(run)
        return tracker

    return make


TRACKERS: Table[TrackerFactory] = Table(
    "tracker",
    "spintune.trackers",
    {
        "tensorboard": _built_in("tensorboard", "TensorBoard"),
        "trackio": _built_in("trackio", "Trackio"),
        "wandb": _built_in("wandb", "WeightsAndBiases"),
        "mlflow": _built_in("mlflow", "MLflow"),
    },
    {"tb": "tensorboard", "weights_and_biases": "wandb", "weights and biases": "wandb", "w&b": "wandb"},
)


def register_tracker(name: str, factory: TrackerFactory) -> None:
    """Makes ``tracking: NAME`` possible in recipes. Raises RecipeError when the name is taken."""
    TRACKERS.register(name, factory)
