"""A sample of the crash regime; ``make crash`` runs all of it."""

from __future__ import annotations

import pytest
from crash.kinds import KINDS, Stage, numbers
from crash.machine import Machine
from crash.worlds import WORLDS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "kinds", "count"), [("small", list(KINDS), 1), ("lora", ["nth"], 2), ("async", ["nth", "fail"], 1)]
)
def test_disturbed_runs_end_as_undisturbed_ones(machine: Machine, world: str, kinds: list[str], count: int) -> None:
    """Kills, signals, failed calls, power cuts and damage of a small run; kills of LoRA with dropout; kills
    and failed calls where a thread writes checkpoints."""
    stage = Stage(machine, WORLDS[world], seed=0)
    for kind in kinds:
        for number in numbers(KINDS[kind], stage, count):
            tried = KINDS[kind].try_one(stage, number)
            assert tried.verdict.kind != "DIFFERENT", tried
