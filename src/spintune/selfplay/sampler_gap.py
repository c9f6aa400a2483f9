"""The gap between what a sampler says of its answers and how they are scored."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass

from spintune.records import Pair


@dataclass(frozen=True)
class SamplerGap:
    """How far an opponent's scores of its own answers are from the log-probabilities that their sampler gave.

    Attributes:
        answers: compared, and ``without`` a log-probability of the sampler.
        mean: of the absolute differences. [nats an answer]
        per_token: all absolute differences over all tokens. [nats a token]
        signed: mean of sampler less scorer, an estimate of KL(sampler ‖ opponent). [nats an answer]
        largest: absolute difference of one answer. [nats]
    """

    answers: int
    without: int
    mean: float
    per_token: float
    signed: float
    largest: float


def sampler_gap(pairs: Iterable[Pair], opponent: str) -> SamplerGap | None:
    """The gap over the answers that ``opponent`` wrote; None where nothing can be compared."""
    gaps, own, tokens = array("d"), 0, 0
    for answer in (answer for pair in pairs if pair.writer == opponent for answer in pair.generated):
        own += 1
        if answer.opponent is not None and answer.sampled is not None:
            gaps.append(answer.sampled - answer.opponent)
            tokens += len(answer.ids)
    if not gaps:
        return None
    total = sum(map(abs, gaps))
    return SamplerGap(
        answers=len(gaps),
        without=own - len(gaps),
        mean=total / len(gaps),
        per_token=total / max(1, tokens),
        signed=sum(gaps) / len(gaps),
        largest=max(map(abs, gaps)),
    )
