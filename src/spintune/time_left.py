"""About how long a stage and a whole run will take: expected work at the rates that were measured so far.

A stage's work is known in tokens before it begins, by kind: training, scoring, writing. Its time follows from the
seconds per token of that kind, measured in this process, late stages counting more than early ones. A kind that was not
measured yet is taken to cost :data:`RELATIVE_COST` beside those that were. What a stage takes beyond its tasks, such as
loading and saving a model, is the mean of the stages so far.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from spintune.progress import KINDS, ExpectedStage

RELATIVE_COST = {"score": 1.0, "train": 3.5, "generate": 3.0}
"""Seconds per token beside those of scoring, for a kind of work that was not measured yet. Training is a forward, a
backward of twice its arithmetic, and the optimizer's pass over the weights; how much slower writing is depends on model
and batch, so it is a guess until then."""

_NEARLY = 0.9  # of the items that are not done, at most, however much longer they are than expected
_WARM_UP = 0.1
"""Share of answers that are written at once before their time says how long the others take: their prompts are read in
it. It counts when all are done."""
_FORGET = 0.5  # of what earlier stages measured, at the end of each stage


@dataclass(eq=False)
class TimedTask:
    """A task under way. Its time does not count while another one runs inside of it."""

    name: str
    total: float
    unit: str
    began: float
    work: _Work | None = None
    done: float = 0.0
    restored: float = 0.0
    """Items of them that an earlier process did."""
    under_way: float = 0.0
    """About how many items the work on those that are not done is worth."""
    warming_up: bool | None = None
    """None before the first tokens."""
    warm_up_items: float = 0.0
    warm_up_seconds: float = 0.0
    measured: float = 0.0
    """Items that this process did."""
    seconds: float = 0.0
    pending: float = 0.0
    """Seconds since the last item was done."""

    @property
    def has_end(self) -> bool:
        """Whether it is known how many items there are."""
        return 0 < self.total < math.inf

    @property
    def item_seconds(self) -> float | None:
        """Mean time of an item so far; None before the first."""
        return self.seconds / self.measured if self.measured > 0 and self.seconds > 0 else None

    @property
    def left(self) -> float | None:
        """Seconds until the task is done, by its own rate."""
        each = self.item_seconds
        return (
            None
            if each is None or not self.has_end
            else max(0.0, (self.total - self.done - self.under_way) * each - self.pending)
        )


@dataclass
class _Work:
    """Expected work: ``items`` becomes what a task says, once it begins."""

    unit: str
    items: float
    tokens: float
    done: float = 0.0
    began: bool = False
    ended: bool = False

    @property
    def kind(self) -> str:
        return KINDS[self.unit]

    @property
    def cost(self) -> float:
        """Tokens that are left."""
        return 0.0 if self.ended else max(0.0, self.items - self.done) * self.tokens


@dataclass
class _Measured:
    """Seconds and tokens of one kind of work."""

    seconds: float = 0.0
    tokens: float = 0.0


@dataclass
class _Stage:
    name: str
    works: list[_Work] | None
    began: float = 0.0
    beside: float = 0.0
    """Seconds outside of its tasks."""
    worked: bool = False
    """Whether it began a task."""

    def begin(self, unit: str) -> _Work | None:
        """The work that a task of this unit begins, if it is expected. Earlier work of that kind is left out, then."""
        works = self.works or []
        place = next((place for place, one in enumerate(works) if one.unit == unit and not one.began), None)
        if place is None:
            return None
        for earlier in works[:place]:
            earlier.ended = earlier.ended or (earlier.kind == KINDS[unit] and not earlier.began)
        works[place].began = True
        return works[place]


@dataclass(frozen=True)
class TimeLeft:
    """Seconds that are left. ``at_least`` where a stage is still to come of which nobody knows what it takes."""

    seconds: float
    at_least: bool = False


@dataclass
class RunTimes:
    """The stages of a run, which one is under way, and how long the rest takes."""

    now: Callable[[], float] = time.monotonic
    tasks: list[TimedTask] = field(default_factory=list)
    _stages: list[_Stage] = field(default_factory=list)
    _place: int = -1
    _inside: bool = False
    _rates: dict[str, _Measured] = field(default_factory=lambda: defaultdict(_Measured))
    _beside: list[float] = field(default_factory=list)
    _last: float | None = None

    # What happens ----------------------------------------------------------------------------------------------------

    def expect(self, stages: Sequence[ExpectedStage]) -> None:
        """Takes what a run is going to do, in order, or what is known of it by now.

        The stage under way stays; its work has the tokens that are expected now.
        """
        under_way = self._stages[self._place] if self._inside else None
        self._stages = [_Stage(one.name, _works(one)) for one in stages]
        self._place = -1
        if under_way is not None and (place := self._find(under_way.name, 0)) is not None:
            for work, now in zip(under_way.works or (), self._stages[place].works or (), strict=False):
                work.tokens = now.tokens
            self._stages[place], self._place = under_way, place

    def begin_stage(self, name: str) -> bool:
        """Enters a stage; False for one that is not expected, which then does not count."""
        place = self._find(name, self._place + 1)
        if place is None or self._inside:
            return False
        self._tick()
        self._place, self._inside = place, True
        self._stages[place].began = self.now()
        return True

    def end_stage(self) -> None:
        """Leaves the stage, and lets earlier stages count less than it from now on."""
        self._tick()
        stage, self._inside = self._stages[self._place], False
        if stage.worked:
            self._beside.append(stage.beside)
            for measured in self._rates.values():
                measured.seconds *= _FORGET
                measured.tokens *= _FORGET

    def begin_task(self, name: str, total: float, unit: str) -> TimedTask:
        """Begins a task of the stage under way, if there is one."""
        self._tick()
        task = TimedTask(name, total, unit, self.now())
        if self._inside:
            stage = self._stages[self._place]
            stage.worked = True
            task.work = stage.begin(unit)
            if task.work:
                task.work.items = total if task.has_end else task.work.items
        self.tasks.append(task)
        return task

    def advance(self, task: TimedTask, amount: float, restored: bool = False, under_way: float | None = None) -> None:
        """Counts items of a task, with the time since the last ones; of restored ones it says nothing.

        Args:
            under_way: tokens of items that are not done; None leaves them as they were.
        """
        self._tick()
        before = task.done + task.under_way
        task.done += amount
        task.restored += amount if restored else 0.0
        if task.work and under_way is not None:
            if task.warming_up is None and not restored:
                task.warming_up = True
            whole = max(0.0, task.total - task.done)
            task.under_way = min(under_way / task.work.tokens, _NEARLY * whole) if task.work.tokens else 0.0
        moved = task.done + task.under_way - before
        if task.work:
            task.work.done += moved
        if task.warming_up and not restored:
            self._warm_up(task, moved)
        elif not restored:
            self._measure(task, moved)

    @staticmethod
    def _warm_up(task: TimedTask, moved: float) -> None:
        """Sets the first answers' time apart, until there is enough of them or one was written by itself."""
        task.warm_up_items += moved
        task.warm_up_seconds += task.pending
        task.pending = 0.0
        done = task.done - task.restored
        enough = done + task.under_way >= _WARM_UP * (task.total - task.restored)
        task.warming_up = not (enough or (done and task.under_way < 1))

    def end_task(self, task: TimedTask) -> None:
        """Ends a task. Others that began later may be under way beside it, as downloads are."""
        self._tick()
        task.pending += task.warm_up_seconds
        self._measure(task, task.warm_up_items)
        if task.work:
            task.work.ended = True
        if task in self.tasks:
            self.tasks.remove(task)

    def _measure(self, task: TimedTask, amount: float) -> None:
        task.seconds += task.pending
        task.measured += amount
        if task.work:
            rate = self._rates[task.work.kind]
            rate.seconds += task.pending
            rate.tokens += amount * task.work.tokens
        task.pending = 0.0

    def _tick(self) -> None:
        """Gives the time since the last event to the innermost task, or to the stage."""
        now = self.now()
        passed = 0.0 if self._last is None else now - self._last
        self._last = now
        if self.tasks:
            self.tasks[-1].pending += passed
        elif self._inside:
            self._stages[self._place].beside += passed

    def _find(self, name: str, start: int) -> int | None:
        return next((n for n, one in enumerate(self._stages[start:], start) if one.name == name), None)

    # What can be asked -----------------------------------------------------------------------------------------------

    @property
    def stage(self) -> str | None:
        """The name of the stage under way."""
        return self._stages[self._place].name if self._inside else None

    @property
    def number(self) -> int:
        """The number of the stage under way, from 1."""
        return self._place + 1

    @property
    def count(self) -> int:
        """How many stages there are."""
        return len(self._stages)

    @property
    def worked(self) -> bool:
        """Whether the stage had anything to do so far."""
        return self._place >= 0 and self._stages[self._place].worked

    @property
    def measured(self) -> float:
        """Seconds of work of a known kind that were measured."""
        return sum(one.seconds for one in self._rates.values())

    @property
    def stage_seconds(self) -> float:
        """How long the stage has been under way."""
        return self.now() - self._stages[self._place].began

    def stage_left(self) -> float | None:
        """Seconds until the stage under way ends; None where nothing was measured yet."""
        self._tick()
        stage = self._stages[self._place] if self._inside else None
        if stage is None or not stage.works:
            return self.tasks[-1].left if self.tasks else None
        left = self._seconds(stage.works)
        if left is None:
            return None
        return max(0.0, left - sum(task.pending for task in self.tasks if task.work))

    def run_left(self) -> TimeLeft | None:
        """Time until the run ends; None where that of the stage, or of later ones, is not known."""
        here = self.stage_left() if self._inside else 0.0
        later = self._stages[self._place + 1 :]
        known = [self._seconds(one.works) for one in later if one.works is not None]
        if here is None or not self._stages or None in known:
            return None
        beside = sum(self._beside) / len(self._beside) if self._beside else 0.0
        total = here + sum(one for one in known if one) + beside * len(later)
        return TimeLeft(total, any(one.works is None for one in later))

    def share_done(self) -> float | None:
        """The share of the stage that is done, by expected time; of the task alone where nothing is expected."""
        stage = self._stages[self._place] if self._inside else None
        if stage is None or not stage.works:
            task = self.tasks[-1] if self.tasks else None
            return min(1.0, task.done / task.total) if task and task.has_end else None
        weights = [self._second(one.kind) or RELATIVE_COST[one.kind] for one in stage.works]
        whole = sum(one.items * one.tokens * weight for one, weight in zip(stage.works, weights, strict=True))
        left = sum(one.cost * weight for one, weight in zip(stage.works, weights, strict=True))
        return 1 - left / whole if whole else None

    def _seconds(self, works: Sequence[_Work]) -> float | None:
        """Seconds that expected work takes; None where nothing was measured."""
        total = 0.0
        for one in works:
            if one.cost:
                each = self._second(one.kind)
                if each is None:
                    return None
                total += one.cost * each
        return total

    def _second(self, kind: str) -> float | None:
        """Seconds for a token of a kind of work."""
        rate = self._rates.get(kind)
        if rate and rate.tokens and rate.seconds:
            return rate.seconds / rate.tokens
        measured = [(known, one) for known, one in self._rates.items() if one.tokens and one.seconds]
        costs = sum(RELATIVE_COST[known] * one.tokens for known, one in measured)
        return RELATIVE_COST[kind] * sum(one.seconds for _, one in measured) / costs if costs else None


def _works(stage: ExpectedStage) -> list[_Work] | None:
    if stage.tasks is None:
        return None
    return [_Work(task.unit, task.items, task.tokens) for task in stage.tasks]
