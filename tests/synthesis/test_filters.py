"""Each rule drops what it names and nothing else, in the papers' order."""

from __future__ import annotations

import pytest

from spintune.synthesis.examples import SeedTask, read_seeds
from spintune.synthesis.filters import KEYWORDS, FilterCounts, FilterRules, conflicting

RULES = FilterRules()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty_instruction"),
        ("Name three birds", "too_short"),
        ("Name three small birds", None),
        (" ".join(["word"] * 150), None),
        (" ".join(["word"] * 151), "too_long"),
        ("Describe the image in words", "keyword"),
        ("Describe what you imagine now", None),
        ("Please GO TO the next page", "keyword"),
        ("Plot a novel about two rivers", "keyword"),
        ("Write a program that adds numbers", "start"),
        ("Write a programme for a concert", "start"),
        ("How to write a program in C", None),
        ("- Name three small birds", "punctuation_start"),
        ("Übersetze den Satz ins Englische", "not_ascii_start"),
        ("As an AI language model I cannot write tasks", "refusal"),
        ("Write a short story about an AI", None),
        ("Explain music theory to a child", None),
    ],
)
def test_the_rules_of_self_instruct(text: str, reason: str | None) -> None:
    assert RULES.instruction_drop_reason(text) == reason


def test_alpaca_has_more_keywords() -> None:
    assert (
        FilterRules(keywords=KEYWORDS["alpaca"]).instruction_drop_reason("Explain music theory to a child") == "keyword"
    )
    assert set(KEYWORDS["alpaca"]) - set(KEYWORDS["self_instruct"]) == {
        "video",
        "audio",
        "music",
        "flowchart",
        "diagram",
    }


def test_words_of_scripts_without_spaces_count_one_by_one() -> None:
    chinese = "写一首关于秋天的短诗"
    assert RULES.instruction_drop_reason(chinese) == "too_short"
    assert FilterRules(word_rule="unicode", ascii_start=False).instruction_drop_reason(chinese) is None
    assert (
        FilterRules(word_rule="unicode", ascii_start=False, keywords=("图片",)).instruction_drop_reason(
            "描述这张图片里的人"
        )
        == "keyword"
    )


@pytest.mark.parametrize(
    ("context", "output", "reason"),
    [
        ("", "", "empty_output"),
        ("a", " \n", "empty_output"),
        ("same text", "same text ", "input_is_output"),
        ("a", "The answer is:", "ends_with_colon"),
        ("Question:", "yes", "ends_with_colon"),
        ("a", "I'm sorry, but I can't help with that.", "refusal"),
        ("a", "Sorry, I cannot do that.", "refusal"),
        ("a", "As a large language model, I have no body.", "refusal"),
        ("a", "I can help you plan: start early.", None),
        ("a", "I won the race.", None),
        ("a", "Sorry to hear that! Get well soon.", None),
    ],
)
def test_the_rules_of_instances(context: str, output: str, reason: str | None) -> None:
    """The reference keeps empty outputs in Alpaca: 28 of them stand in its data."""
    assert RULES.instance_drop_reason(SeedTask("t", "Do it.", context, output)) == reason


def test_a_conflict_is_one_input_with_two_outputs() -> None:
    def of(*pairs: tuple[str, str]) -> bool:
        return conflicting([SeedTask("t", "Do it.", context, output) for context, output in pairs])

    assert of(("a", "x"), ("b", "y"), ("a", "z"))
    assert not of(("a", "x"), ("a", "x"))
    assert not of(("", "x"), ("", "y"))  # without an input there are many right answers


def test_three_of_the_175_seeds_of_the_paper_would_not_pass() -> None:
    """So seeds are never filtered. Of our own built-in ones the same is checked: reading keeps every row."""
    assert len(read_seeds("builtin:seeds")) == 175


def test_a_funnel_loses_nothing() -> None:
    funnel = FilterCounts("step", "tasks")
    funnel.keep(3)
    funnel.drop("a", 2)
    funnel.drop("b", 0)
    funnel.drop_all({"a": 1, "c": 1})
    funnel.count(None)
    funnel.count("c")
    assert (funnel.read, funnel.kept, funnel.dropped) == (9, 4, {"a": 3, "c": 2})
