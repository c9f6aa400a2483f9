"""Supervised fine-tuning: the training loop with the likelihood objective, evaluated on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.progress import ProgressTask
from spintune.recipe import SftSection
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches, steps_by_tokens
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, TrainingHooks, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization

SAMPLE_TOKENS = 64
"""Maximum length of the sampled answers."""


def heldout_loss(engine: LogProbEngine, rows: Sequence[TokenRow]) -> float:
    """Mean negative log-likelihood of the rows' trained tokens, in nats per token."""
    objective = NegativeLogLikelihood()
    scores = engine.score([objective.query(row) for row in rows])
    return -sum(score for (score,) in scores) / sum(map(objective.weight, rows))


def steps_of_epochs(rows: Sequence[TokenRow], section: SftSection, seed: int) -> list[list[int]]:
    """Row indices of each step, by the recipe's tokens_per_step, epochs and max_steps."""
    return steps_by_tokens([row.tokens for row in rows], section.tokens_per_step, section.epochs, seed)[
        : section.max_steps
    ]


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
class SftHooks(TrainingHooks):
    """Functions that SFT calls on the way."""

    on_evaluation: Callable[[int, float, list[str]], None] = lambda step, loss, answers: None
    """Before the first step and after every epoch, if there are held-out rows: step, held-out loss in nats per token,
    and the answers to the sampled prompts."""


def run_sft(
    engine: LogProbEngine,
    generator: Generator,
    rows: SftRows,
    optimization: Optimization,
    checkpoints: Checkpoints,
    task: ProgressTask,
    hooks: SftHooks,
) -> None:
    """Trains the engine's model in place; ``task`` counts optimizer steps."""
    ends = _epoch_ends(rows.steps, len(rows.train)) | {len(rows.steps)}

    def evaluate(step: int) -> None:
        if rows.heldout:
            prompts = [row.prompt_ids for row in rows.sampled]
            answers = generator.generate(prompts, Sampling(SAMPLE_TOKENS, temperature=0))
            hooks.on_evaluation(step, heldout_loss(engine, rows.heldout), [answer.text for answer in answers])

    def start(step: int) -> None:
        hooks.on_start(step)
        task.advance(step)
        if step == 0:
            evaluate(0)

    def report(step: StepReport) -> None:
        hooks.on_step(step)
        task.advance(1, loss=step.loss, tokens_per_s=step.tokens / step.seconds)
        if step.step in ends:
            evaluate(step.step)

    batches = Batches(rows.train, rows.steps)
    train(engine, batches, NegativeLogLikelihood(), optimization, checkpoints, TrainingHooks(start, report, hooks.stop))


def _epoch_ends(steps: Sequence[Sequence[int]], rows: int) -> set[int]:
    """Steps, counted from 1, after which another epoch is complete."""
    ends: set[int] = set()
    seen = 0
    for number, step in enumerate(steps, 1):
        seen += len(step)
        if seen % rows == 0:
            ends.add(number)
    return ends
