"""A thought is told from its answer in the marks of many models."""

from __future__ import annotations

import doctest

import pytest

import spintune.text.reasoning
from spintune.teachers.protocol import Reply
from spintune.teachers.reasoning import without_reasoning
from spintune.text.reasoning import KNOWN_MARKS, Marks, split_content, split_reasoning


@pytest.mark.parametrize(
    "text",
    [
        "<think>\nHm.\n</think>\n\nFour",
        "Hm.\n</think>\n\nFour",
        "<reasoning>Hm.</reasoning>Four",
        "<Thinking>Hm.</Thinking> Four",
        "[THINK]Hm.[/THINK]Four",
        "◁think▷Hm.◁/think▷Four",
        "<think>Hm.</think><answer>Four</answer>",
        "<|begin_of_thought|>Hm.<|end_of_thought|>\n<|begin_of_solution|>Four<|end_of_solution|>",
        "<|START_THINKING|>Hm.<|END_THINKING|><|START_RESPONSE|>Four<|END_RESPONSE|>",
        "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Four<|return|>",
        "analysisHm.assistantfinalFour",
    ],
)
def test_marks_of_thoughts(text: str) -> None:
    thought, answer = split_reasoning(text)
    assert answer == "Four"
    assert thought.startswith("Hm.")


@pytest.mark.parametrize(
    "text",
    ["<think>Hm. 1. Sing.", "[THINK]1. Sing.", "<|channel|>analysis<|message|>Hm.", "analysisWe need", "<reasoning>\n"],
)
def test_a_thought_without_an_end_leaves_no_answer(text: str) -> None:
    assert split_reasoning(text)[1] is None
    cut = without_reasoning(Reply(text, "stop", 1, 2))
    assert isinstance(cut, Reply)
    assert (cut.text, cut.ending) == ("", "length")


@pytest.mark.parametrize("text", ["Four", "Say what `</think>` marks.", "analysis of four", "Use <think> tags.", ""])
def test_other_texts_are_answers(text: str) -> None:
    assert split_reasoning(text) == ("", text)


def test_an_empty_thought_is_no_part_of_the_answer() -> None:
    assert without_reasoning(Reply("<think>\n\n</think>\n\nFour")) == Reply("Four")


def test_no_part_of_a_thought_that_quotes_its_mark_is_an_answer() -> None:
    assert split_reasoning("<think>The tag </think> ends it. 1. Sing.</think>\nFour")[1] == "Four"


def test_examples_in_docstrings_are_true() -> None:
    assert doctest.testmod(spintune.text.reasoning).failed == 0


@pytest.mark.parametrize("marks", KNOWN_MARKS, ids=lambda marks: marks.open)
def test_replies_and_data_know_the_same_marks(marks: Marks) -> None:
    text = f"{marks.open}\nHm.\n{marks.close}\nFour"
    assert split_content(text)[1] == marks
    assert split_reasoning(text)[1] == "Four"
    assert split_reasoning(f"Hm.\n{marks.close}\nFour") == ("Hm.", "Four")


def test_an_opening_in_plain_words_opens_nothing_by_itself() -> None:
    text = "Here are my reasoning steps: add, then check."
    assert split_reasoning(text) == ("", text)
