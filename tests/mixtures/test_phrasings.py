"""Patterns are filled once, and a phrasing keeps what its kind promises."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.errors import RecipeError
from spintune.mixtures.declarations import PhrasingSection
from spintune.mixtures.phrasings import Kind, Pattern, Phrasing, phrasing


def made(input_: str, target: str, kind: Kind = "direct", inverted: bool = False) -> Phrasing:
    return phrasing(PhrasingSection(input=input_, target=target), kind, inverted, 0, "task.yaml: direct.0")


@given(st.text(), st.text())
def test_text_with_braces_is_never_filled_again(first: str, second: str) -> None:
    values = {"a": first, "b": second}
    assert Pattern.parse("<{a}|{b}>", "here").fill(values) == f"<{first}|{second}>"


def test_a_value_that_names_another_field_stays_as_it_is() -> None:
    assert Pattern.parse("{a} {b}", "here").fill({"a": "{b} {{x}}", "b": "{a}"}) == "{b} {{x}} {a}"


def test_doubled_braces_are_literal() -> None:
    assert Pattern.parse('{{"q": "{a}"}}', "here").fill({"a": "?"}) == '{"q": "?"}'


@pytest.mark.parametrize("text", ["{", "}", "a { b", "{a b}", "{}", "{a.b}", "{a!r}", "{a:>9}", "{{a}"])
def test_any_other_brace_is_an_error_that_shows_how_to_write_it(text: str) -> None:
    with pytest.raises(RecipeError, match=r"^task.yaml: a lone [{}] in .*; write \{name\} for a field"):
        Pattern.parse(text, "task.yaml")


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.text(), min_size=2), st.text(alphabet="xyz \n{}"))
def test_escaping_a_literal_and_parsing_it_gives_it_back(values: dict[str, str], literal: str) -> None:
    escaped = literal.replace("{", "{{").replace("}", "}}")
    assert Pattern.parse("{a}" + escaped + "{b}", "here").fill(values) == values["a"] + literal + values["b"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("{text}\n\n{options}\nAnswer:", "T\nAnswer:"),
        ("{text}\n{options}", "T"),
        ("{options}\n\n{text}", "\n\nT"),
    ],
)
def test_options_that_are_left_out_take_the_line_breaks_before_them_along(pattern: str, expected: str) -> None:
    assert Pattern.parse(pattern, "here").fill({"text": "T", "options": ""}) == expected


def test_line_breaks_of_the_users_text_stay_when_options_are_left_out() -> None:
    assert Pattern.parse("{text}{options}", "here").fill({"text": "T\n\n", "options": ""}) == "T\n\n"


@pytest.mark.parametrize(
    ("input_", "target", "kind", "inverted", "problem"),
    [
        ("Hello", "{answer}", "direct", False, "input holds no field"),
        ("{q}", "yes", "direct", False, "target holds no field"),
        ("{q}", "{rationale}", "direct", False, "target lacks {answer}"),
        ("{q}", "{q} {answer}", "direct", False, "{q} is in the input and in the target"),
        ("{q} {answer}", "{rationale}", "direct", False, "target lacks {answer}"),
        ("{rationale}", "{answer}", "direct", False, "input holds {rationale}"),
        ("{q}", "{rationale} {answer}", "direct", False, "belongs to cot"),
        ("{q}", "{answer}", "cot", False, "{rationale} must stand before {answer}"),
        ("{q}", "{answer} {rationale}", "cot", False, "{rationale} must stand before {answer}"),
        ("{q}", "{answer} {options}", "direct", False, "target holds {options}"),
        ("{answer}", "again", "direct", True, "target holds no field"),
    ],
)
def test_a_phrasing_that_breaks_its_promise_is_refused(
    input_: str, target: str, kind: Kind, inverted: bool, problem: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        made(input_, target, kind, inverted)
    assert problem in str(caught.value)
    assert str(caught.value).startswith("task.yaml: direct.0")


def test_a_phrasing_turned_around_may_give_the_answer() -> None:
    assert made("{answer}", "{question}", inverted=True).input.fields == ("answer",)
