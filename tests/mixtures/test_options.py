"""Option styles: what they show, what they make the answer, and how many options they can hold."""

from __future__ import annotations

import re

import pytest

from spintune.mixtures.options import PLAIN, STYLES, OptionStyle, styles_for

LETTERS = OptionStyle("Choices:\n", "({label}) {text}", "\n", "upper", "label")


def test_bullets_show_the_texts() -> None:
    assert PLAIN.render(["yes", "no"]) == "Options:\n- yes\n- no"
    assert PLAIN.target(["yes", "no"], 1) == "no"


def test_labels_become_the_answer_as_they_are_shown() -> None:
    assert LETTERS.render(["rain", "snow"]) == "Choices:\n(A) rain\n(B) snow"
    assert LETTERS.target(["rain", "snow"], 1) == "(B)"


def test_a_text_that_looks_like_a_style_is_left_alone() -> None:
    assert LETTERS.render(["{label}", "{text}"]) == "Choices:\n(A) {label}\n(B) {text}"


def test_no_options_show_nothing() -> None:
    assert [style.render([]) for style in STYLES] == [""] * len(STYLES)


@pytest.mark.parametrize("style", STYLES)
def test_every_style_shows_each_option_once_and_its_labelled_answer_finds_it(style: OptionStyle) -> None:
    options = ["alpha", "beta", "gamma"]
    shown = style.render(options)
    assert [shown.count(option) for option in options] == [1, 1, 1]
    target = style.target(options, 1)
    if style.answer == "label":
        assert re.search(r"(?<!\w)" + re.escape(target) + r"\W+beta", shown)
    else:
        assert target == "beta"


def test_only_a_style_with_labels_answers_with_a_label() -> None:
    assert all(style.labels != "none" for style in STYLES if style.answer == "label")
    assert any(style.answer == "label" for style in STYLES)
    assert any(style.answer == "text" and style.labels != "none" for style in STYLES)


def test_styles_are_distinct() -> None:
    assert len(set(STYLES)) == len(STYLES)


@pytest.mark.parametrize("count", [1, 26, 27, 100])
def test_a_style_is_only_offered_lists_that_its_labels_can_hold(count: int) -> None:
    options = [f"option {number}" for number in range(count)]
    for style in styles_for(count, letters=False):
        assert style.render(options).count("option") == count
        assert len({style.target(options, index) for index in range(count)}) == count


def test_letters_end_at_26() -> None:
    assert any(style.labels == "upper" for style in styles_for(26, letters=False))
    assert {style.labels for style in styles_for(27, letters=False)} == {"none", "digits"}


def test_rationales_that_name_letters_get_capital_letters() -> None:
    assert {style.labels for style in styles_for(5, letters=True)} == {"upper"}
