"""What a ladder of short training runs may cost, and so how long its rungs are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

SHARE = 0.2
"""A ladder costs at most this share of its stage, counted in tokens. Only that of a very small stage costs more."""

USUAL_RUNGS, MAX_RUNGS = 5, 6
MIN_STEPS, MAX_STEPS = 4, 30
"""Optimizer steps of a rung."""
MAX_PARTS = 8
"""A step of a small stage is divided into so many at most."""
BACKWARD = 3
"""Training costs about three times as much as scoring the same tokens."""


@dataclass(frozen=True)
class LadderPlan:
    """How long a ladder is.

    Attributes:
        moments: steps at rate 0 before all rungs.
        steps: of each rung.
        parts: each step of the stage is divided into so many, so that a small stage has enough of them.
        heldout: number of rows that each rung is judged by.
        share: what the longest ladder costs, over the cost of the stage.
    """

    moments: int
    steps: int
    parts: int
    heldout: int
    share: float

    def steps_left(self, done: int) -> int:
        """Optimizer steps that a ladder of the usual five rungs still takes; the start counts as done, too."""
        return self.moments + max(1, USUAL_RUNGS - max(0, done - 1)) * self.steps


def plan_ladder(
    step_tokens: Sequence[int], rows_per_step: float, heldout_tokens: Sequence[int], fewest: int, passes: int
) -> LadderPlan:
    """The longest ladder within :data:`SHARE` of a stage, or the smallest one if there is no room for it.

    Args:
        step_tokens: tokens of each optimizer step of the stage.
        rows_per_step: mean number of rows of a step.
        heldout_tokens: of each row that rungs can be judged by.
        fewest: rows to judge by, at least.
        passes: what the stage costs for each token, where scoring it costs 1.
    """
    stage = passes * sum(step_tokens)
    mean = sum(step_tokens) / len(step_tokens)
    heldout, judging = 0, 0
    for tokens in heldout_tokens:
        if heldout >= fewest and MAX_RUNGS * (judging + tokens) > SHARE * stage / 3:
            break
        heldout, judging = heldout + 1, judging + tokens
    room = (SHARE * stage - MAX_RUNGS * judging) / BACKWARD  # tokens to train on
    steps, parts = min(MAX_STEPS, int(room / mean / (1 + MAX_RUNGS))), 1
    if steps < MIN_STEPS:
        needed = MIN_STEPS * (1 + MAX_RUNGS) * mean
        most = max(1, min(MAX_PARTS, int(rows_per_step)))
        steps, parts = MIN_STEPS, min(most, math.ceil(needed / room) if room > 0 else most)
    cost = BACKWARD * mean / parts * steps * (1 + MAX_RUNGS) + MAX_RUNGS * judging
    return LadderPlan(steps, steps, parts, heldout, cost / stage)
