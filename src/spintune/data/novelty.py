"""Novelty as in Self-Instruct: a text joins the pool if its ROUGE-L with every text of the pool is low.

Taken literally, that is a longest common subsequence (LCS) with each text of the pool (arXiv 2212.10560, section 2.2).
This index decides the same and computes the LCS of few pairs::

    all texts of the pool
      |   lengths   drop texts that are too short or too long, whatever their words: 2 min(m, n) / (m + n) <= threshold
      |   words     an LCS of a words leaves at most m - a words of the query unmatched, so of any m - a + c of them c
      |             are matched: take the rarest ones, and drop texts that occur less than c times in their postings
      v
    bit-parallel LCS with the remaining texts, words encoded as characters

Both bounds are exact: they never drop a pair above the threshold.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from spintune.errors import DataError
from spintune.text.rouge import f_measure
from spintune.text.words import WordRule, split_words

Ties = Literal["keep", "float"]

_EXTRA = 2
"""c - 1: how many matches beyond one are required. Each lengthens the postings to read and saves LCSs; 2 is fastest for
pools of 50,000 and 100,000 instructions."""
_LIKELY = 64
"""How many texts beyond k :meth:`NoveltyIndex.nearest` scores first."""
_SHIFT = 30
_CODES = 0x110000
"""Number of characters; a word with a higher code makes the text a tuple of numbers, which is slower."""

_Encoded = str | tuple[int, ...]
_Integers = NDArray[np.int64] | NDArray[np.uintc] | NDArray[np.intp]


@dataclass(frozen=True)
class NoveltyResult:
    """Whether a text is novel; if not, the most similar text of the pool (the first of several), and their ROUGE-L."""

    novel: bool
    nearest: int | None = None
    score: float | None = None


_NOVEL = NoveltyResult(novel=True)


class NoveltyIndex:
    """A pool of texts that decides whether another text is too similar to one of them.

    Args:
        threshold: a ROUGE-L above it is too similar; a decimal number in (0, 1].
        word_rule: defines the words of a text, see :func:`spintune.text.words.split_words`.
        ties: how to treat a score equal to the threshold. "keep": not above it, in exact arithmetic. "float": as the
            ``rouge_score`` package rounds: above it for 7 common words of 7 and 13, not for 7 of 10 and 10; for
            reproducing results of that package.

    Texts are numbered from 0 in the order in which they are added. A text without words scores 0 with every text, as in
    ``rouge_score``, so it is always novel.

        >>> pool = NoveltyIndex()
        >>> pool.add("Name three animals that sleep in winter.")
        0
        >>> pool.admit("Name three animals that hunt in winter.")
        NoveltyResult(novel=False, nearest=0, score=0.8571428571428571)
        >>> pool.admit("Name a river.").novel, len(pool)
        (True, 2)

    Memory grows with the words of the pool: about 0.4 kB per instruction of 18 words. The LCS of two long texts with
    similar words takes time proportional to the product of their lengths (a second for 200,000 words each), so filter
    out such texts before.

    Raises DataError for a threshold outside (0, 1].
    """

    def __init__(self, threshold: float = 0.7, word_rule: WordRule = "reference", ties: Ties = "keep") -> None:
        if not 0 < threshold <= 1:
            raise DataError(f"a novelty threshold of {threshold} cannot be used; give more than 0 and at most 1")
        self.threshold = threshold
        self.word_rule = word_rule
        self.ties = ties
        self.compared = 0
        """Number of LCSs computed so far."""
        self._exact = Fraction(str(threshold))
        # The bounds use a threshold lower by about 2^-30, so they hold for both kinds of ties in 64-bit arithmetic.
        self._floor = max(0, int(self._exact * 2**_SHIFT) - 1)
        self._code_of: dict[str, int] = {}
        self._postings: list[array[int]] = [array("I")]  # by code; 0 stands for words that are not in the pool
        self._lengths = array("I")
        self._longest = 0
        self._texts: list[_Encoded] = []
        self._first: dict[_Encoded, int] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """Adds a text to the pool, novel or not, and returns its number."""
        return self._add(split_words(text, self.word_rule))

    def verdict(self, text: str) -> NoveltyResult:
        """Whether the text is novel. The pool does not change."""
        return self._verdict(split_words(text, self.word_rule))

    def admit(self, text: str) -> NoveltyResult:
        """Adds a text to the pool if it is novel."""
        words = split_words(text, self.word_rule)
        verdict = self._verdict(words)
        if verdict.novel:
            self._add(words)
        return verdict

    def extend(self, texts: Iterable[str]) -> list[NoveltyResult]:
        """Admits texts one after another, so each is also compared with those admitted before it."""
        return [self.admit(text) for text in texts]

    def nearest(self, text: str, k: int = 1) -> list[tuple[int, float]]:
        """Numbers and scores of the ``k`` most similar texts, the best first; for equal scores the lower number first.

        Texts that share no word with ``text`` score 0 and are left out, so the list may be shorter.
        """
        codes = self._encode(split_words(text, self.word_rule))
        hit = self._hits(dict.fromkeys(codes))
        if not len(hit):
            return []
        count_N = np.bincount(hit)
        index_N = count_N.nonzero()[0]
        length_N = np.frombuffer(self._lengths, np.uintc)[index_N]
        bound_N = np.minimum(count_N[index_N], length_N) / (length_N + len(codes))
        # The k best scores of some likely texts: a text that scores higher has a bound at least as high.
        if (some := k + _LIKELY) < len(index_N):
            likely = index_N[np.argpartition(bound_N, -some)[-some:]]
            floor = np.partition(self._scores(codes, likely), -k)[-k] / 2
            index_N = index_N[bound_N >= floor * (1 - 1e-9)]
        score_N = self._scores(codes, index_N)
        best = np.lexsort((index_N, -score_N))[:k]
        return [(int(index_N[i]), float(score_N[i])) for i in best if score_N[i] > 0]

    def _add(self, words: Sequence[str]) -> int:
        index = len(self._texts)
        for word in words:
            code = self._code_of.get(word)
            if code is None:
                code = self._code_of[word] = len(self._postings)
                self._postings.append(array("I"))
            self._postings[code].append(index)  # once for each occurrence
        text = _as_text(self._encode(words))
        self._texts.append(text)
        self._first.setdefault(text, index)
        self._lengths.append(len(words))
        self._longest = max(self._longest, len(words))
        return index

    def _verdict(self, words: Sequence[str]) -> NoveltyResult:
        codes = self._encode(words)
        twin = self._first.get(_as_text(codes))
        if twin is not None and words and self.threshold < 1:
            return NoveltyResult(False, twin, 1.0)
        index_N, needed_N = self._shortlist(codes)
        if not len(index_N):
            return _NOVEL
        common_N = self._common(codes, index_N)
        best = _NOVEL
        for i in (common_N >= needed_N).nonzero()[0].tolist():
            index, common = int(index_N[i]), int(common_N[i])
            length = self._lengths[index]
            score = f_measure(common / len(codes), common / length)
            if self._exceeds(score, common, len(codes) + length) and (best.score is None or score > best.score):
                best = NoveltyResult(False, index, score)
        return best

    def _exceeds(self, score: float, common: int, lengths: int) -> bool:
        """Whether a pair is above the threshold, see ``ties``."""
        return score > self.threshold if self.ties == "float" else Fraction(2 * common, lengths) > self._exact

    def _shortlist(self, codes: Sequence[int]) -> tuple[_Integers, _Integers]:
        """The texts that may be above the threshold, in order, and the LCS that each needs for that."""
        length = len(codes)
        shortest = self._floor * length // (2 ** (_SHIFT + 1) - self._floor) + 1
        if shortest > self._longest:
            return _NOBODY
        # Probe the rarest words until they contain all but `least - 1` of the matches that the shortest text needs.
        spare = length
        least = least_needed = self._floor * (length + shortest) // 2 ** (_SHIFT + 1) + 1
        probed = []
        occurrences = Counter(codes)
        for code in sorted(occurrences, key=lambda code: len(self._postings[code])):
            probed.append(code)
            spare -= occurrences[code]
            least = least_needed - spare
            if least > _EXTRA:
                break
        hit = np.sort(self._hits(probed))
        later = hit[least - 1 :]
        hit = later[later == hit[: len(later)]]  # drops the first least - 1 hits of each text
        if not len(hit):
            return _NOBODY
        first = np.concatenate(([0], (hit[1:] != hit[:-1]).nonzero()[0] + 1, [len(hit)]))
        index_N = hit[first[:-1]]
        count_N = np.diff(first) + (least - 1 + spare)  # an upper bound of the LCS: all words not probed match
        length_N = np.frombuffer(self._lengths, np.uintc)[index_N].astype(np.int64)
        needed_N = (self._floor * (length_N + length) >> (_SHIFT + 1)) + 1
        possible = np.minimum(count_N, length_N) >= needed_N
        return index_N[possible], needed_N[possible]

    def _hits(self, codes: Iterable[int]) -> _Integers:
        """The texts that contain the words, once per occurrence."""
        return np.frombuffer(b"".join([self._postings[code] for code in codes]), np.uintc)

    def _scores(self, codes: Sequence[int], index_N: _Integers) -> NDArray[np.float64]:
        common_N = self._common(codes, index_N)
        length_N = np.frombuffer(self._lengths, np.uintc)[index_N]
        score_N = np.zeros(len(index_N))
        some = common_N > 0
        score_N[some] = f_measure(common_N[some] / len(codes), common_N[some] / length_N[some])
        return score_N

    def _common(self, codes: Sequence[int], index_N: _Integers) -> _Integers:
        """LCS with each text.

        rapidfuzz's score_cutoff is not used: set to the LCS of two texts of over 64 words, it may return 0 (3.14.6).
        """
        self.compared += len(index_N)
        texts = [self._texts[index] for index in index_N.tolist()]
        return cdist([_as_text(codes)], texts, scorer=LCSseq.similarity, dtype=np.int64)[0]

    def _encode(self, words: Sequence[str]) -> list[int]:
        code_of = self._code_of
        return [code_of.get(word, 0) for word in words]


_NOBODY = np.empty(0, np.int64), np.empty(0, np.int64)


def _as_text(codes: Sequence[int]) -> _Encoded:
    """One character per word, which rapidfuzz compares fastest. Surrogates work like other characters."""
    return "".join(map(chr, codes)) if max(codes, default=0) < _CODES else tuple(codes)
