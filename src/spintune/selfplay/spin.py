"""One iteration of SPIN (arXiv 2401.01335, algorithm 1): the player learns to prefer real answers to its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import LogProbs
from spintune.progress import ProgressTask
from spintune.recipe import AUTO_RATE, SpinSection
from spintune.records import Pair
from spintune.selfplay.pair_metrics import PairMetrics
from spintune.training.batches import Batches, steps_by_rows
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, Steps, TrainingHooks, train
from spintune.training.objectives import SelfPlay
from spintune.training.optimization import Optimization, optimization_of


def default_rate(weights: int) -> float:
    """Default peak learning rate of a model with so many parameters: the SPIN paper's 5e-7 for 7 billion.

    Our choice for smaller ones: proportional to 1 / √parameters, up to 5e-6. That is 1.3e-6 for 1 billion, 3.6e-6 for
    135 million.
    """
    return min(5e-6, 5e-7 * math.sqrt(7e9 / weights))


def objective_of(section: SpinSection, iteration: int) -> SelfPlay:
    """The objective of an iteration."""
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
    """The optimizer steps of an iteration of one phase."""
    steps = steps_by_rows(len(pairs), section.pairs_per_step, section.in_iteration(iteration).epochs, seed + iteration)
    return Batches(pairs, steps)


def iteration_optimization(section: SpinSection, iteration: int, seed: int, weights: int) -> Optimization:
    """The optimization settings of an iteration, for a model with so many parameters.

    The rate that a ladder finds must be in the section by then.
    """
    rate = section.in_iteration(iteration).learning_rate
    if rate == AUTO_RATE:
        raise ValueError("the learning rate was not found yet")
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
        task.advance(step, restored=True)

    def report(step: StepReport) -> None:
        hooks.on_step(step)
        task.advance(1, loss=step.loss, margin=step.facts["margin"], accuracy=step.facts["accuracy"])

    train(engine, batches, objective, optimization, checkpoints, TrainingHooks(start, report, hooks.stop))


def measure_pairs(
    engine: LogProbEngine, pairs: Sequence[Pair], objective: SelfPlay, done: Callable[[int], None] = lambda _: None
) -> list[PairMetrics]:
    """Metrics of the player on each pair. ``done`` is told of pairs as they are scored."""
    scores = engine.score([objective.query(pair) for pair in pairs], done)
    losses = [objective([pair], _as_logprobs(pair, sums)) for pair, sums in zip(pairs, scores, strict=True)]
    return [
        PairMetrics(pair.example_id, loss.total.item(), **loss.facts) for pair, loss in zip(pairs, losses, strict=True)
    ]


def rate_losses(engine: LogProbEngine, pairs: Sequence[Pair]) -> list[float]:
    """What learning rates are chosen by, whatever the player trains with: log(1 + e^-m) - log p(y) / |y|.

    This is the loss at λ = 1 and γ = 1. Its first term is least for p_data, and so is the second one as far as the
    answers of a prompt are equally long. At λ = 0.1 the first one goes on falling far beyond the data. The second one
    keeps out rates that ruin the player: where every answer of the opponent is easy to tell, almost any change of the
    weights brings the first term to 0.
    """
    return [one.loss for one in measure_pairs(engine, pairs, SelfPlay("logistic", lambda_=1.0, gamma=1.0))]


def _as_logprobs(pair: Pair, sums: Sequence[float]) -> LogProbs:
    sum_N = torch.tensor(sums, dtype=torch.float64)
    return LogProbs(sum_N, torch.tensor([len(answer.ids) for answer in pair.answers]), sum_N)
