"""Progress reporting for long work: the library counts, the command line draws. Work stops where it reports."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class ExpectedTask:
    """A task that a stage is expected to have.

    Attributes:
        unit: of the task; says what kind of work it is (:data:`KINDS`).
        items: about how many of them.
        tokens: about how many tokens go through the model for each.
    """

    unit: str
    items: float
    tokens: float


@dataclass(frozen=True)
class ExpectedStage:
    """A stage that a run is expected to have. ``tasks`` is None where nobody can say what it takes."""

    name: str
    tasks: tuple[ExpectedTask, ...] | None = ()


TRIAL_STEPS = "trial steps"
"""Optimizer steps of short runs that find a learning rate."""
KINDS = {"steps": "train", TRIAL_STEPS: "train", "answers": "generate", "pairs": "score", "references": "score"}
"""The kind of work that one unit of a task is. Tasks in other units count for no expectation."""


class ProgressTask(Protocol):
    """One counted piece of work."""

    def advance(
        self,
        amount: float = 1,
        safe: bool = True,
        restored: bool = False,
        under_way: float | None = None,
        **facts: object,
    ) -> None:
        """Counts ``amount`` more units as done.

        Args:
            safe: whether work may stop here (:class:`StopRequest`).
            restored: an earlier command did them, so they say nothing about how long the others take.
            under_way: of units that are worked on at once, the tokens that are done of those that are not: a task
                of sixty answers has none for long, and is far by then. None leaves it as it was.
            facts: what is shown beside the bar, such as the loss; a pair is what it was before and is after.
        """


class Progress(Protocol):
    """Receives the stages of a run, the progress of tasks, and notes for the user."""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Takes what a run is going to do, in order; again when more is known."""

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Begins an expected stage, which ends with the context. Others are not shown."""

    def task(self, name: str, total: float, unit: str) -> contextlib.AbstractContextManager[ProgressTask]:
        """Begins a task of ``total`` ``unit``s, infinite where nobody knows, which ends with the context."""

    def note(self, text: str) -> None:
        """Shows one line of text."""


class StopRequest:
    """A request that work ends at its next safe point.

    Work is at a safe point whenever it reports progress or begins a training step, except inside :meth:`held`.
    """

    def __init__(self) -> None:
        self._ending: BaseException | None = None
        self._holds = 0

    @property
    def is_held(self) -> bool:
        """Whether work is inside something that must not be torn apart."""
        return self._holds > 0

    @property
    def is_asked(self) -> bool:
        """Whether work is to end."""
        return self._ending is not None

    def ask(self, ending: BaseException) -> None:
        """From now on, every safe point raises ``ending``."""
        self._ending = ending

    def check(self) -> None:
        """A safe point: raises what was asked for, if anything was."""
        if self._ending is not None and not self._holds:
            raise self._ending

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """No point inside is a safe one, such as between an update of the weights and its line in the metrics."""
        self._holds += 1
        try:
            yield
        finally:
            self._holds -= 1


class StoppableProgress:
    """Progress whose every report is a safe point of a stop request."""

    def __init__(self, progress: Progress, stop: StopRequest) -> None:
        self._progress, self._stop = progress, stop

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        if hasattr(self._progress, "expect"):  # a user's own may have tasks and notes alone
            self._progress.expect(stages)

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return self._progress.stage(name) if hasattr(self._progress, "stage") else contextlib.nullcontext()

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        self._stop.check()
        with self._progress.task(name, total, unit) as task:
            yield _StoppableTask(task, self._stop)

    def note(self, text: str) -> None:
        self._progress.note(text)
        self._stop.check()


class _StoppableTask:
    def __init__(self, task: ProgressTask, stop: StopRequest) -> None:
        self._task, self._stop = task, stop

    def advance(
        self,
        amount: float = 1,
        safe: bool = True,
        restored: bool = False,
        under_way: float | None = None,
        **facts: object,
    ) -> None:
        known = {**facts, "restored": True} if restored else facts
        known = known if under_way is None else {**known, "under_way": under_way}
        self._task.advance(amount, **known)  # type: ignore[arg-type]  # no fact has the name of another parameter
        if safe:
            self._stop.check()


class _SilentTask:
    def advance(
        self,
        amount: float = 1,
        safe: bool = True,
        restored: bool = False,
        under_way: float | None = None,
        **facts: object,
    ) -> None:
        pass


class Silent:
    """Shows nothing."""

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        pass

    def stage(self, name: str) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[ProgressTask]:
        yield _SilentTask()

    def note(self, text: str) -> None:
        pass


_QUICK = 20_000
"""Records that are handled in well under two seconds."""


def unless_quick(progress: Progress, records: int) -> Progress:
    """The progress for work on so many records of a simple kind; silent where there is nothing to wait for."""
    return progress if records >= _QUICK else Silent()
