from __future__ import annotations

import pytest

from spintune.errors import RecipeError
from spintune.text import expressions
from spintune.text.expressions import check_expression, first_match, groups_of_matches, last_match, without_matches


def test_matches_are_those_of_python() -> None:
    assert first_match(r"#### (\d+)", "a #### 12 #### 13", "here") == "12"
    assert last_match(r"\d+", "a 12 b 13", "here") == "13"
    assert last_match(r"(x)?\d", "1", "here") == "1"
    assert first_match(r"(x)?\d", "1", "here") == ""
    assert first_match("b", "a", "here") is None
    assert without_matches(r"<<.*?>>", "3 <<1+2>> b <<c>>", "here") == "3  b "
    assert groups_of_matches(r"(?P<label>\w)\) (?P<text>\w+)", "a) x b) y", "here") == [
        {"label": "a", "text": "x"},
        {"label": "b", "text": "y"},
    ]


def test_an_expression_that_never_ends_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expressions, "_SECONDS", 0.05)
    for search in (first_match, last_match, without_matches, groups_of_matches):
        with pytest.raises(RecipeError, match=r"^here: the expression .* takes more than 0.05 s on a text"):
            search("(x+x+)+y", "x" * 3000, "here")


@pytest.mark.parametrize(
    "pattern",
    ["(", "((a{1000}){1000}){1000}", "(?:" * 3000 + ")" * 3000, "a{99999999999999999999}", "a" * 3000, r"\p{L}"],
)
def test_what_is_no_expression_or_could_fill_the_memory_is_refused(pattern: str) -> None:
    with pytest.raises(ValueError, match="regular expression"):
        check_expression(pattern)
