"""Every IFEval instruction type on responses that a person can judge, and the habits of the official checker."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from spintune.errors import MissingExtraError
from spintune.evaluation.ifeval.language import LANGUAGES, _detector, detect
from spintune.evaluation.ifeval.rules import INSTRUCTION_RULES

GERMAN = "Der Hund läuft schnell durch den Wald und sucht nach einem alten Knochen."
ENGLISH = "the dog runs quickly through the forest and looks for an old bone"

Case = tuple[str, dict[str, Any], str, bool]

CASES: list[Case] = [
    # keywords
    ("keywords:existence", {"keywords": ["mom", "mother"]}, "MOM is a grandmother", True),
    ("keywords:existence", {"keywords": ["mom", "mother"]}, "my mom", False),
    ("keywords:existence", {"keywords": ["a.b"]}, "a.b", True),
    ("keywords:existence", {"keywords": ["a.b"]}, "aXb", False),  # text, not a pattern
    ("keywords:frequency", {"keyword": "war", "frequency": 3, "relation": "at least"}, "War, warfare; WAR.", True),
    ("keywords:frequency", {"keyword": "war", "frequency": 3, "relation": "less than"}, "War, warfare; WAR.", False),
    ("keywords:frequency", {"keyword": "war", "frequency": 4, "relation": "at least"}, "War, warfare; WAR.", False),
    ("keywords:frequency", {"keyword": "war", "frequency": 1, "relation": "less than"}, "peace", True),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "a rocket", True),
    ("keywords:forbidden_words", {"forbidden_words": ["roll", "rock"]}, "the Rock.", False),
    ("keywords:forbidden_words", {"forbidden_words": ["rock"]}, "rock_solid", True),  # an underscore is a letter
    ("keywords:forbidden_words", {"forbidden_words": ["C++"]}, "I know C++.", False),
    ("keywords:letter_frequency", {"letter": "O", "let_frequency": 2, "let_relation": "at least"}, "Oo", True),
    ("keywords:letter_frequency", {"letter": "o", "let_frequency": 2, "let_relation": "less than"}, "Oo", False),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 4, "let_relation": "at least"}, "#### x", True),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 4, "let_relation": "at least"}, "### xxxx", False),
    # language and case
    ("language:response_language", {"language": "de"}, GERMAN, True),
    ("language:response_language", {"language": "en"}, GERMAN, False),
    ("language:response_language", {"language": "hi"}, "यह एक छोटा सा वाक्य है।", True),
    ("language:response_language", {"language": "ko"}, "오늘은 날씨가 아주 좋습니다.", True),
    ("language:response_language", {"language": "ko"}, "1 2 3", True),  # nothing to tell it by
    ("change_case:english_capital", {}, ENGLISH.upper(), True),
    ("change_case:english_capital", {}, ENGLISH, False),
    ("change_case:english_capital", {}, "Q: " + ENGLISH.upper() + " x", False),
    ("change_case:english_lowercase", {}, ENGLISH, True),
    ("change_case:english_lowercase", {}, ENGLISH.capitalize(), False),
    ("change_case:english_lowercase", {}, GERMAN.lower(), False),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "I like NASA",
        True,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "less than"},
        "I like NASA",
        False,
    ),
    (
        "change_case:capital_word_frequency",
        {"capital_frequency": 2, "capital_relation": "at least"},
        "I like Nasa",
        False,
    ),
    # length
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "One. Two!", True),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "less than"}, "One. Two! Three?", False),
    ("length_constraints:number_sentences", {"num_sentences": 3, "relation": "at least"}, "One. Two! Three?", True),
    ("length_constraints:number_words", {"num_words": 3, "relation": "at least"}, "don't - stop", True),  # don, t, stop
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "don't - stop", False),
    ("length_constraints:number_words", {"num_words": 3, "relation": "less than"}, "do_not stop", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\ntwo", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\none\n***\ntwo\n***", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n\ntwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "one\n***\n\n***\ntwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 1}, "one ****** two", False),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "Weekend"},
        "one\n\n\"weekend's here\n\nthree",
        True,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "weekend"},
        "one\n\nweekends\n\nthree",
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 3, "nth_paragraph": 2, "first_word": "weekend"},
        "one\n\nweekend",
        False,
    ),
    (
        "length_constraints:nth_paragraph_first_word",
        {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "two"},
        "one\n\n\n\ntwo",  # the empty paragraph is not counted, but it is the second
        False,
    ),
    # content and format
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[name] of [a [b] c]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 3}, "[name] of [a [b] c]", False),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[na\nme]", False),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "] [", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\np. s. hello", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye.\nPS hello", False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.P.S: hello", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.S. hello", False),
    ("detectable_content:postscript", {"postscript_marker": "Note (end)"}, "NOTE (END) hello", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* a\n  - b\nx * y\n*c*", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n\n\n* b\n**bold**\n***", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "* a\n* b\n* c", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 0}, "1. a\n2. b", True),
    ("detectable_format:constrained_response", {}, "Well: My answer is maybe. Or not.", True),
    ("detectable_format:constrained_response", {}, "my answer is maybe.", False),
    ("detectable_format:constrained_response", {}, "My answer is yes", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*one* and *two*", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "**one** and two", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "**one** and two", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 1}, "*one\ntwo* ** ** * *", False),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 SECTION2",
        True,
    ),
    (
        "detectable_format:multiple_sections",
        {"section_spliter": "SECTION", "num_sections": 2},
        "SECTION 1 Section 2",
        False,
    ),
    ("detectable_format:multiple_sections", {"section_spliter": "Day", "num_sections": 1}, "Day one", False),
    ("detectable_format:json_format", {}, ' ```json\n{"a": [1, 2]}\n``` ', True),
    ("detectable_format:json_format", {}, "[1]", True),
    ("detectable_format:json_format", {}, "Here it is: [1]", False),
    ("detectable_format:json_format", {}, "{'a': 1}", False),
    ("detectable_format:json_format", {}, "[" * 100_000, False),
    ("detectable_format:title", {}, "x\n<<Poem of joy>>\ny", True),
    ("detectable_format:title", {}, "<<<a>>>", True),
    ("detectable_format:title", {}, "<Poem>", False),
    ("detectable_format:title", {}, "<< >>", False),
    ("detectable_format:title", {}, "<<>>", False),
    ("detectable_format:title", {}, "<<Poem\nof joy>>", False),
    ("detectable_format:title", {}, ">>a<<", False),
    # combination
    ("combination:two_responses", {}, "one\n******\ntwo", True),
    ("combination:two_responses", {}, "****** one ****** two ******", True),
    ("combination:two_responses", {}, "one\n******\none ", False),
    ("combination:two_responses", {}, "one", False),
    ("combination:two_responses", {}, "one ****** ****** two", False),
    ("combination:two_responses", {}, "one ****** two ****** three", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a Haiku. "}, "\nwrite a haiku.\n\nOld pond", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Write a haiku."}, "Sure: Write a haiku.", False),
    # start, end, punctuation
    ("startend:end_checker", {"end_phrase": "The end."}, '"So it was. THE END."\n', True),
    ("startend:end_checker", {"end_phrase": "The end."}, "The end. Or not.", False),
    ("startend:quotation", {}, ' "all of it" ', True),
    ("startend:quotation", {}, '"all" of it', False),
    ("startend:quotation", {}, '"', False),
    ("startend:quotation", {}, "“all of it”", False),
    ("punctuation:no_comma", {}, "no comma; none", True),
    ("punctuation:no_comma", {}, "well, one", False),
]


@pytest.mark.parametrize(("name", "parameters", "response", "followed"), CASES)
def test_a_response_follows_or_does_not(name: str, parameters: dict[str, Any], response: str, followed: bool) -> None:
    if INSTRUCTION_RULES[name].needs_langdetect:
        pytest.importorskip("langdetect")
    assert INSTRUCTION_RULES[name].followed(response, **parameters) is followed


def test_every_type_has_a_case_that_follows_and_one_that_does_not() -> None:
    assert len(INSTRUCTION_RULES) == 25
    assert {(name, followed) for name, _, _, followed in CASES} == {
        (name, f) for name in INSTRUCTION_RULES for f in (True, False)
    }
    for name, parameters, _, _ in CASES:
        assert all(INSTRUCTION_RULES[name].parameters[key].fits(value) for key, value in parameters.items())
        assert parameters.keys() == INSTRUCTION_RULES[name].parameters.keys()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 200_000,
        "<" * 200_000,
        pytest.param("\n" * 200_000, marks=pytest.mark.slow),
        "*" * 200_000,
        " \t" * 100_000,
        pytest.param("?" * 50_000, marks=pytest.mark.slow),
    ],
)
def test_a_model_that_repeats_one_character_is_judged_all_the_same(text: str) -> None:
    """A pattern that is searched again from every position would take minutes here."""
    for name, parameters, _, _ in CASES:
        if not INSTRUCTION_RULES[name].needs_langdetect:
            assert INSTRUCTION_RULES[name].followed(text, **parameters) in (True, False)


# Language ------------------------------------------------------------------------------------------------------------


def test_langdetect_knows_the_languages_that_prompts_may_ask_for() -> None:
    pytest.importorskip("langdetect")
    assert set(_detector()[0].get_lang_list()) == LANGUAGES


def test_an_uncertain_text_is_given_the_same_language_every_time() -> None:
    """Of this text langdetect itself says Estonian in about 5 of 8 runs, and Finnish in the others."""
    pytest.importorskip("langdetect")
    text = "Kaho, aapee koi કોઈ"
    assert len({detect(text) for _ in range(20)}) == 1


def test_other_users_of_langdetect_keep_their_seed() -> None:
    langdetect = pytest.importorskip("langdetect")
    before = langdetect.DetectorFactory.seed
    detect(GERMAN)
    assert langdetect.DetectorFactory.seed == before


def test_without_langdetect_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langdetect", None)
    _detector.cache_clear()
    with pytest.raises(MissingExtraError) as caught:
        INSTRUCTION_RULES["language:response_language"].followed(GERMAN, language="de")
    assert str(caught.value) == (
        "IFEval's language and letter-case instructions need langdetect, which is not installed; "
        "run: pip install 'spintune[eval]'"
    )
    assert not INSTRUCTION_RULES["change_case:english_capital"].followed(
        "Mixed",
    )  # decided without asking for the language
