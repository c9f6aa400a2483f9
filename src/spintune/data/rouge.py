"""ROUGE-L (Lin 2004): how much of two texts is one sequence of words, and what a word is.

The score is that of the ``rouge_score`` package (0.1.2, no stemming) to the last bit. Its tokeniser knows ASCII letters
and digits only, so two identical texts in Chinese, Thai or Arabic score 0; "unicode" is a tokeniser for any language.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq

Tokeniser = Literal["reference", "unicode"]

_ASCII_WORD = re.compile("[a-z0-9]+")

# Blocks of the scripts that put no spaces between words: ideographs and kana, and those of class SA of Unicode's
# line breaking algorithm (UAX #14), which need a dictionary to find words.
_SPACELESS = (
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3031-\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"  # Han
    "\U00020000-\U0003ffff"  # Han: planes 2 and 3
    "\u3041-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f\u3100-\u312f\u31a0-\u31bf"  # kana, bopomofo
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Myanmar
    "\u1780-\u17ff"  # Khmer
    "\u1950-\u19df\u1a20-\u1aaf\uaa80-\uaadf\U00011700-\U0001174f"  # Tai Le, New Tai Lue, Tai Tham, Tai Viet, Ahom
)
_SINGLE = rf"(?=[^\W\d])[{_SPACELESS}]"  # marks are not \w, so they are never a token of their own
_TOKEN = re.compile(rf"{_SINGLE}[^\w\s]*|(?!{_SINGLE})\w(?:(?!{_SINGLE})\S)*")

Number = TypeVar("Number", float, NDArray[np.float64])


def tokenise(text: str, tokeniser: Tokeniser = "reference") -> tuple[str, ...]:
    """The words of a text, in order.

    reference  lower-case runs of ASCII letters and digits; everything else separates, as in ``rouge_score``
    unicode    runs of letters, digits and their marks of any script, after compatibility composition and case folding
               (NFKC). A script without spaces between words gives one token for a letter with its marks.

    They agree on ASCII text, underscores included:

        >>> tokenise("It's snake_case, v2!")
        ('it', 's', 'snake', 'case', 'v2')
        >>> tokenise("Naïve CAFÉ, 東京 2024年", "unicode")
        ('naïve', 'café', '東', '京', '2024', '年')
        >>> tokenise("ที่นี่", "unicode")
        ('ที่', 'นี่')

    What is invisible (joiners, soft hyphens, variation selectors) is left out; symbols and emoji separate.
    """
    if tokeniser == "reference" or text.isascii():
        return tuple(_ASCII_WORD.findall(text.lower()))
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return tuple(_TOKEN.findall("".join(map(_part_of_word, folded))))


@functools.cache
def _part_of_word(char: str) -> str:
    """The character itself in a word; nothing where it is invisible; a space where it separates."""
    category = unicodedata.category(char)
    if category == "Cf" or "VARIATION SELECTOR" in unicodedata.name(char, ""):
        return " " if char == "\u200b" else ""  # the zero width space is one of the invisible, but separates
    return char if category[0] in "LMN" else " "


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
