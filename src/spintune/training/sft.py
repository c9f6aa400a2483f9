"""Supervised fine-tuning: the loop with the likelihood objective, watched on held-out rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.protocol import Generator
from spintune.generation.sampling import Sampling
from spintune.progress import Progress
from spintune.recipe import SftSection
from spintune.tokens.rows import TokenRow
from spintune.training.batches import Batches, steps_by_tokens, steps_of_equal_tokens
from spintune.training.checkpoint import Checkpoints
from spintune.training.loop import StepReport, train
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import optimization_of

SAMPLE_TOKENS = 64


def heldout_loss(engine: LogProbEngine, rows: Sequence[TokenRow]) -> float:
    """Minus the mean log-probability of the rows' trained tokens, in nats a token."""
    objective = NegativeLogLikelihood()
    scores = engine.score([objective.query(row) for row in rows])
    return -sum(score for (score,) in scores) / sum(map(objective.weight, rows))


def steps_of_epochs(rows: Sequence[TokenRow], section: SftSection, seed: int) -> list[list[int]]:
    """The rows of each step, as the recipe says."""
    return steps_by_tokens(_tokens(rows), section.tokens_per_step, section.epochs, seed)[: section.max_steps]


def steps_of_tokens(rows: Sequence[TokenRow], steps: int, tokens: int, seed: int, first_epoch: int) -> list[list[int]]:
    """``steps`` equal steps that read ``tokens`` tokens together, to within a row, from an epoch on."""
    return steps_of_equal_tokens(_tokens(rows), steps, tokens, seed, first_epoch)


def run_sft(
    engine: LogProbEngine,
    generator: Generator,
    rows: Sequence[TokenRow],
    steps: Sequence[Sequence[int]],
    heldout: Sequence[TokenRow],
    section: SftSection,
    seed: int,
    checkpoints: Checkpoints,
    progress: Progress,
    name: str,
    on_start: Callable[[int], None],
    on_step: Callable[[StepReport], None],
    on_evaluation: Callable[[int, float, list[str]], None],
) -> None:
    """Trains the engine's model in place.

    ``on_evaluation(step, loss, answers)`` hears of the held-out loss, and the answers to the first few held-out
    prompts, before the first step and after every epoch.
    """
    ends = _epoch_ends(steps, len(rows)) | {len(steps)}
    sampled = heldout[: section.samples]

    def evaluate(step: int) -> None:
        if heldout:
            answers = generator.generate([row.prompt_ids for row in sampled], Sampling(SAMPLE_TOKENS, temperature=0))
            on_evaluation(step, heldout_loss(engine, heldout), [a.text for a in answers])

    with progress.task(name, len(steps), "steps") as task:

        def start(step: int) -> None:
            on_start(step)
            task.advance(step)
            if step == 0:
                evaluate(0)

        def report(step: StepReport) -> None:
            on_step(step)
            task.advance(1, loss=step.loss, tokens_per_s=step.tokens / step.seconds)
            if step.step in ends:
                evaluate(step.step)

        train(
            engine,
            Batches(rows, steps),
            NegativeLogLikelihood(),
            optimization_of(section, section.learning_rate, seed),
            checkpoints,
            start,
            report,
        )


def _tokens(rows: Sequence[TokenRow]) -> list[int]:
    return [len(row.prompt_ids) + len(row.response_ids) for row in rows]


def _epoch_ends(steps: Sequence[Sequence[int]], rows: int) -> set[int]:
    """Numbers of the steps after which every row was seen once more."""
    ends: set[int] = set()
    seen = 0
    for number, step in enumerate(steps, 1):
        seen += len(step)
        if seen % rows == 0:
            ends.add(number)
    return ends
