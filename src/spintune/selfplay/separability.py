"""Whether length, last token or being cut alone tell real answers from generated ones."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from spintune import streams
from spintune.records import Pair

FOLDS = 5
LENGTH_BINS = 10
MIN_EXAMPLES = 20
"""With fewer examples, four per fold, an AUC says nothing."""


@dataclass(frozen=True)
class Separability:
    """Held-out AUC with which a feature unrelated to content tells real from generated answers.

    0.5 is chance (an estimate can be slightly below), 1 is without error.
    """

    length_auc: float
    last_token_auc: float
    cut_auc: float
    pairs: int


def separability(pairs: Sequence[Pair]) -> Separability | None:
    """Probes the real answers of pairs against the generated ones; None with fewer than 20 different examples.

    A probe scores an answer by the likelihood ratio of its category (length in at most 10 quantile bins, id of the
    last token, cut or not), with add-one smoothing, estimated on the other four of five folds. The id of an example
    decides its fold, so that a probe has never seen the examples that it scores.

    The AUC is the mean over folds, weighted by their numbers of comparisons between a real and a generated answer.
    Pooled scores would also be compared between probes, which are not on one scale (Forman and Scholz 2010,
    "Apples-to-apples in cross-validation studies").
    """
    if len({pair.example_id for pair in pairs}) < MIN_EXAMPLES:
        return None
    numbers = array("q")  # five of each answer, all that the probes read
    for pair in pairs:
        fold = _fold(pair.example_id)
        for place, answer in enumerate((pair.real, *pair.generated)):
            last = answer.ids[-1] if answer.ids else -1
            numbers.extend((fold, place == 0, len(answer.ids), last, not answer.complete))
    fold_N, real_N, length_N, last_N, cut_N = np.array(numbers).reshape(-1, 5).T
    real_N = real_N.astype(bool)
    return Separability(
        length_auc=_heldout_auc(length_N, real_N, fold_N, LENGTH_BINS),
        last_token_auc=_heldout_auc(last_N, real_N, fold_N),
        cut_auc=_heldout_auc(cut_N, real_N, fold_N),
        pairs=len(pairs),
    )


def auc(real: Sequence[float] | NDArray[np.float64], generated: Sequence[float] | NDArray[np.float64]) -> float:
    """Probability that a real answer scores above a generated one; ties count half (Mann and Whitney 1947).

    Real 1, 2 and generated 0, 1: three of four comparisons are won and one is tied, (3 + 0.5) / 4 = 0.875.
    """
    _, code_N, count_K = np.unique(np.concatenate([real, generated]), return_inverse=True, return_counts=True)
    rank_K = count_K.cumsum() - (count_K - 1) / 2  # equal scores get their mean rank
    won = rank_K[code_N[: len(real)]].sum() - len(real) * (len(real) + 1) / 2
    return float(won / (len(real) * len(generated)))


def _fold(example_id: str) -> int:
    return streams.integer(example_id, "big") % FOLDS


def _heldout_auc(
    value_N: NDArray[np.int_], real_N: NDArray[np.bool_], fold_N: NDArray[np.int_], bins: int | None = None
) -> float:
    """AUC of a feature, each fold scored by a probe of the others; mean over folds, weighted by comparisons."""
    aucs, comparisons = [], []
    for fold in np.unique(fold_N):
        held_N = fold_N == fold
        category_N = value_N if bins is None else _binned(value_N, ~held_N, bins)
        score_N = _likelihood_ratios(category_N, ~held_N & real_N, ~held_N & ~real_N)
        real, generated = score_N[held_N & real_N], score_N[held_N & ~real_N]
        aucs.append(auc(real, generated))
        comparisons.append(len(real) * len(generated))
    return float(np.average(aucs, weights=comparisons))


def _binned(value_N: NDArray[np.int_], train_N: NDArray[np.bool_], bins: int) -> NDArray[np.int_]:
    edges = np.unique(np.quantile(value_N[train_N], np.arange(1, bins) / bins))
    return np.searchsorted(edges, value_N, side="right")


def _likelihood_ratios(
    category_N: NDArray[np.int_], real_N: NDArray[np.bool_], generated_N: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """p(category | real) / p(category | generated) of every answer, add-one smoothed, from the marked answers.

    Generated answers are counted as if there were as many as real ones. Otherwise, with several per pair, add-one
    smoothing would make a new category look real. The totals are then equal and cancel, and a new category scores 1.
    Logarithms would order the scores alike, but their rounding would break ties.
    """
    categories, code_N = np.unique(category_N, return_inverse=True)
    real_K = np.bincount(code_N[real_N], minlength=len(categories))
    generated_K = np.bincount(code_N[generated_N], minlength=len(categories))
    real, generated = int(real_N.sum()), int(generated_N.sum())
    # (real_K + 1) / (generated_K · real/generated + 1) in integers, so that equal ratios are equal floats
    ratio_K = (real_K + 1) * generated / (generated_K * real + generated)
    return np.asarray(ratio_K[code_N], dtype=np.float64)
