"""ROUGE-L (Lin 2004): the longest sequence of words that two texts share.

The score equals that of the ``rouge_score`` package (0.1.2, no stemming) to the last bit, on words by its rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

Number = TypeVar("Number", float, NDArray[np.float64])


def rouge_l(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L F-measure of two texts' words; symmetric, and 0 when either has none.

    "the cat sat" against "the cat" has a longest common subsequence of 2, precision 2/3, recall 2/2, F = 0.8.
    """
    common = LCSseq.similarity(prediction, reference)
    return f_measure(common / len(prediction), common / len(reference)) if common else 0.0


def f_measure(precision: Number, recall: Number) -> Number:
    """Harmonic mean of precision and recall above 0, rounded as ``rouge_score`` rounds it.

    With an LCS of L words out of m and n it is 2 L / (m + n), but for the last bit: L = 7 of 7 and 13 gives
    0.7000000000000001.
    """
    return 2 * precision * recall / (precision + recall)
