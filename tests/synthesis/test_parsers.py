"""What a teacher wrote is read as it stands, and what cannot be read is a counted reason."""

from __future__ import annotations

import pytest

from spintune.synthesis import parsers
from spintune.synthesis.examples import SeedTask
from spintune.teachers.protocol import Failure, Outcome, Reply


def reply(text: str, ending: str = "stop") -> Reply:
    return Reply(text, ending)  # type: ignore[arg-type]


def items(text: str, ending: str = "stop") -> list[str]:
    return [task.instruction for task in parsers.instructions(reply(text, ending), "9.").tasks]


# A numbered list ------------------------------------------------------------------------------------------------------


def test_case_is_kept() -> None:
    """The paper's code capitalises: "Python" becomes "python", "NASA" becomes "nasa"."""
    assert items(" Explain what NASA does.\n10. Sort a list in Python.") == [
        "Explain what NASA does.",
        "Sort a list in Python.",
    ]


def test_a_number_with_a_full_stop_inside_a_text_ends_nothing() -> None:
    """The paper's stop text "16." also cuts "$16." and "2016."."""
    assert items(" Split a bill of $16. Round up.\n10. Say what happened in 2016. Be brief.") == [
        "Split a bill of $16. Round up.",
        "Say what happened in 2016. Be brief.",
    ]


@pytest.mark.parametrize(
    "text",
    [
        " Name a bird.\n10. Name a fish.",
        "9. Name a bird.\n10. Name a fish.",
        "9) Name a bird.\n10) Name a fish.",
        "**9.** Name a bird.\n**10.** Name a fish.",
        "9. **Name a bird.**\n\n10. **Name a fish.**",
        "Task 9: Name a bird.\nTask 10: Name a fish.",
        "### 9. Name a bird.\n### 10. Name a fish.",
        "9.  Name\n  a bird.\r\n10. Name a fish.\n\nThese are varied tasks.",
        "1. Name a bird.\n2. Name a fish.",
    ],
)
def test_a_list_is_read_in_every_common_layout(text: str) -> None:
    assert [item for item in items(text) if item] == ["Name a bird.", "Name a fish."]


def test_only_the_item_that_was_cut_is_dropped() -> None:
    """The paper's code drops the whole reply."""
    parsed = parsers.instructions(reply(" Name a bird.\n10. Name a fi", "length"), "9.")
    assert [task.instruction for task in parsed.tasks] == ["Name a bird."]
    assert parsed.dropped == {"cut_off": 1}


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (reply(""), "empty_reply"),
        (reply(" \n\n"), "empty_reply"),
        (Reply("9. Name a bird.", "refused"), "withheld"),
        (Failure("rate_limited"), "rate_limited"),
    ],
)
def test_a_reply_without_a_text_has_a_reason_in_every_parser(outcome: Outcome, reason: str) -> None:
    task = SeedTask("t", "Name a bird.")
    assert parsers.instructions(outcome, "9.").failure == reason
    assert parsers.triples(outcome, "4. Instruction:", 17).failure == reason
    assert parsers.instances_input_first(outcome, "Example 1\n", task).failure == reason
    assert parsers.instances_output_first(outcome, "Class label:", task).failure == reason
    assert parsers.classification(outcome, "Classification:") == reason


# Yes or no ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [(" Yes", True), (" no.", False), ("Classification: YES", True), ("**No**", False), (" Yesterday", "unparsed")],
)
def test_yes_and_no_are_whole_words(text: str, said: bool | str) -> None:
    assert parsers.classification(reply(text), "Classification:") == said


# Instances ------------------------------------------------------------------------------------------------------------

TASK = SeedTask("t", "Rewrite the text.", classification=False)


def instances(text: str, ending: str = "stop") -> list[tuple[str, str | None]]:
    parsed = parsers.instances_input_first(reply(text, ending), "Example 1\n", TASK)
    return [(task.input, task.output) for task in parsed.tasks]


def test_inputs_and_outputs_of_examples() -> None:
    text = "Input: The cat sat.\nOutput: The cat was sitting.\nExample 2\nInput: a\nb\nOutput: A\nB"
    assert instances(text) == [("The cat sat.", "The cat was sitting."), ("a\nb", "A\nB")]


def test_the_bare_word_example_inside_a_text_splits_nothing() -> None:
    """The paper's code splits at the word anywhere."""
    assert instances("Input: For Example 2 see below.\nOutput: See the Example below.") == [
        ("For Example 2 see below.", "See the Example below.")
    ]


def test_other_field_names_stay_in_the_input() -> None:
    assert instances("Passage: Rain fell.\nQuestion: What fell?\nOutput: Rain.") == [
        ("Passage: Rain fell.\nQuestion: What fell?", "Rain.")
    ]


def test_a_task_without_input_and_one_that_says_so() -> None:
    assert instances("Output: A hat.") == [("", "A hat.")]
    assert instances("Input: None\nOutput: A hat.") == [("", "A hat.")]
    assert instances("Input: <noinput>\nOutput: A hat.") == [("", "A hat.")]


def test_what_follows_the_output_belongs_to_nothing() -> None:
    assert instances("Input: a\nOutput: b\nInput: c\nOutput: d") == [("a", "b")]
    assert instances("Input: a\nOutput: b\nTask: Another one.\nOutput: d") == [("a", "b")]


