"""Phases of an iteration (``spin.refresh``): each trains on fresh answers of the current player."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

from spintune.recipe import SpinSection
from spintune.records import Pair
from spintune.training.batches import steps_by_rows


class Phases:
    """The optimizer steps of an iteration, divided into phases of about equal length.

    At the start of each phase the player becomes its own opponent (the "stages" of IRFT, arXiv 2405.17888). One phase
    is SPIN; one phase per step is on-policy play.

    Attributes:
        steps: the prompts of each optimizer step, by index.
        starts: the first step of each phase.
    """

    def __init__(self, prompts: int, section: SpinSection, iteration: int, seed: int) -> None:
        epochs = section.in_iteration(iteration).epochs
        self.steps = steps_by_rows(prompts, section.pairs_per_step, epochs, seed + iteration)
        count = len(self.steps) if section.refresh == "step" else min(section.refresh, len(self.steps))
        self.starts = [len(self.steps) * k // count for k in range(count)]

    def phase_of(self, step: int) -> int:
        """The phase, from 0, that a step belongs to."""
        return bisect_right(self.starts, step) - 1

    def prompts(self, phase: int) -> list[int]:
        """The prompts of a phase in ascending order, each once."""
        end = self.starts[phase + 1] if phase + 1 < len(self.starts) else len(self.steps)
        return sorted({prompt for step in self.steps[self.starts[phase] : end] for prompt in step})


PhasePairs = Callable[[int, Sequence[int]], Mapping[int, Pair]]
"""Given a phase and its prompts, the pairs to train on by prompt. Prompts without a useful answer are missing."""


class PhasedBatches:
    """The rows of every step of a phased iteration. Pairs of a phase are asked for at its first step."""

    def __init__(self, phases: Phases, pairs_of: PhasePairs) -> None:
        self.phases = phases
        self.opponent_resets = frozenset(phases.starts)
        self._pairs_of = pairs_of
        self._phase, self._pairs = -1, dict[int, Pair]()

    def __len__(self) -> int:
        return len(self.phases.steps)

    def __getitem__(self, step: int) -> list[Pair]:
        phase = self.phases.phase_of(step)
        if phase != self._phase:
            self._pairs = dict(self._pairs_of(phase, self.phases.prompts(phase)))
            self._phase = phase
        return [self._pairs[prompt] for prompt in self.phases.steps[step] if prompt in self._pairs]
