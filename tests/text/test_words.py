"""Words by two rules: rouge_score's, and one for every script."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.text.words import split_words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Don't panic: 3.5 naïve_users", ["don", "t", "panic", "3", "5", "naïve", "users"]),
        ("", []),
        (" \n\t-—!?_…", []),
        ("Привет, МИР", ["привет", "мир"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs and virama are marks, not separators
        ("na\u0308ive", ["näive"]),  # combining form as the composed one
        ("Ｆｕｌｌ　ｗｉｄｔｈ ①", ["full", "width", "1"]),
        ("我爱GPT模型", ["我", "爱", "gpt", "模", "型"]),
        ("カタカナ、ひら", ["カ", "タ", "カ", "ナ", "ひ", "ら"]),
        ("ที่นี่", ["ที่", "นี่"]),  # a Thai consonant keeps its vowel and tone marks
        ("한국어 문장", ["한국어", "문장"]),  # Korean writes spaces
        ("\u0301x", ["x"]),
    ],
)
def test_words_in_texts_of_benchmarks_by_hand(text: str, expected: list[str]) -> None:
    assert list(split_words(text)) == expected


@given(st.text(max_size=40))
def test_the_words_of_the_words_are_the_words(text: str) -> None:
    assert split_words(" ".join(split_words(text))) == split_words(text)


@given(text=st.text(st.characters(max_codepoint=127), max_size=60))
def test_the_rules_agree_on_ascii_whether_or_not_something_else_stands_beside_it(text: str) -> None:
    assert split_words(text) == split_words(text, "reference")
    assert split_words(f"{text} é") == (*split_words(text, "reference"), "é")


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
def test_words_of_any_script_by_hand(text: str, tokens: str) -> None:
    expected = [unicodedata.normalize("NFKC", token) for token in tokens.split()]
    assert list(split_words(text)) == expected


LETTERS = "กขคเแ一二アイअकمنաაạbკ"
MARKS = "\u0e34\u0e48\u0e49\u093e\u094d\u064e\u0651\u0323\u0301\u3099\u20dd"


@given(st.lists(st.tuples(st.sampled_from(LETTERS), st.text(MARKS, max_size=3)).map("".join), max_size=8))
def test_no_letter_and_no_mark_of_a_letter_vanishes(letters: list[str]) -> None:
    text = "".join(letters)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    assert "".join(split_words(text)) == folded


@pytest.mark.parametrize("form", ["NFC", "NFD", "NFKC", "NFKD"])
@given(text=st.text(st.sampled_from("éÅﬁ①ｶﾞがกำ각 ệ"), max_size=12))
def test_the_form_in_which_a_text_is_stored_does_not_matter(form: str, text: str) -> None:
    assert split_words(unicodedata.normalize(form, text)) == split_words(text)
