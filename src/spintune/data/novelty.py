"""Novelty as Self-Instruct defines it: a text joins the pool when its ROUGE-L with every text of the pool is low.

Taken literally that is an LCS with each text of the pool (arXiv 2212.10560, section 2.2). This index gives the same
verdicts and computes an LCS for a few pairs only::

    all texts of the pool
      |   lengths   2 min(m, n) / (m + n) <= threshold: too short or too long, whatever the words
      |   words     an LCS of a leaves at most m - a words of the query without a partner, so of any m - a + c of them
      |             c have one: take the rarest, and only texts that come up c times in their postings are left
      v
    bit-parallel LCS of what is left, by words encoded as characters

Both bounds are exact: they never lose a pair above the threshold.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist

from spintune.errors import DataError
from spintune.text.rouge import f_measure
from spintune.text.words import WordRule, split_words

Ties = Literal["keep", "float"]

_EXTRA = 2
"""How many partners are asked for beyond the first (c - 1). Each lengthens the postings to read and spares LCSs; 2 was
fastest for pools of 50,000 and 100,000 instructions."""
_LIKELY = 64
"""Texts beyond k that :meth:`NoveltyIndex.nearest` looks at first."""
_SHIFT = 30
_CODES = 0x110000
"""Characters there are; words with a higher code make the text a tuple of numbers, which is slower."""

_Encoded = str | tuple[int, ...]
_Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class NoveltyResult:
    """Whether a text is novel; if not, the most similar text of the pool (the first of several), and their ROUGE-L."""

    novel: bool
    nearest: int | None = None
    score: float | None = None


_NOVEL = NoveltyResult(novel=True)


class NoveltyIndex:
    """A pool of texts that knows whether another one is too similar to any of them.

    threshold:  ROUGE-L above it is too similar; a decimal number in (0, 1]
    tokeniser:  what a word is, see :func:`spintune.text.words.split_words`
    ties:       what happens to a pair whose score is the threshold. "keep": it is not above, in exact arithmetic.
                "float": as the ``rouge_score`` package's rounding has it, above for 7 words common to 7 and 13, not
                above for 7 common to 10 and 10. For reproducing results that were made with it.

    Texts are numbered from 0 in the order in which they came in. A text without words scores 0 with everything, as in
    ``rouge_score``: it is always novel, however often it comes.

        >>> pool = NoveltyIndex()
        >>> pool.add("Name three animals that sleep in winter.")
        0
        >>> pool.admit("Name three animals that hunt in winter.")
        NoveltyResult(novel=False, nearest=0, score=0.8571428571428571)
        >>> pool.admit("Name a river.").novel, len(pool)
        (True, 2)

    Memory grows with the words of the pool: about 0.4 kB an instruction of 18 words. The length of a candidate is
    bounded by memory only, but the LCS of two long texts with much the same words takes time in proportion to the
    product of their lengths (a second for 200,000 words each), so leave such texts out beforehand.

    Raises DataError for a threshold that is not in (0, 1].
    """

    def __init__(self, threshold: float = 0.7, tokeniser: WordRule = "reference", ties: Ties = "keep") -> None:
        if not 0 < threshold <= 1:
            raise DataError(f"a novelty threshold of {threshold} cannot be used; give more than 0 and at most 1")
        self.threshold = threshold
        self.tokeniser = tokeniser
        self.ties = ties
        self.compared = 0
        """Pairs whose LCS was computed so far."""
        self._exact = Fraction(str(threshold))
        # Bounds use a threshold that is lower by 2^-30 or so: then they hold for either rule, in 64-bit arithmetic.
        self._floor = max(0, int(self._exact * 2**_SHIFT) - 1)
        self._code_of: dict[str, int] = {}
        self._postings: list[array[int]] = [array("I")]  # of each code; 0 stands for words that the pool lacks
        self._lengths = array("I")
        self._longest = 0
        self._texts: list[_Encoded] = []
        self._first: dict[_Encoded, int] = {}

    def __len__(self) -> int:
        return len(self._texts)

    def add(self, text: str) -> int:
        """Puts a text into the pool, novel or not; its number."""
        return self._add(split_words(text, self.tokeniser))

    def verdict(self, text: str) -> NoveltyResult:
        """Whether the text is novel. The pool stays as it is."""
        return self._verdict(split_words(text, self.tokeniser))

    def admit(self, text: str) -> NoveltyResult:
        """Puts a text into the pool if it is novel."""
        words = split_words(text, self.tokeniser)
        verdict = self._verdict(words)
        if verdict.novel:
            self._add(words)
        return verdict

    def extend(self, texts: Iterable[str]) -> list[NoveltyResult]:
        """Admits texts one after the other, so each is compared with those admitted before it as well."""
        return [self.admit(text) for text in texts]

    def nearest(self, text: str, k: int = 1) -> list[tuple[int, float]]:
        """Numbers and scores of the ``k`` most similar texts, best first; of equal scores the lower number.

        Texts that share no word with it score 0 and are left out, so there may be fewer.
        """
        codes = self._encode(split_words(text, self.tokeniser))
        hit = self._hits(dict.fromkeys(codes))
        if not len(hit):
            return []
        count_N = np.bincount(hit)
        index_N = count_N.nonzero()[0]
        length_N = np.frombuffer(self._lengths, np.uintc)[index_N]
        bound_N = np.minimum(count_N[index_N], length_N) / (length_N + len(codes))
        # Some likely texts give k scores; whatever scores higher than the lowest of these has a bound as high.
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
        """Whether a pair is above the threshold, by the rule for ties."""
        return score > self.threshold if self.ties == "float" else Fraction(2 * common, lengths) > self._exact

    def _shortlist(self, codes: Sequence[int]) -> tuple[_Integers, _Integers]:
        """Texts that may be above the threshold, in order; and the LCS that each would need for it."""
        length = len(codes)
        shortest = self._floor * length // (2 ** (_SHIFT + 1) - self._floor) + 1
        if shortest > self._longest:
            return _NOBODY
        # The rarest words, until all but `least - 1` of the partners that the shortest text needs are among them.
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
        hit = later[later == hit[: len(later)]]  # without the first least - 1 hits of each text
        if not len(hit):
            return _NOBODY
        first = np.concatenate(([0], (hit[1:] != hit[:-1]).nonzero()[0] + 1, [len(hit)]))
        index_N = hit[first[:-1]]
        count_N = np.diff(first) + (least - 1 + spare)  # the LCS is no longer, if all words not probed have partners
        length_N = np.frombuffer(self._lengths, np.uintc)[index_N].astype(np.int64)
        needed_N = (self._floor * (length_N + length) >> (_SHIFT + 1)) + 1
        possible = np.minimum(count_N, length_N) >= needed_N
        return index_N[possible], needed_N[possible]

    def _hits(self, codes: Iterable[int]) -> _Integers:
        """The texts that hold the words, once for each occurrence in a text."""
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

        Without rapidfuzz's score_cutoff: given the very LCS of two texts of over 64 words it may return 0 (3.14.6).
        """
        self.compared += len(index_N)
        texts = [self._texts[index] for index in index_N.tolist()]
        return cdist([_as_text(codes)], texts, scorer=LCSseq.similarity, dtype=np.int64)[0]

    def _encode(self, words: Sequence[str]) -> list[int]:
        code_of = self._code_of
        return [code_of.get(word, 0) for word in words]


_NOBODY = np.empty(0, np.int64), np.empty(0, np.int64)


def _as_text(codes: Sequence[int]) -> _Encoded:
    """A character for each word: what rapidfuzz compares fastest. Surrogates serve like any other character."""
    return "".join(map(chr, codes)) if max(codes, default=0) < _CODES else tuple(codes)
