"""How an iterate writes, and how far it has moved from another."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from spintune.records import Answer

Ids = Sequence[int]


def distinct(answers: Sequence[Ids], n: int) -> float:
    """Distinct-n of Li et al. 2016 (arXiv 1510.03055): different n-grams over all n-grams, of all answers together.

    1 2 1 2 and 1 3 contain the bigrams 12 21 12 13: distinct-2 = 3/4 (the paper divides by the 6 tokens instead). 0
    when there are no n-grams. It falls as text grows, so compare equal numbers of answers only.
    """
    grams = Counter(gram for ids in answers for gram in _grams(ids, n))
    return len(grams) / grams.total() if grams else 0.0


def repetition(answers: Sequence[Ids], n: int = 4) -> float:
    """Seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319): 1 - different/all n-grams of an answer, mean over answers.

    Eight equal tokens are five equal 4-grams: 1 - 1/5 = 0.8. Answers of fewer than n tokens are ignored; 0 when there
    are no others.
    """
    per_answer = [list(_grams(ids, n)) for ids in answers if len(ids) >= n]
    return _mean([1 - len(set(grams)) / len(grams) for grams in per_answer]) if per_answer else 0.0


def identical_share(answers: Sequence[Ids], earlier: Sequence[Ids]) -> float:
    """Share of prompts that two iterates answer with the same tokens; answer i of both is to the same prompt.

    Raises ValueError when there are no answers, or not equally many.
    """
    if len(answers) != len(earlier) or not answers:
        raise ValueError(f"cannot compare {len(answers)} answers with {len(earlier)}")
    return _mean([tuple(ids) == tuple(before) for ids, before in zip(answers, earlier, strict=True)])


@dataclass(frozen=True)
class AnswerProfile:
    """Statistics of answers as text. End tokens count as tokens.

    Attributes:
        answers: number of answers.
        tokens: mean length.
        cut: share of answers that were cut at the maximum length.
        repetition: share of 4-grams that occurred earlier in the same answer, mean over answers.
    """

    answers: int
    tokens: float
    cut: float
    distinct_1: float
    distinct_2: float
    repetition: float


def describe(answers: Sequence[Answer]) -> AnswerProfile:
    """The profile of some answers. Raises ValueError without answers."""
    if not answers:
        raise ValueError("no answers to describe")
    ids = [answer.ids for answer in answers]
    return AnswerProfile(
        answers=len(answers),
        tokens=_mean([len(answer) for answer in ids]),
        cut=_mean([not answer.complete for answer in answers]),
        distinct_1=distinct(ids, 1),
        distinct_2=distinct(ids, 2),
        repetition=repetition(ids),
    )


def _grams(ids: Ids, n: int) -> Iterator[tuple[int, ...]]:
    return zip(*(ids[start:] for start in range(n)), strict=False)


@dataclass(frozen=True)
class KlEstimate:
    """A mean over answers and its standard error over prompts, which is None for a single prompt."""

    mean: float
    standard_error: float | None


def divergence(player: Sequence[float], other: Sequence[float], per_prompt: int = 1) -> KlEstimate:
    """Monte Carlo estimate of KL(player || other): mean of log p_player - log p_other. [nats per answer]

    The estimate can be below 0, unlike the divergence. The answers must be samples of the player itself: at
    temperature 1, without top-p or top-k.

    Args:
        player: log-probabilities of the player's own answers. [nats, summed over tokens]
        other: log-probabilities of the same answers under the other model.
        per_prompt: answers of each prompt, which follow each other. They share what is particular to it.

    Player -1, -2, -3 and other -2, -2, -5 differ by 1, 0, 2: mean 1, standard error 1/√3.
    Raises ValueError when there are no answers, or not equally many.
    """
    if len(player) != len(other) or not player:
        raise ValueError(f"cannot compare {len(player)} log-probabilities with {len(other)}")
    ratio_N = np.subtract(player, other, dtype=np.float64).reshape(-1, per_prompt).mean(1)
    error = float(ratio_N.std(ddof=1)) / math.sqrt(len(ratio_N)) if len(ratio_N) > 1 else None
    return KlEstimate(float(ratio_N.mean()), error)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
