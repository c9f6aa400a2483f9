"""How far the player has moved from its opponent, measured on pairs. It does not import torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spintune.records import Answer, Pair
from spintune.student_t import t_quantile


@dataclass(frozen=True)
class PairMetrics:
    """The player on one pair: means over its generated answers, log-probabilities in nats per answer.

    Attributes:
        id: of the example.
        real_ratio, generated_ratio: r and r', log-probability of an answer minus the opponent's.
        margin: r - r'.
        accuracy: share of the generated answers with a positive margin.
    """

    id: str
    loss: float
    real_ratio: float
    generated_ratio: float
    margin: float
    accuracy: float
    real_logprob: float
    generated_logprob: float


@dataclass(frozen=True)
class HeldoutPairMetrics:
    """The player on all held-out pairs: means over pairs, log-probabilities in nats per answer.

    Attributes:
        start_loss: loss of a player that equals its opponent, ln 2 for the logistic loss.
        loss_error: standard error of ``start_loss - loss``, which is paired; None for a single pair.
        real_ratio: r, by how much likelier the real answer became.
        generated_ratio: r', the same for the opponent's answer. -r' is no KL: pairs lack answers equal to the real one.
        margin: r - r'.
        accuracy: share of comparisons with a positive margin.
        real_tokens, generated_tokens: length of an answer.
        real_cut, generated_cut: share of answers that were cut at the maximum length.
        learned: whether the loss is significantly below ``start_loss`` (one side of Student's 95 % interval); False
            for a single pair.
    """

    pairs: int
    start_loss: float
    loss: float
    loss_error: float | None
    real_ratio: float
    generated_ratio: float
    margin: float
    accuracy: float
    real_logprob: float
    generated_logprob: float
    real_tokens: float
    generated_tokens: float
    real_cut: float
    generated_cut: float
    learned: bool


_MEANS = ("real_ratio", "generated_ratio", "margin", "accuracy", "real_logprob", "generated_logprob")


def summarize_pairs(
    pairs: Sequence[Pair], metrics: Sequence[PairMetrics], start_losses: Sequence[float]
) -> HeldoutPairMetrics:
    """Means over pairs. ``start_losses`` are those of a player that equals its opponent."""
    count = len(pairs)
    start_loss, loss = sum(start_losses) / count, sum(one.loss for one in metrics) / count
    error = _standard_error([start - one.loss for start, one in zip(start_losses, metrics, strict=True)])
    real = [pair.real for pair in pairs]
    generated = [answer for pair in pairs for answer in pair.generated]
    return HeldoutPairMetrics(
        pairs=count,
        start_loss=start_loss,
        loss=loss,
        loss_error=error,
        **{name: sum(getattr(one, name) for one in metrics) / count for name in _MEANS},
        real_tokens=_mean_tokens(real),
        generated_tokens=_mean_tokens(generated),
        real_cut=_share_cut(real),
        generated_cut=_share_cut(generated),
        learned=error is not None and start_loss - loss > t_quantile(count - 1) * error,
    )


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
