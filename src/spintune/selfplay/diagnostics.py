"""Did an iteration of self-play learn something true? What sampled text looks like, how far the player moved, and
whether length, last token or being cut give generated answers away."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from spintune import streams
from spintune.records import Answer, Pair

Ids = Sequence[int]

FOLDS = 5
LENGTH_BINS = 10
ENOUGH = 20
"""Examples below which an AUC says nothing: four a fold."""
# A judgement: a yes-or-no feature gets there when its shares differ by 60 points, which few true differences do.
TELLING = 0.8
"""AUC above which a feature that says nothing about content is reported as a likely artefact."""


# Text ----------------------------------------------------------------------------------------------------------------


def distinct(answers: Sequence[Ids], n: int) -> float:
    """Distinct-n of Li et al. 2016 (arXiv 1510.03055): different n-grams over all n-grams, of all answers together.

    1 2 1 2 and 1 3 hold the bigrams 12 21 12 13: distinct-2 = 3/4 (the paper divides by the 6 tokens instead). 0
    when there are no n-grams. It falls as text grows, so compare equal numbers of answers.
    """
    grams = Counter(gram for ids in answers for gram in _grams(ids, n))
    return len(grams) / grams.total() if grams else 0.0


def repetition(answers: Sequence[Ids], n: int = 4) -> float:
    """Seq-rep-n of Welleck et al. 2019 (arXiv 1908.04319): 1 - different/all n-grams of an answer, mean over answers.

    Eight times the same token is five 4-grams, all equal: 1 - 1/5 = 0.8. Answers of fewer than n tokens are left
    out; 0 when that leaves none.
    """
    per_answer = [list(_grams(ids, n)) for ids in answers if len(ids) >= n]
    return _mean([1 - len(set(grams)) / len(grams) for grams in per_answer]) if per_answer else 0.0


def identical_share(answers: Sequence[Ids], earlier: Sequence[Ids]) -> float:
    """Share of prompts that two iterates answer with the same tokens; both sequences follow the same prompts.

    Raises ValueError when there are no answers, or not equally many.
    """
    if len(answers) != len(earlier) or not answers:
        raise ValueError(f"cannot compare {len(answers)} answers with {len(earlier)}")
    return _mean([tuple(ids) == tuple(before) for ids, before in zip(answers, earlier, strict=True)])


@dataclass(frozen=True)
class AnswerProfile:
    """What sampled answers look like as text. End tokens count as tokens."""

    answers: int
    tokens: float
    """Mean length. [tokens]"""
    cut: float
    """Share of answers that ran out of room."""
    distinct_1: float
    distinct_2: float
    repetition: float
    """Share of 4-grams that occurred earlier in the same answer, mean over answers."""

    def to_json(self) -> dict[str, float]:
        return asdict(self)


def describe(answers: Sequence[Answer]) -> AnswerProfile:
    """Raises ValueError without answers."""
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


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


# Divergence ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KlEstimate:
    """A mean over answers and its standard error, None for a single answer, which does not tell one."""

    mean: float
    standard_error: float | None

    def to_json(self) -> dict[str, float | None]:
        return asdict(self)


def divergence(player: Sequence[float], other: Sequence[float]) -> KlEstimate:
    """Monte-Carlo estimate of KL(player || other): mean of log p_player - log p_other. [nats an answer]

    An estimate can be below 0, which the divergence cannot. It holds for answers drawn at temperature 1 with no
    token left out: others are not draws from the player.

    Args:
        player: log-probabilities that the player gives to answers that it sampled itself. [nats, summed]
        other: those of the same answers under the other model.

    Player -1, -2, -3 and other -2, -2, -5 differ by 1, 0, 2: mean 1, standard error 1/√3.
    Raises ValueError when there are no answers, or not equally many.
    """
    if len(player) != len(other) or not player:
        raise ValueError(f"cannot compare {len(player)} log-probabilities with {len(other)}")
    ratio_N = np.subtract(player, other, dtype=np.float64)
    error = float(ratio_N.std(ddof=1)) / math.sqrt(len(ratio_N)) if len(ratio_N) > 1 else None
    return KlEstimate(float(ratio_N.mean()), error)


# Separability --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Separability:
    """How well a feature that says nothing about content tells real from generated answers: held-out AUC.

    0.5 is not at all (an estimate can fall a little below), 1 is without fail.
    """

    length_auc: float
    last_token_auc: float
    cut_auc: float
    pairs: int

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def separability(pairs: Sequence[Pair], max_tokens: int | None = None) -> Separability | None:
    """Probes the real answers of pairs against their generated ones; None with fewer than 20 different examples.

    A probe scores an answer by the likelihood ratio of its category (length in at most 10 quantile bins, id of the
    last token, cut or not), with add-one smoothing, estimated on the other four of five folds. The answers of an
    example share a fold, which its id names, so a probe never saw anything of what it scores.

    An AUC is the mean over folds, weighted by comparisons: the share won of all comparisons between two held-out
    answers of a fold. Pooling the scores would also compare those of different probes, which are not on one scale
    (Forman and Scholz 2010, "Apples-to-apples in cross-validation studies").

    Args:
        max_tokens: what is trained on of an answer; what lies beyond is not looked at. None: all of it. [tokens]
    """
    if len({pair.example_id for pair in pairs}) < ENOUGH:
        return None
    answers = [
        (pair.example_id, is_real, answer)
        for pair in _within(pairs, max_tokens)
        for is_real, answer in [(True, pair.real), *((False, generated) for generated in pair.generated)]
    ]
    fold_N = np.array([_fold(example_id) for example_id, _, _ in answers])
    real_N = np.array([is_real for _, is_real, _ in answers])
    length_N = np.array([len(answer.ids) for _, _, answer in answers])
    last_N = np.array([answer.ids[-1] if answer.ids else -1 for _, _, answer in answers])
    cut_N = np.array([not answer.complete for _, _, answer in answers])
    return Separability(
        length_auc=_heldout_auc(length_N, real_N, fold_N, LENGTH_BINS),
        last_token_auc=_heldout_auc(last_N, real_N, fold_N),
        cut_auc=_heldout_auc(cut_N, real_N, fold_N),
        pairs=len(pairs),
    )


def auc(real: Sequence[float] | NDArray[np.float64], generated: Sequence[float] | NDArray[np.float64]) -> float:
    """Chance that a real answer scores above a generated one, ties counting half (Mann and Whitney 1947).

    Real 1, 2 against generated 0, 1: three of four comparisons won and one tied, (3 + 0.5) / 4 = 0.875.
    """
    _, code_N, count_K = np.unique(np.concatenate([real, generated]), return_inverse=True, return_counts=True)
    rank_K = count_K.cumsum() - (count_K - 1) / 2  # equal scores share the mean of their ranks
    won = rank_K[code_N[: len(real)]].sum() - len(real) * (len(real) + 1) / 2
    return float(won / (len(real) * len(generated)))


def _within(pairs: Sequence[Pair], max_tokens: int | None) -> Sequence[Pair]:
    """The pairs as training sees them: an answer that goes on after ``max_tokens`` is cut there."""
    if max_tokens is None:
        return pairs

    def fit(answer: Answer) -> Answer:
        whole = answer.complete and len(answer.ids) <= max_tokens
        return replace(answer, ids=answer.ids[:max_tokens], complete=whole)

    return [replace(pair, real=fit(pair.real), generated=tuple(map(fit, pair.generated))) for pair in pairs]


def _fold(example_id: str) -> int:
    return streams.integer(example_id, "big") % FOLDS


def _heldout_auc(
    value_N: NDArray[Any], real_N: NDArray[np.bool_], fold_N: NDArray[np.int_], bins: int | None = None
) -> float:
    """AUC of a feature, each fold scored by what the others say; mean over folds weighted by comparisons."""
    aucs, comparisons = [], []
    for fold in np.unique(fold_N):
        held_N = fold_N == fold
        category_N = value_N if bins is None else _binned(value_N, ~held_N, bins)
        score_N = _likelihood_ratios(category_N, ~held_N & real_N, ~held_N & ~real_N)
        real, generated = score_N[held_N & real_N], score_N[held_N & ~real_N]
        aucs.append(auc(real, generated))
        comparisons.append(len(real) * len(generated))
    return float(np.average(aucs, weights=comparisons))


def _binned(value_N: NDArray[Any], train_N: NDArray[np.bool_], bins: int) -> NDArray[np.int_]:
    edges = np.unique(np.quantile(value_N[train_N], np.arange(1, bins) / bins))
    return np.searchsorted(edges, value_N, side="right")


def _likelihood_ratios(
    category_N: NDArray[Any], real_N: NDArray[np.bool_], generated_N: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """p(category | real) / p(category | generated) of every answer, add-one smoothed, from the marked answers.

    Where pairs have several generated answers, those are counted as if there were as many as real ones: otherwise
    add-one smoothing would call a category real because it is new. Both totals are then equal and cancel, and a
    category that is new scores 1. The logarithm would order the scores alike, but rounding would break their ties.
    """
    categories, code_N = np.unique(category_N, return_inverse=True)
    real_K = np.bincount(code_N[real_N], minlength=len(categories))
    generated_K = np.bincount(code_N[generated_N], minlength=len(categories))
    real, generated = int(real_N.sum()), int(generated_N.sum())
    # (real_K + 1) / (generated_K · real/generated + 1) in whole numbers, so that equal ratios are equal floats
    ratio_K = (real_K + 1) * generated / (generated_K * real + generated)
    return np.asarray(ratio_K[code_N], dtype=np.float64)


# Warnings ------------------------------------------------------------------------------------------------------------


def warnings(pairs: Sequence[Pair], separability: Separability | None, max_tokens: int | None = None) -> list[str]:
    """One sentence for each likely artefact: what tells the sides apart, by how much, and what to do.

    "Likely", since an AUC cannot know whether generated answers are longer by accident or by the writer's nature. A
    cut answer's length and last token give it away once more, so where being cut tells the sides apart, those two are
    judged among whole answers only.

    Args:
        pairs, max_tokens: as ``separability`` was measured; None, for too few pairs, warns of nothing.
    """
    if separability is None:
        return []
    pairs = _within(pairs, max_tokens)
    if separability.cut_auc > TELLING:
        return [_cut_warning(pairs, separability.cut_auc), *_beyond_being_cut(pairs)]
    return _length_and_last_token_warnings(pairs, separability)


def _beyond_being_cut(pairs: Sequence[Pair]) -> list[str]:
    whole = [
        replace(pair, generated=tuple(answer for answer in pair.generated if answer.complete))
        for pair in pairs
        if pair.real.complete and any(answer.complete for answer in pair.generated)
    ]
    probed = separability(whole)
    return _length_and_last_token_warnings(whole, probed, " among those that are whole") if probed else []


def _length_and_last_token_warnings(pairs: Sequence[Pair], probed: Separability, among: str = "") -> list[str]:
    found = []
    if probed.length_auc > TELLING:
        found.append(_length_warning(pairs, probed.length_auc, among))
    if probed.last_token_auc > TELLING:
        found.append(_last_token_warning(pairs, probed.last_token_auc, among))
    return found


def _cut_warning(pairs: Sequence[Pair], auc: float) -> str:
    shares = [(_mean([not answer.complete for answer in side]), name) for name, side in _sides(pairs).items()]
    (less_cut, less), (more_cut, more) = sorted(shares)
    return (
        f"{more} answers are cut in {_percent(more_cut)} of cases against {_percent(less_cut)} of the {less} ones (AUC "
        f"{auc:.2f}): a likely artefact, for the player can win by where an answer breaks off; raise "
        "spin.max_new_tokens"
    )


def _length_warning(pairs: Sequence[Pair], auc: float, among: str) -> str:
    real, generated = (_mean([len(answer.ids) for answer in side]) for side in _sides(pairs).values())
    return (
        f"length alone tells real from generated answers{among} (AUC {auc:.2f}; {real:.0f} against {generated:.0f} "
        "tokens on average): the player can win by answer length, a likely artefact unless their contents ask for it; "
        "read some pairs, and train SFT for longer if the writer has not learned when to stop"
    )


def _last_token_warning(pairs: Sequence[Pair], auc: float, among: str) -> str:
    sides = _sides(pairs).values()
    ends = [Counter(answer.ids[-1] for answer in side if answer.ids) for side in sides]
    shares = {
        token: [count[token] / len(side) for count, side in zip(ends, sides, strict=True)]
        for token in sorted({*ends[0], *ends[1]})
    }
    token = max(shares, key=lambda token: abs(shares[token][0] - shares[token][1]))
    of_real, of_generated = map(_percent, shares[token])
    return (
        f"the last token alone tells real from generated answers{among} (AUC {auc:.2f}; token {token} ends {of_real} "
        f"of the real and {of_generated} of the generated ones): a likely artefact, such as real answers without the "
        "end token; check that data.template ends an answer as the writer does"
    )


def _sides(pairs: Sequence[Pair]) -> dict[str, list[Answer]]:
    return {
        "real": [pair.real for pair in pairs],
        "generated": [answer for pair in pairs for answer in pair.generated],
    }


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
