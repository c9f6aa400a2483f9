"""ROUGE-L (Lin 2004): the longest sequence of words that two texts share.

On ASCII texts the score equals that of the ``rouge_score`` package (0.1.2, no stemming) to the last bit. That package
drops all other letters, so it gives 0 for two equal texts in Russian; here they are words as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from rapidfuzz.distance import LCSseq

from spintune.text.words import split_words

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Number = TypeVar("Number", float, "NDArray[np.float64]")

MAX_WORDS = 20_000
"""Only so many words at the beginning of each text count: time grows with the product of both lengths, and two texts of
this length take a quarter of a second."""


def rouge_l(prediction: str, reference: str) -> float:
    """ROUGE-L F-measure of two texts, symmetric, and 0 when either has no words.

    "the cat sat" against "the cat" has a longest common subsequence of 2 words, precision 2/3, recall 2/2, F = 0.8.

    Words are those of :func:`~spintune.text.words.split_words`, of any script; those beyond the first :data:`MAX_WORDS`
    of a text do not count.

    Raises TypeError for anything but texts; :func:`rouge_l_tokens` scores lists of words.
    """
    if not (isinstance(prediction, str) and isinstance(reference, str)):
        raise TypeError("rouge_l scores two texts; use rouge_l_tokens for lists of words")
    return rouge_l_tokens(split_words(prediction), split_words(reference))


def rouge_l_tokens(prediction: Sequence[str], reference: Sequence[str]) -> float:
    """ROUGE-L F-measure of two lists of words, as :func:`rouge_l`.

    Raises TypeError for a text, of which it would compare the characters.
    """
    if isinstance(prediction, str) or isinstance(reference, str):
        raise TypeError("rouge_l_tokens scores lists of words; use rouge_l for texts")
    prediction, reference = prediction[:MAX_WORDS], reference[:MAX_WORDS]
    common = LCSseq.similarity(prediction, reference)
    return f_measure(common / len(prediction), common / len(reference)) if common else 0.0


def f_measure(precision: Number, recall: Number) -> Number:
    """Harmonic mean of precision and recall above 0, rounded as ``rouge_score`` rounds it.

    With an LCS of L words out of m and n it is 2 L / (m + n), but for the last bit: L = 7 of 7 and 13 gives
    0.7000000000000001.
    """
    return 2 * precision * recall / (precision + recall)
