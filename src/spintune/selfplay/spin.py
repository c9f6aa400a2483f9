"""One iteration of SPIN (arXiv 2401.01335, algorithm 1): the player learns to tell its answers from the real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import torch

from spintune.models.logprobs import LogProbEngine, LogProbs
from spintune.progress import Progress
from spintune.recipe import SpinSection
from spintune.records import Pair
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, train
from spintune.training.objectives import SelfPlay
from spintune.training.optimization import Optimization
from spintune.training.order import steps_by_rows


def train_iteration(
    engine: LogProbEngine,
    pairs: Sequence[Pair],
    section: SpinSection,
    iteration: int,
    seed: int,
    tokens_per_forward: int,
    checkpoints: Checkpoints,
    progress: Progress,
    on_start: Callable[[int], None],
    on_step: Callable[[StepReport], None],
) -> int:
    """Trains the player, which is the opponent at the start, on one iteration's pairs; the number of steps.

    The optimizer starts afresh, as in the authors' runs. Dropout is off, so the first loss is the loss's own value
    at a margin of 0 (ln 2), which the loop checks.
    """
    steps = steps_by_rows(len(pairs), section.pairs_per_step, section.at("epochs", iteration), seed + iteration)
    objective = SelfPlay(section.at("loss", iteration), section.at("lambda_", iteration))
    with progress.task(f"SPIN iteration {iteration}", len(steps), "steps") as task:

        def start(step: int) -> None:
            on_start(step)
            task.advance(step)

        def report(step: StepReport) -> None:
            on_step(step)
            task.advance(1, loss=step.loss, margin=step.facts["margin"], accuracy=step.facts["accuracy"])

        train(
            engine,
            pairs,
            steps,
            objective,
            Optimization(
                section.at("learning_rate", iteration),
                section.schedule,
                section.warmup,
                section.weight_decay,
                section.max_grad_norm,
            ),
            checkpoints,
            tokens_per_forward,
            start,
            report,
        )
    return len(steps)


@dataclass(frozen=True)
class Standing:
    """How far the player has moved from its opponent, mean over pairs, log-probabilities in nats an answer."""

    pairs: int
    loss: float
    real_ratio: float
    """r: how much likelier the real answer became."""
    generated_ratio: float
    """r': the same for the opponent's answer."""
    margin: float
    accuracy: float
    """Share of pairs with a positive margin."""
    real_logprob: float
    generated_logprob: float
    real_tokens: float
    generated_tokens: float
    real_cut: float
    """Share of real answers that were cut."""
    generated_cut: float
    """Share of the opponent's answers that ran out of room."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def standing(
    engine: LogProbEngine, pairs: Sequence[Pair], objective: SelfPlay, tokens_per_forward: int
) -> Standing | None:
    """Measures the player on pairs that it did not train on; None without pairs."""
    if not pairs:
        return None
    scores = engine.score([objective.query(pair) for pair in pairs], tokens_per_forward)
    sum_N = torch.tensor(scores).flatten()
    count_N = torch.tensor([len(ids) for pair in pairs for ids in (pair.real_ids, pair.generated_ids)])
    loss = objective(pairs, LogProbs(sum_N, count_N, sum_N))
    count = len(pairs)
    return Standing(
        pairs=count,
        loss=loss.total.item() / count,
        **{name: value / count for name, value in loss.facts.items()},
        real_tokens=sum(len(pair.real_ids) for pair in pairs) / count,
        generated_tokens=sum(len(pair.generated_ids) for pair in pairs) / count,
        real_cut=sum(not pair.real_complete for pair in pairs) / count,
        generated_cut=sum(not pair.generated_complete for pair in pairs) / count,
    )