def test_a_last_example_that_was_cut_is_dropped() -> None:
    assert instances("Input: a\nOutput: b\nExample 2\nInput: c\nOutput: d and so", "length") == [("a", "b")]


def test_an_example_without_an_output_is_dropped_by_itself() -> None:
    parsed = parsers.instances_input_first(reply("Input: a\nExample 2\nInput: c\nOutput: d"), "Example 1\n", TASK)
    assert [(task.input, task.output) for task in parsed.tasks] == [("c", "d")]
    assert parsed.dropped == {"no_output": 1}


def test_labels_with_and_without_inputs() -> None:
    parsed = parsers.instances_output_first(
        reply(" positive\nReview: So good: again!\nClass label: negative\nReview: Cold.\nBad."), "Class label:", TASK
    )
    assert [(task.output, task.input) for task in parsed.tasks] == [
        ("positive", "Review: So good: again!"),
        ("negative", "Review: Cold.\nBad."),
    ]
    (only,) = parsers.instances_output_first(reply("Class label: no"), "Class label:", TASK).tasks
    assert (only.output, only.input) == ("no", "")


# Alpaca blocks --------------------------------------------------------------------------------------------------------

GOOD = (
    " Name a bird.\n4. Input:\n<noinput>\n4. Output:\nA wren.\n###\n"
    "5. Instruction: Add.\n5. Input:\n1, 2\n5. Output:\n3"
)


def triples(text: str, ending: str = "stop", limit: int = 17) -> list[tuple[str, str, str | None]]:
    parsed = parsers.triples(reply(text, ending), "4. Instruction:", limit)
    return [(task.instruction, task.input, task.output) for task in parsed.tasks]


def test_blocks_with_or_without_the_beginning() -> None:
    expected = [("Name a bird.", "", "A wren."), ("Add.", "1, 2", "3")]
    assert triples(GOOD) == expected
    assert triples("4. Instruction:" + GOOD) == expected
    assert triples("###\n4. Instruction:" + GOOD + "\n###\n") == expected
    assert triples("**4. Instruction:** Name a bird.\n**4. Input:**\n\n**4. Output:** A wren.") == [expected[0]]


def test_a_misnumbered_block_shifts_nothing() -> None:
    """Stanford's code expects block k to carry number k: one skipped number drops all that follow."""
    text = GOOD.replace("5. ", "7. ") + "\n###\n6. Instruction: Say hi.\n6. Input:\n\n6. Output:\nHi."
    assert triples(text) == [("Name a bird.", "", "A wren."), ("Add.", "1, 2", "3"), ("Say hi.", "", "Hi.")]


def test_markers_inside_texts_are_text() -> None:
    text = (
        " Explain ### in Markdown.\n4. Input:\n### Title\ntext\n"
        "4. Output:\n### makes a heading of level 3:\n###\nInput: no\n###\n"
        "5. Instruction: Say what cost $20. Be brief.\n5. Input:\nIn 2020. Or 21.\n5. Output:\nA hat for $20."
    )
    assert triples(text) == [
        ("Explain ### in Markdown.", "### Title\ntext", "### makes a heading of level 3:\n###\nInput: no"),
        ("Say what cost $20. Be brief.", "In 2020. Or 21.", "A hat for $20."),
    ]


def test_a_broken_block_is_dropped_by_itself() -> None:
    text = GOOD.replace("4. Output:\nA wren.\n", "") + "\n###\n6. Instruction: Say hi.\n6. Input:\n\n6. Output:\nHi."
    parsed = parsers.triples(reply(text), "4. Instruction:", 17)
    assert [task.instruction for task in parsed.tasks] == ["Add.", "Say hi."]
    assert parsed.dropped == {"broken_block": 1}


def test_a_last_block_that_was_cut_and_blocks_beyond_the_list_are_dropped() -> None:
    assert triples(GOOD, "length") == [("Name a bird.", "", "A wren.")]
    parsed = parsers.triples(reply(GOOD), "4. Instruction:", 1)
    assert [task.instruction for task in parsed.tasks] == ["Name a bird."]
    assert parsed.dropped == {"more_than_asked": 1}


@pytest.mark.parametrize(
    "text", ["<html><body>502 Bad Gateway</body></html>", '{"instruction": "Na', "I cannot do this."]
)
def test_other_texts_are_broken_blocks(text: str) -> None:
    """A beginning that the reply did not repeat is put before it, so that the first block is broken."""
    parsed = parsers.triples(reply(text), "4. Instruction:", 17)
    assert parsed.tasks == []
    assert parsed.dropped == {"broken_block": 1}


@pytest.mark.slow
def test_ten_megabytes_of_one_character_are_read_in_no_time() -> None:
    """No pattern may go back over a long text again and again."""
    long = "#" * 10_000_000
    for text in (long, long[: parsers.MAX_REPLY], long[: parsers.MAX_FIELD]):
        assert parsers.triples(reply(text), "4. Instruction:", 17).tasks == []
    assert parsers.instructions(reply(long), "9.").failure == "reply_too_long"
    assert len(items(long[: parsers.MAX_REPLY])) == 1  # without its marks, nothing is left of it
