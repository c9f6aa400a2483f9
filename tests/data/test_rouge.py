"""ROUGE-L is rouge_score's, to the last bit; the other tokeniser knows the words of any script."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import scoring, tokenize
from rouge_score.rouge_scorer import RougeScorer

from spintune.data.rouge import f_measure, rouge_l, tokenise
from spintune.data.sources import Source, read_source

scorer = RougeScorer(["rougeL"], use_stemmer=False)


def reference_score(prediction: str, reference: str) -> float:
    return scorer.score(reference, prediction)["rougeL"].fmeasure


def test_rouge_l_by_hand() -> None:
    """Of "the cat sat" and "the cat" two words are common: P = 2/3, R = 2/2, F = 2 * 2 / (3 + 2)."""
    assert rouge_l(("the", "cat", "sat"), ("the", "cat")) == pytest.approx(0.8)
    assert rouge_l(tuple("abcd"), tuple("dcba")) == 0.25
    assert rouge_l((), ()) == rouge_l(("a",), ()) == rouge_l((), ("a",)) == rouge_l(("a",), ("b",)) == 0


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
        assert rouge_l(tokenise(mixed), tokenise(text)) == expected
        assert rouge_l(tokenise(text), tokenise(mixed)) == expected
        scores[expected] += 1
    assert len(scores) > 500


@given(common=st.integers(1, 60), more=st.integers(0, 60), others=st.integers(0, 60))
def test_the_f_measure_is_rounded_as_in_rouge_score(common: int, more: int, others: int) -> None:
    precision, recall = common / (common + more), common / (common + others)
    assert f_measure(precision, recall) == scoring.fmeasure(precision, recall)


few_words = st.lists(st.sampled_from(["a", "b", "C", "c,", "é", "1", "-", "a_b", "\u0130x", "\u212a"]), max_size=12)


@settings(deadline=None)
@given(text=few_words.map(" ".join) | st.text(max_size=40), other=few_words.map(" ".join) | st.text(max_size=40))
def test_any_text_scores_as_in_rouge_score(text: str, other: str) -> None:
    assert list(tokenise(text)) == tokenize.tokenize(text, None)
    assert rouge_l(tokenise(text), tokenise(other)) == reference_score(text, other)


@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_tokenisers_agree_on_ascii_whether_or_not_something_else_stands_beside_it(text: str) -> None:
    assert tokenise(text, "unicode") == tokenise(text, "reference")
    assert tokenise(f"{text} é", "unicode") == (*tokenise(text, "reference"), "é")


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("Naïve CAFÉ", "naïve café"),
        ("nai\u0308ve cafe\u0301", "naïve café"),  # letter and combining mark apart
        ("STRASSE Straße", "strasse strasse"),
        ("ΟΔΟΣ οδός", "οδοσ οδόσ"),
        ("snake_case _é_ l'été", "snake case é l été"),
        ("写一首关于春天的诗。", "写 一 首 关 于 春 天 的 诗"),
        ("GPT4写诗v2", "gpt4 写 诗 v2"),
        ("ＡＢＣ　１２３", "abc 123"),  # full width
        ("ｶﾞｷﾞ ガギ", "ガ ギ ガ ギ"),  # half width, two characters a letter
        ("東京タワー、人々と〆切", "東 京 タ ワ ー 人 々 と 〆 切"),
        ("葛\U000e0100城", "葛 城"),  # a variation selector only chooses the glyph
        ("오늘 날씨가 좋다", "오늘 날씨가 좋다"),
        ("ที่นี่ดี", "ที่ นี่ ดี"),  # vowel and tone marks stay with their consonant
        ("น้ำ ๒๕๖๗", "น้ํ า ๒๕๖๗"),  # SARA AM is two characters; a number is one word
        ("ພາສາລາວ", "ພ າ ສ າ ລ າ ວ"),
        ("ភាសាខ្មែរ", "ភា សា ខ្ មែ រ"),
        ("မြန်မာ", "မြ န် မာ"),
        ("हिन्दी में लिखो।", "हिन्दी में लिखो"),
        ("اُكْتُبْ قصيدةً، من فضلك؟", "اُكْتُبْ قصيدةً من فضلك"),
        ("می\u200cخواهم میخواهم", "میخواهم میخواهم"),  # a joiner is invisible
        ("soft\u00adhyphen zero\u200bwidth", "softhyphen zero width"),
        ("I ❤️ \U0001f600 tea\u0301", "i teá"),
        ("\u0301 \u0e48", ""),  # marks without a letter
    ],
)
def test_unicode_tokens(text: str, tokens: str) -> None:
    expected = [unicodedata.normalize("NFKC", token) for token in tokens.split()]
    assert list(tokenise(text, "unicode")) == expected


@pytest.mark.parametrize("text", ["写一首关于春天的诗", "เขียนบทกวี", "اكتب قصيدة عن الربيع", "Напиши стих"])
def test_identical_texts_score_one_in_any_script_where_the_reference_gives_zero(text: str) -> None:
    assert rouge_l(tokenise(text, "unicode"), tokenise(text, "unicode")) == 1
    assert reference_score(text, text) == 0


def test_a_tone_mark_makes_another_word_in_thai_and_a_vowel_mark_in_arabic() -> None:
    """ป้า (aunt), ป่า (forest): of two letters the second is common. كَتَبَ and كُتُب: one word each, and different."""
    assert rouge_l(tokenise("ป้า", "unicode"), tokenise("ป่า", "unicode")) == 0.5
    assert rouge_l(tokenise("كَتَبَ", "unicode"), tokenise("كُتُب", "unicode")) == 0


LETTERS = "กขคเแ一二アイअकمنաაạbკ"
MARKS = "\u0e34\u0e48\u0e49\u093e\u094d\u064e\u0651\u0323\u0301\u3099\u20dd"


@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.text(MARKS, max_size=3)).map("".join), max_size=8))
def test_no_letter_and_no_mark_of_a_letter_vanishes(letters: list[str]) -> None:
    text = "".join(letters)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    assert "".join(tokenise(text, "unicode")) == folded


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@given(text=st.text(st.sampled_from("éÅﬁ①ｶﾞがกำ각 ệ"), max_size=12))
def test_the_form_in_which_a_text_is_stored_does_not_matter(form: str, text: str) -> None:
    assert tokenise(unicodedata.normalize(form, text), "unicode") == tokenise(text, "unicode")
