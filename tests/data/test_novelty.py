"""The index gives the verdicts of a comparison with every text of the pool, for a small part of the work."""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import LCSseq
from rapidfuzz.process import cdist
from rouge_score import scoring
from rouge_score.rouge_scorer import RougeScorer

from spintune.data.novelty import NoveltyIndex, NoveltyResult, Ties
from spintune.data.sources import Source, read_source
from spintune.errors import DataError
from spintune.text.words import WordRule, split_words

scorer = RougeScorer(["rougeL"], use_stemmer=False)
CHINESE = "请写一首关于春天的诗并解释它为什么好，用三句话描述这张地图上的河流"


@functools.cache
def instructions(count: int, repeats: float = 0.6) -> tuple[str, ...]:
    """Halves of built-in seeds put together; a share repeats an earlier one with some words changed."""
    seeds = [
        example.prompt[-1].content.split("\n\n")[0].split() for example in read_source(Source("builtin:seeds")).examples
    ]
    vocabulary = sorted({word for seed in seeds for word in seed})
    draw = random.Random(count)
    texts: list[list[str]] = []
    for _ in range(count):
        if texts and draw.random() < repeats:
            words = list(draw.choice(texts))
            for _ in range(draw.randint(0, len(words) // 3)):
                place = draw.randrange(len(words))
                words[place : place + draw.randint(0, 1)] = draw.sample(vocabulary, draw.randint(0, 1))
        else:
            first, second = draw.sample(seeds, 2)
            words = first[: len(first) // 2 + 1] + second[len(second) // 2 :]
        texts.append(words)
    return tuple(" ".join(words) for words in texts)


@functools.cache
def chinese(count: int) -> tuple[str, ...]:
    """The same with accents, and Chinese in the place of some words."""
    draw = random.Random(count)
    return tuple(
        "".join(
            CHINESE[len(word) * 3 : len(word) * 3 + 2] if len(word) > 6 else f" {word.replace('e', 'é')} "
            for word in text.split()
        )
        if draw.random() < 0.9
        else text
        for text in instructions(count)
    )


def lcs_by_table(left: Sequence[str], right: Sequence[str]) -> int:
    row = [0] * (len(right) + 1)
    for word in left:
        diagonal = 0
        for place, other in enumerate(right, 1):
            diagonal, row[place] = row[place], diagonal + 1 if word == other else max(row[place], row[place - 1])
    return row[-1]


@dataclass(frozen=True)
class BruteForce:
    """LCS of all pairs, and the definition of novelty."""

    lengths: np.ndarray
    common: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[Sequence[str]]) -> BruteForce:
        """By the table for few texts; for many by rapidfuzz, whose LCS the scores of rouge_score confirm elsewhere."""
        if len(texts) < 50:
            common = np.array([[lcs_by_table(a, b) for b in texts] for a in texts])
        else:
            numbers = {word: number for number, word in enumerate(dict.fromkeys(itertools.chain(*texts)))}
            coded = [[numbers[word] for word in text] for text in texts]
            common = cdist(coded, coded, scorer=LCSseq.similarity, dtype=np.int32)
        return cls(np.array([len(text) for text in texts]), common)

    def score(self, one: int, others: np.ndarray) -> np.ndarray:
        """In the operations of rouge_score."""
        scores = np.zeros(len(others))
        common = self.common[one, others]
        some = common > 0
        precision, recall = common[some] / self.lengths[one], common[some] / self.lengths[others][some]
        scores[some] = 2 * precision * recall / (precision + recall)
        return scores

    def extend(self, threshold: float, ties: Ties) -> list[NoveltyResult]:
        exact = Fraction(str(threshold))
        pool: list[int] = []
        verdicts = []
        for text in range(len(self.lengths)):
            others = np.array(pool, dtype=int)
            score = self.score(text, others)
            if ties == "float":
                above = score > threshold
            else:
                lengths = self.lengths[text] + self.lengths[others]
                above = 2 * self.common[text, others] * exact.denominator > exact.numerator * lengths
            if above.any():
                nearest = int(np.argmax(np.where(above, score, -1)))
                verdicts.append(NoveltyResult(False, nearest, score[nearest]))
            else:
                verdicts.append(NoveltyResult(True))
                pool.append(text)
        return verdicts


SLOW = pytest.mark.slow


@functools.cache
def all_pairs(texts: tuple[str, ...], tokeniser: WordRule) -> BruteForce:
    return BruteForce.of([split_words(text, tokeniser) for text in texts])


@pytest.mark.parametrize("ties", ["keep", "float"])
@pytest.mark.parametrize("threshold", [0.3, pytest.param(0.6, marks=SLOW), 0.7, pytest.param(0.9, marks=SLOW)])
@pytest.mark.parametrize("tokeniser", ["reference", "unicode"])
def test_verdicts_on_2000_instructions_equal_brute_force(threshold: float, ties: Ties, tokeniser: WordRule) -> None:
    texts = instructions(2000) if tokeniser == "reference" else chinese(2000)
    expected = all_pairs(texts, tokeniser).extend(threshold, ties)
    assert NoveltyIndex(threshold, tokeniser, ties).extend(texts) == expected
    novel = sum(verdict.novel for verdict in expected)
    assert 0 < novel < 1950


@pytest.mark.parametrize("ties", ["keep", "float"])
def test_a_pool_built_by_rouge_score_itself_is_the_same(ties: Ties) -> None:
    """The scorer on every pair, its floats with the float rule, and 0.7 decided in fractions with the other."""
    texts = instructions(150)
    pool: list[str] = []
    expected = []
    for text in texts:
        scores = [scorer.score(other, text)["rougeL"].fmeasure for other in pool]
        exact = [Fraction(score).limit_denominator(1000) for score in scores]
        above = [s for s, e in zip(scores, exact, strict=True) if (s > 0.7 if ties == "float" else e > Fraction(7, 10))]
        expected.append(NoveltyResult(False, scores.index(max(above)), max(above)) if above else NoveltyResult(True))
        if not above:
            pool.append(text)
    assert NoveltyIndex(0.7, ties=ties).extend(texts) == expected
    assert 20 < len(pool) < 130


LENGTHS = range(1, 151)
TIES = [
    (m, n, 7 * (m + n) // 20) for m in LENGTHS for n in LENGTHS if (m + n) % 20 == 0 and 7 * (m + n) <= 20 * min(m, n)
]


def pair_with(m: int, n: int, common: int) -> tuple[str, str]:
    shared = [f"both{k}" for k in range(common)]
    left = shared + [f"left{k}" for k in range(m - common)]
    right = [f"right{k}" for k in range(n - common)] + shared
    return " ".join(left), " ".join(right)


def test_of_531_ties_at_0_7_floats_reject_272_and_exact_arithmetic_none() -> None:
    """The library's own F is above 0.7 in 272, equal in 241 and below in 18 of them."""
    floats = [scoring.fmeasure(lcs / m, lcs / n) for m, n, lcs in TIES]
    assert len(TIES) == 531
    assert [sum(f > 0.7 for f in floats), sum(f == 0.7 for f in floats), sum(f < 0.7 for f in floats)] == [272, 241, 18]
    for triple, score in zip(TIES, floats, strict=True):
        left, right = pair_with(*triple)
        exact, rounded = NoveltyIndex(0.7, ties="keep"), NoveltyIndex(0.7, ties="float")
        exact.add(left)
        rounded.add(left)
        assert exact.verdict(right) == NoveltyResult(True)
        assert rounded.verdict(right) == (NoveltyResult(False, 0, score) if score > 0.7 else NoveltyResult(True))


@pytest.mark.parametrize(
    ("triple", "kept"),
    [((10, 10, 7), True), ((23, 37, 21), True), ((7, 13, 7), False), ((8, 12, 7), False), ((9, 11, 7), False)],
)
def test_ties_that_rounding_decides(triple: tuple[int, int, int], kept: bool) -> None:
    left, right = pair_with(*triple)
    index = NoveltyIndex(0.7, ties="float")
    index.add(left)
    assert index.verdict(right).novel is kept


@pytest.mark.parametrize(
    "threshold", [0.001, 1 / 3, 0.3333, 0.34, 0.1 + 0.2, 0.6999999999999999, 0.7000000000000001, 1]
)
@pytest.mark.parametrize("ties", ["keep", "float"])
def test_any_threshold_is_read_as_the_decimal_number_that_it_prints_as(threshold: float, ties: Ties) -> None:
    """Every pair of lengths up to 12, with every LCS: 0.1 + 0.2 is 0.30000000000000004, and 3 of 10 and 10 is below."""
    for m, n in itertools.product(range(1, 13), repeat=2):
        for lcs in range(min(m, n) + 1):
            left, right = pair_with(m, n, lcs)
            index = NoveltyIndex(threshold, ties=ties)
            index.add(left)
            score = scoring.fmeasure(lcs / m, lcs / n)
            above = score > threshold if ties == "float" else Fraction(2 * lcs, m + n) > Fraction(str(threshold))
            assert index.verdict(right) == (NoveltyResult(False, 0, score) if above else NoveltyResult(True))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_of_two_long_texts_one_common_word_decides(threshold: float) -> None:
    """More than 64 words take several machine words in the LCS: the least LCS above the threshold, and one less."""
    for m, n in itertools.product(range(60, 200, 7), repeat=2):
        least = next(lcs for lcs in itertools.count() if Fraction(2 * lcs, m + n) > Fraction(str(threshold)))
        for lcs in (least, least - 1):
            if lcs <= min(m, n):
                left, right = pair_with(m, n, lcs)
                index = NoveltyIndex(threshold)
                index.add(left)
                assert index.verdict(right).novel is (lcs < least)


few_letters = st.lists(st.text("abc", max_size=1).filter(bool), max_size=9).map(" ".join)
many_words = st.lists(st.sampled_from(["a", "b", "the", "of", "x1", "x2", "x3", "x4", "?"]), max_size=16).map(" ".join)


@settings(deadline=None, max_examples=300)
@given(
    texts=st.lists(few_letters, max_size=14) | st.lists(many_words, max_size=14),
    threshold=st.sampled_from([0.05, 0.25, 0.4, 0.5, 0.6, 2 / 3, 0.7, 0.75, 0.8, 0.9, 1.0]),
    ties=st.sampled_from(["keep", "float"]),
)
def test_verdicts_on_any_texts_equal_brute_force(texts: list[str], threshold: float, ties: Ties) -> None:
    expected = (
        BruteForce.of([split_words(text, "reference") for text in texts]).extend(threshold, ties) if texts else []
    )
    assert NoveltyIndex(threshold, ties=ties).extend(texts) == expected


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(texts=st.lists(few_letters | many_words, min_size=1, max_size=14), k=st.integers(1, 16))
def test_nearest_on_any_texts_equals_brute_force(texts: list[str], k: int) -> None:
    index = NoveltyIndex()
    for text in texts:
        index.add(text)
    scores = BruteForce.of([split_words(text, "reference") for text in texts]).score(0, np.arange(len(texts)))
    expected = sorted((-score, number) for number, score in enumerate(scores.tolist()) if score)[:k]
    assert index.nearest(texts[0], k) == [(number, -score) for score, number in expected]


@pytest.mark.parametrize("k", [1, 2, 10, 300, 2000])
def test_the_nearest_of_1500_are_those_that_brute_force_finds(k: int) -> None:
    texts = instructions(2000)
    index = NoveltyIndex(1.0)
    for text in texts[:1500]:
        index.add(text)
    for number in range(1490, 1560):  # ten of them are in the pool
        scores = all_pairs(texts, "reference").score(number, np.arange(1500))
        expected = sorted((-score, other) for other, score in enumerate(scores.tolist()) if score)[:k]
        assert index.nearest(texts[number], k) == [(other, -score) for score, other in expected]


def test_the_nearest_scores_are_those_of_rouge_score() -> None:
    texts = instructions(200)
    index = NoveltyIndex(1.0)
    for text in texts[:150]:
        index.add(text)
    for text in texts[150:170]:
        scores = [scorer.score(other, text)["rougeL"].fmeasure for other in texts[:150]]
        expected = sorted(range(150), key=lambda other: (-scores[other], other))[:10]
        assert index.nearest(text, 10) == [(other, scores[other]) for other in expected]


def test_texts_are_numbered_in_the_order_in_which_they_came_in() -> None:
    index = NoveltyIndex()
    assert [index.add("one two three four"), index.add("one two three four"), index.add("five six")] == [0, 1, 2]
    assert index.admit("seven eight nine") == NoveltyResult(True)
    assert len(index) == 4
    assert index.verdict("seven eight nine") == NoveltyResult(False, 3, 1.0)
    assert index.verdict("ONE, two; three: four!") == NoveltyResult(False, 0, 1.0)  # the first of two equals


def test_a_verdict_leaves_the_pool_as_it_is() -> None:
    index = NoveltyIndex()
    index.add("name a river in france")
    assert (
        index.verdict("name a lake in northern italy")
        == index.verdict("name a lake in northern italy")
        == NoveltyResult(True)
    )
    assert index.nearest("italy") == []
    assert len(index) == 1


def test_words_that_the_pool_lacks_do_not_match_each_other() -> None:
    """Five common words of 5 and 10: F = 2 * 5 / 15."""
    index = NoveltyIndex(0.6)
    index.add("a b c d e")
    assert index.verdict("a b c d e v w x y z") == NoveltyResult(False, 0, pytest.approx(2 / 3))
    assert index.verdict("p p p p p") == NoveltyResult(True)


@pytest.mark.parametrize("text", ["", "  ", "?!", "写一首诗"])
def test_a_text_without_words_is_novel_however_often_it_comes(text: str) -> None:
    index = NoveltyIndex()
    assert index.extend([text, "one two three", text]) == [NoveltyResult(True)] * 3
    assert index.nearest(text, 3) == []


def test_the_unicode_tokeniser_rejects_the_repeated_texts_that_the_reference_lets_through() -> None:
    texts = ["写一首关于春天的诗", "写一首关于秋天的诗", "写一首关于春天的诗"]
    assert [verdict.novel for verdict in NoveltyIndex(0.7, "reference").extend(texts)] == [True, True, True]
    assert NoveltyIndex(0.7, "unicode").extend(texts) == [
        NoveltyResult(True),
        NoveltyResult(False, 0, pytest.approx(8 / 9)),  # one character of nine differs
        NoveltyResult(False, 0, 1.0),
    ]


def test_an_empty_pool_finds_everything_novel() -> None:
    assert NoveltyIndex().verdict("one two three") == NoveltyResult(True)
    assert NoveltyIndex().nearest("one two three", 5) == []


def test_few_pairs_need_an_lcs_and_a_repeated_text_needs_none() -> None:
    index = NoveltyIndex()
    index.extend(instructions(2000))
    pairs = 2000 * len(index) / 2
    assert index.compared < 0.01 * pairs
    before = index.compared
    assert not any(verdict.novel for verdict in index.extend([instructions(2000)[0]] * 1000))
    assert index.compared == before


def test_a_text_of_300_000_words_is_compared_with_none_that_is_too_short() -> None:
    index = NoveltyIndex()
    index.extend(instructions(200))
    before = index.compared
    long = "word and another " * 100_000
    assert index.verdict(long) == NoveltyResult(True)
    assert index.compared == before
    index.add(long)
    assert index.verdict(long).nearest == len(index) - 1
    assert index.verdict(instructions(200)[0]).nearest == 0


def test_words_coded_as_surrogates_are_words_like_others() -> None:
    """More than 0xE000 different words: the codes of some are those that UTF-16 reserves."""
    index = NoveltyIndex(0.5)
    for start in range(0, 58_000, 10):
        index.add(" ".join(f"w{number}" for number in range(start, start + 10)))
    for start in (55_280, 55_290, 56_320, 57_340):
        words = [f"w{number}" for number in range(start, start + 10)]
        assert index.verdict(" ".join([*words[:-1], "new"])) == NoveltyResult(False, start // 10, pytest.approx(0.9))
        assert index.verdict(" ".join(words[::-1])) == NoveltyResult(True)  # one word in order: 0.1
        assert index.nearest(" ".join(words[::-1])) == [(start // 10, pytest.approx(0.1))]


@pytest.mark.slow
def test_there_may_be_more_words_than_there_are_characters() -> None:
    index = NoveltyIndex(0.5)
    for start in range(0, 0x110000 + 5, 1000):
        index.add(" ".join(f"w{number}" for number in range(start, start + 1000)))
    for start in (0, 0x110000 // 1000 * 1000):  # all words of the one are characters, of the other some are
        words = [f"w{number}" for number in range(start, start + 1000)]
        assert index.verdict(" ".join(words[100:])) == NoveltyResult(False, start // 1000, pytest.approx(1800 / 1900))
        assert index.verdict(" ".join(words)).score == 1
        assert index.nearest(" ".join(words[::-1])) == [(start // 1000, pytest.approx(0.001))]
        last = " ".join(words[-2:])
        assert index.nearest(last) == [(start // 1000, pytest.approx(2 * 2 / 1002))]


@pytest.mark.parametrize("threshold", [0.0, -0.7, 1.5, float("nan")])
def test_a_threshold_outside_zero_to_one_is_an_error(threshold: float) -> None:
    with pytest.raises(DataError) as caught:
        NoveltyIndex(threshold)
    assert str(caught.value) == (f"a novelty threshold of {threshold} cannot be used; give more than 0 and at most 1")
