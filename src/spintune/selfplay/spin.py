"""One iteration of SPIN (arXiv 2401.01335, algorithm 1): the player learns to tell its answers from the real ones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import LogProbs
from spintune.progress import ProgressTask
from spintune.recipe import SpinSection
from spintune.records import Answer, Pair
from spintune.training.batches import Batches, steps_by_rows
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, Steps, TrainingHooks, train
from spintune.training.objectives import SelfPlay
from spintune.training.optimization import Optimization, optimization_of


def default_rate(weights: int) -> float:
    """Peak learning rate of a model of so many weights: the paper's 5e-7 for 7 billion, and more for smaller ones.

    A judgement: the inverse square root of the size, up to 5e-6. 1.3e-6 for a billion, 3.6e-6 for 135 million.
    """
    return min(5e-6, 5e-7 * math.sqrt(7e9 / weights))


def objective_of(section: SpinSection, iteration: int) -> SelfPlay:
    """The loss of an iteration."""
    settings = section.in_iteration(iteration)
    return SelfPlay(
        loss=settings.loss,
        lambda_=settings.lambda_,
        mu=section.mu,
        shift=section.shift,
        history_weight=section.history_weight,
        reference_mixture=section.reference_mixture,
        length_normalize=section.length_normalize,
        gamma=section.gamma,
    )


def learns_from_identical(section: SpinSection, iteration: int) -> bool:
    """Whether a generated answer equal to the real one changes the gradient of an iteration."""
    loss = section.loss_in(iteration)
    compares_with_first = loss.needs_first_answers and iteration > 1 and section.history_weight > 0
    return loss.learns_from_identical or compares_with_first or section.gamma > 0


def batches_of(pairs: Sequence[Pair], section: SpinSection, iteration: int, seed: int) -> Batches[Pair]:
    """The steps of an iteration whose answers are all there when it begins."""
    steps = steps_by_rows(len(pairs), section.pairs_per_step, section.in_iteration(iteration).epochs, seed + iteration)
    return Batches(pairs, steps)


def iteration_optimization(section: SpinSection, iteration: int, seed: int, weights: int) -> Optimization:
    """How an iteration moves a model of so many weights."""
    rate = section.in_iteration(iteration).learning_rate
    return optimization_of(section, default_rate(weights) if rate is None else rate, seed + iteration)


def train_iteration(
    engine: LogProbEngine,
    batches: Steps[Pair],
    objective: SelfPlay,
    optimization: Optimization,
    checkpoints: Checkpoints,
    task: ProgressTask,
    hooks: TrainingHooks,
) -> None:
    """Trains the player, which starts as its own opponent, through one iteration; ``task`` counts optimizer steps.

    The optimizer starts with empty moments, as in the SPIN authors' scripts. The loop checks that the first loss is
    that of the opponent's own scores, ln 2 for the logistic loss.
    """

    def start(step: int) -> None:
        hooks.on_start(step)
        task.advance(step)

    def report(step: StepReport) -> None:
        hooks.on_step(step)
        task.advance(1, loss=step.loss, margin=step.facts["margin"], accuracy=step.facts["accuracy"])

    train(engine, batches, objective, optimization, checkpoints, TrainingHooks(start, report))


@dataclass(frozen=True)
class HeldoutPairMetrics:
    """How far the player has moved from its opponent, mean over pairs, log-probabilities in nats an answer."""

    pairs: int
    start_loss: float
    """The loss of a player that equals its opponent: ln 2 for SPIN's."""
    loss: float
    loss_error: float | None
    """Standard error of ``start_loss - loss``, which is paired; None for a single pair."""
    real_ratio: float
    """r: how much likelier the real answer became."""
    generated_ratio: float
    """r': the same for the opponent's answer; minus its mean estimates KL(opponent || player)."""
    margin: float
    accuracy: float
    """Share of duels with a positive margin."""
    real_logprob: float
    generated_logprob: float
    real_tokens: float
    generated_tokens: float
    real_cut: float
    """Share of real answers that were cut."""
    generated_cut: float
    """Share of the opponent's answers that ran out of room."""
    each: tuple[dict[str, Any], ...] = ()
    """The same of every pair: its ``id``, loss, ratios, margin, accuracy and log-probabilities."""

    def to_json(self) -> dict[str, float | None]:
        """The means, without the pairs."""
        return {name: value for name, value in asdict(self).items() if name != "each"}

    @property
    def learned(self) -> bool:
        """Whether the loss can be told from its start (one side of a 95 % interval)."""
        return self.start_loss - self.loss > 1.96 * (self.loss_error or 0.0)


def heldout_pair_metrics(
    engine: LogProbEngine, pairs: Sequence[Pair], objective: SelfPlay
) -> HeldoutPairMetrics | None:
    """Measures the player on pairs that it did not train on; None without pairs."""
    if not pairs:
        return None
    scores = engine.score([objective.query(pair) for pair in pairs])
    losses = [objective([pair], _as_logprobs([pair], [sums])) for pair, sums in zip(pairs, scores, strict=True)]
    values = [loss.total.item() for loss in losses]
    starts = [objective.start([pair]) for pair in pairs]
    count = len(pairs)
    real = [pair.real for pair in pairs]
    generated = [answer for pair in pairs for answer in pair.generated]
    return HeldoutPairMetrics(
        pairs=count,
        start_loss=sum(starts) / count,
        loss=sum(values) / count,
        loss_error=_standard_error([s - v for s, v in zip(starts, values, strict=True)]),
        **{name: sum(loss.facts[name] for loss in losses) / count for name in losses[0].facts},
        real_tokens=_mean_tokens(real),
        generated_tokens=_mean_tokens(generated),
        real_cut=_share_cut(real),
        generated_cut=_share_cut(generated),
        each=tuple(
            {"id": pair.example_id, "loss": value, **loss.facts}
            for pair, value, loss in zip(pairs, values, losses, strict=True)
        ),
    )


def _as_logprobs(pairs: Sequence[Pair], scores: Sequence[Sequence[float]]) -> LogProbs:
    sum_N = torch.tensor([s for sums in scores for s in sums], dtype=torch.float64)
    count_N = torch.tensor([len(answer.ids) for pair in pairs for answer in pair.answers])
    return LogProbs(sum_N, count_N, sum_N)


def _standard_error(values: Sequence[float]) -> float | None:
    count = len(values)
    if count < 2:
        return None
    mean = sum(values) / count
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1) / count)


def _mean_tokens(answers: Sequence[Answer]) -> float:
    return sum(len(answer.ids) for answer in answers) / len(answers)


def _share_cut(answers: Sequence[Answer]) -> float:
    return sum(not answer.complete for answer in answers) / len(answers)
