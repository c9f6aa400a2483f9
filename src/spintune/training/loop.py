"""The training loop. It is the same for SFT and self-play, which differ in their objective and their batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from spintune.engine.logprobs import LogProbEngine
from spintune.memory import is_out_of_memory, release_frames
from spintune.progress import StopRequest
from spintune.training.checkpoint import Checkpoints
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization, rate_at
from spintune.training.stepping import stepper_of

R = TypeVar("R")


class Steps(Protocol[R]):
    """The rows of every optimizer step, such as :class:`spintune.training.batches.Batches`."""

    @property
    def opponent_resets(self) -> frozenset[int]:
        """Steps before which the player becomes its own opponent, so that the objective's start is known."""

    def __len__(self) -> int:
        """Number of steps."""

    def __getitem__(self, step: int) -> list[R]:
        """The rows of a step, counted from 0. A step without rows does not change the weights."""


@dataclass(frozen=True)
class StepReport:
    """What was measured at one optimizer step."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Mean over the step's weight: nats per token (SFT) or per pair (self-play)."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens that the model read."""
    scored: int
    """Tokens whose log-probability was computed."""
    seconds: float
    facts: dict[str, float]
    """The objective's own numbers, as means over the step's weight."""


@dataclass(frozen=True)
class TrainingHooks:
    """Functions that training calls on the way, and who may stop it."""

    on_start: Callable[[int], None] = lambda step: None
    """Before the first step, with the number of steps that a checkpoint already holds."""
    on_step: Callable[[StepReport], None] = lambda report: None
    """After each step, before its checkpoint is written."""
    stop: StopRequest = field(default_factory=StopRequest)
    """Looked at before each step; a stop leaves a checkpoint."""
    is_done: Callable[[], bool] = lambda: False
    """Asked before each step: whether training ends there, before the last one."""


def train(
    engine: LogProbEngine,
    batches: Steps[R],
    objective: Objective[R],
    optimization: Optimization,
    checkpoints: Checkpoints,
    hooks: TrainingHooks | None = None,
) -> None:
    """Trains the engine's model in place, from the newest checkpoint if there is one.

    ``batches`` must be a pure function of the step: a resumed run then continues exactly where it stopped.

    Raises:
        NonFiniteError: the loss or a gradient is not finite. The weights keep their values of the step before.
        RunError: the first loss or ratio after an opponent reset is not the objective's known starting value.

    Whatever ends the computation of a step leaves a checkpoint of the one before. What fails after a step, such as an
    evaluation, leaves the newest checkpoint: from there it is done again.
    """
    hooks = hooks or TrainingHooks()
    stepper = stepper_of(engine, objective, optimization)
    model, optimizer = engine.model, stepper.optimizer
    done = checkpoints.restore(model, optimizer)
    stepper.take_state(done)
    with checkpoints.finished_on_errors():
        hooks.on_start(done)
        for step in range(done, len(batches)):
            if hooks.is_done():
                break
            started = time.perf_counter()
            try:
                hooks.stop.check()
                batch = batches[step]
                if not batch:
                    continue
                measured, norm = stepper.finite_gradients(batch, step, step in batches.opponent_resets)
            except BaseException as error:  # a stop or a failure: the weights are still those of the step before
                model.zero_grad()
                if is_out_of_memory(error):
                    release_frames(error)  # else the activations are still there when the checkpoint is written
                checkpoints.rescue(step, model, optimizer, error)
                raise
            with hooks.stop.held():
                rate = rate_at(step, len(batches), optimization)
                stepper.update(rate)
                seconds = time.perf_counter() - started
                tokens, scored = measured.tokens, measured.scored
                hooks.on_step(StepReport(step + 1, measured.loss, norm, rate, tokens, scored, seconds, measured.facts))
                checkpoints.settle()
                if checkpoints.due() and step + 1 < len(batches):
                    checkpoints.save(step + 1, model, optimizer)
        with hooks.stop.held():
            checkpoints.finish()
    stepper.end()
