"""Supervised fine-tuning: the training loop with the likelihood objective, evaluated on held-out rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.number_files import NumberFile
from spintune.progress import ProgressTask
from spintune.recipe import SftSection
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches, sizes_of, steps_by_tokens
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization
from spintune.unfinished import HeldoutLosses

SAMPLE_TOKENS = 64
"""Maximum length of the sampled answers."""


def heldout_loss(engine: LogProbEngine, rows: Sequence[TokenRow]) -> float:
    """Mean negative log-likelihood of the rows' trained tokens, in nats per token."""
    objective = NegativeLogLikelihood()
    scores = engine.score([objective.query(row) for row in rows])
    return -sum(score for (score,) in scores) / sum(map(objective.weight, rows))


def row_losses(engine: LogProbEngine, rows: Sequence[TokenRow]) -> list[float]:
    """The negative log-likelihood of each row, over the mean length of all; the mean is in nats per token."""
    objective = NegativeLogLikelihood()
    scores = engine.score([objective.query(row) for row in rows])
    length = sum(map(objective.weight, rows)) / len(rows)
    return [-score / length for (score,) in scores]


def steps_of_epochs(tokens: Sequence[int] | NumberFile, section: SftSection, seed: int) -> Sequence[list[int]]:
    """Row indices of each step, by the rows' ``tokens`` and the recipe's tokens_per_step, epochs and max_steps."""
    steps = steps_by_tokens(tokens, section.tokens_per_step, section.epochs, seed)
    return steps if section.max_steps is None else steps[: section.max_steps]


@dataclass(frozen=True)
class SftRows:
    """The rows of SFT.

    Attributes:
        train: the training rows.
        steps: indices of the training rows of each optimizer step.
        heldout: rows whose loss is measured at each evaluation.
        sampled: held-out rows whose prompts the model answers at each evaluation.
    """

    train: Sequence[TokenRow]
    steps: Sequence[Sequence[int]]
    heldout: Sequence[TokenRow]
    sampled: Sequence[TokenRow]


@dataclass(frozen=True)
class HeldoutRule:
    """What SFT does with the losses of its held-out rows.

    Attributes:
        every: how often they are measured, beside once at the end. [epochs]
        keep_best: whether SFT ends with the weights of the evaluated step whose loss is the least.
        patience: evaluations without a lower loss after which it ends; None: it does not.
    """

    every: float = 1.0
    keep_best: bool = False
    patience: int | None = None


@dataclass(frozen=True)
class SftOutcome:
    """How SFT ended.

    Attributes:
        steps: optimizer steps that were taken.
        kept: the step whose weights the model has now.
        losses: on the held-out rows; None without any.
    """

    steps: int
    kept: int
    losses: HeldoutLosses | None

    @property
    def loss(self) -> float | None:
        """The held-out loss of the step that was kept. [nats per token]"""
        if self.losses is None:
            return None
        return self.losses.best if self.kept == self.losses.step else self.losses.last


@dataclass(frozen=True)
class SftHooks(TrainingHooks):
    """Functions that SFT calls on the way."""

    on_evaluation: Callable[[int, float, list[str]], None] = lambda step, loss, answers: None
    """At each evaluation, if there are held-out rows, the first one before the first step: step, held-out loss in nats
    per token, and the answers to the sampled prompts."""


def run_sft(
    engine: LogProbEngine,
    generator: Generator,
    rows: SftRows,
    rule: HeldoutRule,
    optimization: Optimization,
    checkpoints: Checkpoints,
    task: ProgressTask,
    hooks: SftHooks,
) -> SftOutcome:
    """Trains the engine's model in place.

    ``task`` counts optimizer steps; it shows the newest held-out loss, and at the end that before and that after.
    """
    evaluated = evaluation_steps(rows.steps, len(rows.train), rule.every)
    last, reached = len(rows.steps), 0

    def evaluate(step: int) -> None:
        if not rows.heldout:
            return
        prompts = [row.prompt_ids for row in rows.sampled]
        answers = generator.generate(prompts, Sampling(SAMPLE_TOKENS, temperature=0))
        loss = heldout_loss(engine, rows.heldout)
        hooks.on_evaluation(step, loss, [answer.text for answer in answers])
        losses = (checkpoints.heldout or HeldoutLosses()).after(step, loss)
        if rule.keep_best and losses.step == step and 0 < step < last:  # the last weights stay in memory
            checkpoints.save_best(step, engine.model)
        checkpoints.heldout = losses

    def start(step: int) -> None:
        nonlocal reached
        reached = step
        hooks.on_start(step)
        task.advance(step, restored=True)
        if step == 0:
            evaluate(0)

    def report(step: StepReport) -> None:
        nonlocal reached
        reached = step.step
        hooks.on_step(step)
        newest = checkpoints.heldout.last if checkpoints.heldout else None
        measured = {} if newest is None else {"held_out": newest}
        speed = step.tokens / step.seconds
        task.advance(1, loss=step.loss, **measured, tokens_per_s=speed)  # type: ignore[arg-type]  # it is held_out alone
        if step.step in evaluated:
            evaluate(step.step)

    def is_done() -> bool:
        losses = checkpoints.heldout
        return bool(rule.patience and losses and losses.later >= rule.patience)

    batches = Batches(rows.train, rows.steps)
    training = TrainingHooks(start, report, hooks.stop, is_done)
    train(engine, batches, NegativeLogLikelihood(), optimization, checkpoints, training)
    losses = checkpoints.heldout
    kept = losses.step if losses and losses.step and rule.keep_best else reached
    if kept < reached:
        checkpoints.load_best(engine.model)
    outcome = SftOutcome(reached, kept, losses)
    if losses and losses.start is not None and outcome.loss is not None:
        task.advance(0, safe=False, held_out=(losses.start, outcome.loss))
    return outcome


def evaluation_steps(steps: Sequence[Sequence[int]], rows: int, every: float) -> set[int]:
    """Steps, counted from 1, after which ``every`` more epochs of so many rows are complete; and the last."""
    ends = {len(steps)}
    seen, done = 0, 0
    for number, size in enumerate(sizes_of(steps), 1):
        seen += size
        if (whole := math.floor(seen / (every * rows) + 1e-9)) > done:
            ends.add(number)
            done = whole
    return ends
