"""A ladder of short training runs that finds a learning rate.

Every rung is a whole short run: it has the schedule of one, and starts from the same weights. Adam's first steps are
not like its later ones: without gradient moments each weight moves by the full rate, so a few such steps favor low
rates. Therefore the first steps of a ladder, at rate 0, gather moments once, and every rung begins with them. They are
a checkpoint, so each rung starts equal to the bit, and so does the model after the ladder.

Rates are half decades apart. The search brackets the least loss by decades, then looks at half decades. For a long
stage of SFT the least loss is not what to choose: what a high rate stirs up at first, a longer run settles again, so a
short run understates it. Where the stage is at least eight times as long as a rung, the highest rate is chosen that
keeps half of the best rung's gain, or cannot be told from the best one. A shorter stage takes the least loss. So does
self-play, and then less for longer runs: at a small λ every step moves the player on, past the data, so what is right
for a few steps is too much for many. With Adam's noise it moves by about rate · √steps, and so the best rate of a rung
is multiplied by √(steps of the rung / steps of the stage).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, TypeVar

from torch import nn

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import NonFiniteError
from spintune.training.checkpoint import Checkpoints
from spintune.training.ladder_plan import MAX_RUNGS, LadderPlan
from spintune.training.loop import Steps, TrainingHooks, train
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization, build_optimizer

R = TypeVar("R")

MAX_RATE = 0.1
"""No higher rate is tried. Adam moves a weight by about the rate in a step, and weights begin at about 0.02: what a few
such steps find is another model, which a stage does not survive."""
_SETTLED = 8
"""A stage that many times as long as a rung has the time to settle what a high rate stirs up."""


# Where to look ------------------------------------------------------------------------------------------------------


def usual_rate(weights: int, adapters: bool, self_play: bool) -> float:
    """The rate in the middle of a ladder, a half decade; our choice.

    SFT: 1e-4 for 135 million weights, proportional to 1 / √weights, from 1e-5 to 3.2e-3. Adapters take ten times as
    much, self-play a third.
    """
    rate = min(3.2e-3, max(1e-5, 1e-4 * math.sqrt(135e6 / weights)))
    return _rounded(round(2 * math.log10(rate * (10 if adapters else 1) / (3 if self_play else 1))))


def _rounded(half_decades: int) -> float:
    """10^(half_decades / 2) with two digits, as people write rates."""
    return float(f"{10 ** (half_decades / 2):.1e}")


def _half_decades(rate: float) -> int:
    return round(2 * math.log10(rate))


Losses = Mapping[float, Sequence[float] | None]
"""By rate: the loss of each held-out row after a rung, None where training broke. Their mean is the loss."""


@dataclass(frozen=True)
class _Gap:
    """How much more one loss is than another, on the same rows."""

    mean: float
    error: float

    @classmethod
    def between(cls, losses: Sequence[float] | None, others: Sequence[float] | None) -> _Gap:
        if losses is None or others is None:
            return cls(math.inf if losses is None else -math.inf, 0.0)
        gaps = [one - other for one, other in zip(losses, others, strict=True)]
        mean = math.fsum(gaps) / len(gaps)
        variance = math.fsum((gap - mean) ** 2 for gap in gaps) / max(1, len(gaps) - 1)
        return cls(mean, math.sqrt(variance / len(gaps)))


def mean_loss(losses: Sequence[float] | None) -> float:
    """Infinite where training broke."""
    return math.inf if losses is None else math.fsum(losses) / len(losses)


def least(losses: Losses) -> float:
    """The rate with the least loss; of equal ones the lowest."""
    return min(sorted(losses), key=lambda rate: mean_loss(losses[rate]))


def kept_gain(rung_steps: int, stage_steps: int) -> float:
    """The share of the best rung's gain that SFT's rate keeps: 1/2 for a long stage, all of it for a short one."""
    return 0.5 if stage_steps >= _SETTLED * rung_steps else 1.0


def choose(losses: Losses, start: Sequence[float], kept: float) -> float:
    """The highest rate that keeps this share of the gain of the best, or is within a standard error of it; with 1 it is
    the best.
    """
    if kept == 1:
        return least(losses)
    best = losses[least(losses)]
    gain = max(0.0, _Gap.between(start, best).mean)

    def is_fine(rate: float) -> bool:
        gap = _Gap.between(losses[rate], best)
        return gap.mean <= max((1 - kept) * gain, gap.error)

    return max(filter(is_fine, losses), default=least(losses))


def for_stage(rate: float, rung_steps: int, stage_steps: int) -> float:
    """The rate of self-play for a stage, from the best one of short runs; with two digits."""
    return float(f"{rate * math.sqrt(min(1.0, rung_steps / stage_steps)):.1e}")


def gains(losses: Sequence[float] | None, start: Sequence[float]) -> bool:
    """Whether a loss is below its start by more than a standard error."""
    gap = _Gap.between(losses, start)
    return gap.mean < -gap.error


def climb(
    losses_of: Callable[[float], Sequence[float] | None], start: Sequence[float], middle: float, kept: float
) -> Losses:
    """The losses at each rate that was tried, from the lowest; at most :data:`MAX_RUNGS`.

    Args:
        losses_of: trains at a rate and measures each held-out row; None where training broke.
        start: the same before training.
        middle: where to begin.
        kept: as :func:`choose` takes it.
    """
    losses: dict[float, Sequence[float] | None] = {}

    def look(rate: float) -> None:
        if rate not in losses and rate <= MAX_RATE and len(losses) < MAX_RUNGS:
            losses[rate] = losses_of(rate)

    look(_rounded(_half_decades(middle)))
    while len(losses) < MAX_RUNGS - 2:
        best = least(losses)
        gap = _Gap.between(losses[best], start)
        # where training broke, higher rates break it too; where a rate changes nothing that can be told, neither do
        # lower ones
        steps = (-2,) if losses[best] is None else (2,) if abs(gap.mean) <= gap.error else (2, -2)
        beside = [rate for step in steps if (rate := _beside(best, step)) not in losses and rate <= MAX_RATE]
        if not beside:
            break
        look(beside[0])
    if losses[best := choose(losses, start, kept)] is not None:
        look(_beside(best, 1))
    if (chosen := choose(losses, start, kept)) == least(losses):
        look(_beside(chosen, -1))
    return dict(sorted(losses.items()))


def _beside(rate: float, half_decades: int) -> float:
    return _rounded(_half_decades(rate) + half_decades)


# Rungs --------------------------------------------------------------------------------------------------------------


class _LadderStart(Checkpoints):
    """The checkpoint that every rung begins with, after ``moments`` steps. Rungs save none of their own."""

    def __init__(self, folder: Path, moments: int) -> None:
        super().__init__(folder, math.inf, inputs=folder.name)
        self._steps_left = moments

    def due(self) -> bool:
        self._steps_left -= 1
        return self._steps_left == 0

    def rescue(self, step: int, model: nn.Module, optimizer: object, error: BaseException) -> None:
        """A rung that was stopped runs again."""

    def say_what_is_kept(self, error: BaseException) -> None:
        """Nothing goes on from the start of a rung."""


class _ShortRun(Generic[R]):
    """The first optimizer steps of a stage, each divided into parts, over again where the stage has too few."""

    def __init__(self, batches: Steps[R], parts: int, count: int, end: int | None = None) -> None:
        self.opponent_resets = frozenset({0})
        divided: list[list[R]] = []
        while len(divided) < count:
            for step in range(len(batches)):
                if len(divided) >= count:
                    break
                rows = batches[step]
                divided += [part for place in range(parts) if (part := rows[place::parts])]
        self._steps = [*divided[:count], *([[]] if end else [])]

    def __len__(self) -> int:
        return len(self._steps)

    def __getitem__(self, step: int) -> list[R]:
        return self._steps[step]


class Ladder(Generic[R]):
    """The rungs of one ladder. Each leaves the model as it trained it; :meth:`restore` takes all of it back.

    Args:
        batches: the steps of the stage.
        optimization: of the stage; its rate does not matter.
        folder: where the start is kept until it is cleared.
    """

    def __init__(
        self,
        engine: LogProbEngine,
        batches: Steps[R],
        objective: Objective[R],
        optimization: Optimization,
        plan: LadderPlan,
        folder: Path,
        hooks: TrainingHooks,
    ) -> None:
        self._engine, self._objective, self._folder, self._hooks = engine, objective, folder, hooks
        self._optimization = replace(optimization, moment_steps=plan.moments)
        self.plan = plan
        self._steps = _ShortRun(batches, plan.parts, plan.moments + plan.steps)
        self._moments = _ShortRun(batches, plan.parts, plan.moments, end=1)
        self._begun = False

    @property
    def moment_tokens(self) -> int:
        """Tokens of the steps before all rungs."""
        return self._tokens(0, self.plan.moments)

    @property
    def rung_tokens(self) -> int:
        """Tokens that each rung trains on."""
        return self._tokens(self.plan.moments, len(self._steps))

    def _tokens(self, begin: int, end: int) -> int:
        return sum(self._objective.query(row).tokens for step in range(begin, end) for row in self._steps[step])

    def train(self, rate: float) -> bool:
        """Trains a rung. False when its loss or a gradient became infinite or undefined."""
        if not self._begun:
            self._train(self._moments, self._optimization)
            self._begun = True
        try:
            self._train(self._steps, replace(self._optimization, learning_rate=rate))
        except NonFiniteError:
            return False
        return True

    def _train(self, steps: Steps[R], optimization: Optimization) -> None:
        start = _LadderStart(self._folder, self.plan.moments if steps is self._moments else 0)
        train(self._engine, steps, self._objective, optimization, start, self._hooks)

    def restore(self) -> None:
        """The model is what it was before the ladder, to the bit."""
        if self._begun:
            model = self._engine.model
            Checkpoints(self._folder, math.inf).restore(model, build_optimizer(model, self._optimization))
