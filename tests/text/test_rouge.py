"""ROUGE-L is rouge_score's to the last bit on ASCII texts, and counts the words of every script."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import scoring, tokenize
from rouge_score.rouge_scorer import RougeScorer

from spintune.data.sources import Source, read_source
from spintune.text.rouge import MAX_WORDS, f_measure, rouge_l, rouge_l_tokens
from spintune.text.words import split_words

scorer = RougeScorer(["rougeL"], use_stemmer=False)


def reference_score(prediction: str, reference: str) -> float:
    return scorer.score(reference, prediction)["rougeL"].fmeasure


def test_rouge_l_by_hand() -> None:
    """Of "the cat sat" and "the cat" two words are common: P = 2/3, R = 2/2, F = 2 * 2 / (3 + 2)."""
    assert rouge_l_tokens(("the", "cat", "sat"), ("the", "cat")) == pytest.approx(0.8)
    assert rouge_l_tokens(tuple("abcd"), tuple("dcba")) == 0.25
    for pair in (((), ()), (("a",), ()), ((), ("a",)), (("a",), ("b",))):
        assert rouge_l_tokens(*pair) == 0


def test_a_text_is_never_scored_by_its_characters() -> None:
    with pytest.raises(TypeError, match="use rouge_l for texts"):
        rouge_l_tokens("the cat", ["the", "cat"])
    for words in (["the", "cat"], None):
        with pytest.raises(TypeError, match="scores two texts"):
            rouge_l("the cat", words)  # type: ignore[arg-type]


@pytest.mark.slow
def test_scores_of_real_instructions_equal_rouge_score_to_the_last_bit() -> None:
    """Built-in seeds, each against others of which a share of its words was mixed in."""
    texts = [example.prompt[-1].content for example in read_source(Source("builtin:seeds")).examples]
    draw = random.Random(0)
    scores: Counter[float] = Counter()
    for _ in range(3000):
        text, other = draw.sample(texts, 2)
        share = draw.random()
        mixed = " ".join(word for word in (text + " " + other).split()[:60] if draw.random() < share)
        expected = reference_score(mixed, text)
        assert rouge_l_tokens(split_words(mixed, "reference"), split_words(text, "reference")) == expected
        assert rouge_l_tokens(split_words(text, "reference"), split_words(mixed, "reference")) == expected
        scores[expected] += 1
    assert len(scores) > 500


@given(common=st.integers(1, 60), more=st.integers(0, 60), others=st.integers(0, 60))
def test_the_f_measure_is_rounded_as_in_rouge_score(common: int, more: int, others: int) -> None:
    precision, recall = common / (common + more), common / (common + others)
    assert f_measure(precision, recall) == scoring.fmeasure(precision, recall)


few_words = st.lists(st.sampled_from(["a", "b", "C", "c,", "é", "1", "-", "a_b", "\u0130x", "\u212a"]), max_size=12)


@settings(deadline=None)
@given(text=few_words.map(" ".join) | st.text(max_size=40), other=few_words.map(" ".join) | st.text(max_size=40))
def test_any_text_is_split_as_in_rouge_score_and_any_ascii_text_scores_so(text: str, other: str) -> None:
    assert list(split_words(text, "reference")) == tokenize.tokenize(text, None)
    ascii_text, ascii_other = (each.encode("ascii", "ignore").decode() for each in (text, other))
    assert rouge_l(ascii_text, ascii_other) == reference_score(ascii_text, ascii_other)


@pytest.mark.parametrize("text", ["写一首关于春天的诗", "เขียนบทกวี", "اكتب قصيدة عن الربيع", "Напиши стих"])
def test_identical_texts_score_one_in_any_script_where_the_reference_gives_zero(text: str) -> None:
    assert rouge_l(text, text) == 1
    assert reference_score(text, text) == 0


def test_words_of_other_scripts_count_and_ideographs_one_by_one() -> None:
    """Of four words and six, two are common in order: 2 * 2 / 10. Of 3 and 4 ideographs, 2: 2 * 2 / 7."""
    assert rouge_l("Москва — столица большой России", "В россии столица Москва, большой город") == pytest.approx(4 / 10)
    assert rouge_l("我爱你", "我不爱她") == pytest.approx(4 / 7)


def test_a_tone_mark_makes_another_word_in_thai_and_a_vowel_mark_in_arabic() -> None:
    """ป้า (aunt), ป่า (forest): of two letters the second is common. كَتَبَ and كُتُب: one word each, and different."""
    assert rouge_l_tokens(split_words("ป้า"), split_words("ป่า")) == 0.5
    assert rouge_l_tokens(split_words("كَتَبَ"), split_words("كُتُب")) == 0


def test_words_beyond_the_limit_do_not_count() -> None:
    many = [str(place % 97) for place in range(MAX_WORDS)]
    assert rouge_l_tokens(many + ["x"] * 50_000, many + ["y"] * 50_000) == 1.0
