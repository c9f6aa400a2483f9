"""Replies as chat and reasoning teachers write them: what stands around the tasks becomes no task and part of none."""

from __future__ import annotations

import pytest

from spintune.synthesis import parsers
from spintune.synthesis.examples import SeedTask
from spintune.teachers.protocol import Reply

TASK = SeedTask("t", "Rewrite the text.", classification=False)


def items(text: str, begin: str = "9.") -> list[str]:
    return [task.instruction for task in parsers.instructions(Reply(text), begin).tasks]


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here are 8 more tasks:\n\n9. Name a bird.\n10. Name a fish.\n\nLet me know if you need more!",
        "Sure! Here are tasks:\n9. Name a bird.\n10. Name a fish.\nLet me know if you need more tasks!",
        "<think>\nThey want:\n1. a task\n2. another\n</think>\n\n9. Name a bird.\n10. Name a fish.",
        "They want:\n1. a task\n</think>\n9. Name a bird.\n10. Name a fish.",
        "# New tasks\n\n9. Name a bird.\n\n10. Name a fish.\n\n---\n\nI hope these help.",
        "```\n9. Name a bird.\n10. Name a fish.\n```",
        "Here you go:\n\n```markdown\n9. Name a bird.\n10. Name a fish.\n```\n\nThese tasks are varied.",
        "9. **Animals:** Name a bird.\n10. **Sea animals**: Name a fish.",
        "9. **Animals**\n   Name a bird.\n10. **Sea animals**\n   Name a fish.",
        "9. Task: Name a bird.\n10. Task: Name a fish.",
        "9. Name a bird.\n---\n10. Name a fish.\n---",
        "Certainly!\n\n1. Name a bird.\n2. Name a fish.\n\nHappy training!",
        "9.\n```\nName a bird.\n```\n10.\n```\nName a fish.\n```",
    ],
)
def test_only_the_items_of_a_list_are_tasks(text: str) -> None:
    assert items(text) == ["Name a bird.", "Name a fish."]


@pytest.mark.parametrize(
    "text",
    [
        "Sure! What topics would you like?",
        "Here are some tasks:",
        "- Name a bird.\n- Name a fish.",
        "<think>Hm. 9. Sing.",
    ],
)
def test_a_reply_without_a_list_holds_no_task(text: str) -> None:
    assert items(text) == []


def test_a_list_inside_an_item_is_part_of_it() -> None:
    assert items("9. Write a story with\n   1. a dog\n   2. a cat\n10. Name a fish.") == [
        "Write a story with 1. a dog 2. a cat",
        "Name a fish.",
    ]


def test_a_thought_that_was_cut_has_a_reason() -> None:
    cut = parsers.instructions(Reply("<think>1. Sing a song.\n2. Da", "length"), "9.")
    assert (cut.tasks, cut.failure) == ([], "cut_in_reasoning")


def triples(text: str) -> list[tuple[str, str, str | None]]:
    tasks = parsers.triples(Reply(text), "4. Instruction:", 17).tasks
    return [(task.instruction, task.input, task.output) for task in tasks]


BIRD = "4. Instruction: Name a bird.\n4. Input:\n<noinput>\n4. Output:\nA wren."
ADD = "5. Instruction: Add.\n5. Input:\n1, 2\n5. Output:\n3"


@pytest.mark.parametrize(
    "text",
    [
        f"Sure, here are 20 tasks:\n\n###\n{BIRD}\n###\n{ADD}\n\nLet me know if you'd like more examples!",
        f"<think>\n4. Instruction: a\n4. Input: b\n4. Output: c\n</think>\n\n{BIRD}\n###\n{ADD}",
        f"# Tasks\n\n{BIRD}\n\n---\n\n{ADD}\n\n---\n\nI hope these tasks help.",
        f"```\n{BIRD}\n###\n{ADD}\n```",
        f"Here they are:\n```text\n{BIRD}\n```\n\n```text\n{ADD}\n```\nThese are 2 tasks.",
        f"### Task 4\n{BIRD}\n\n### Task 5: Sums\n{ADD}",
        f"**Task 4**\n\n{BIRD}\n\n**Task 5**\n\n{ADD}\n\n(Continued with the remaining tasks in the same way.)",
        "4. Instruction: Name a bird.\n   Input: <noinput>\n   Output: A wren.\n\n"
        "5. Instruction: Add.\n   Input: 1, 2\n   Output: 3",
        "- **Instruction 4:** Name a bird.\n- **Input 4:** None\n- **Output 4:** A wren.\n\n"
        "- **Instruction 5:** Add.\n- **Input 5:** 1, 2\n- **Output 5:** 3",
        "4. Instruction: **Animals:** Name a bird.\n4. Input:\n<noinput>\n4. Output:\nA wren.\n###\n" + ADD,
    ],
)
def test_only_the_fields_of_blocks_are_examples(text: str) -> None:
    assert triples(text) == [("Name a bird.", "", "A wren."), ("Add.", "1, 2", "3")]


CODE = "```python\n# 5. Output:\nfor n in range(2):\n    print(n)\n```"


def test_code_stays_in_its_fence_also_with_a_fence_around_the_list() -> None:
    block = f"4. Instruction: Count.\n4. Input:\n<noinput>\n4. Output:\n{CODE}"
    expected = [("Count.", "", CODE)]
    assert triples(block) == expected
    assert triples(f"Sure:\n\n{block}\n\nLet me know if you need more tasks.") == expected
    assert triples(f"```\n{block}\n```") == expected
    assert triples(f"{block}\n###\n{ADD}") == [*expected, ("Add.", "1, 2", "3")]


def test_a_label_inside_code_is_code() -> None:
    code = "```\nInput: 3\n4. Output: 9\nInstruction: none\n```"
    assert triples(f"4. Instruction: Show a log.\n4. Input:\n{code}\n4. Output:\n{code}\n") == [
        ("Show a log.", code, code)
    ]


@pytest.mark.parametrize("end", ["Best wishes,\nAnna", "Let me know if you can come.", "I hope you have a good time!"])
def test_paragraphs_of_an_output_are_no_remarks(end: str) -> None:
    letter = f"Dear Ben,\n\nthank you for the invitation.\n\n{end}"
    assert triples(f"4. Instruction: Write a letter.\n4. Input:\n<noinput>\n4. Output:\n{letter}")[0][2] == letter


@pytest.mark.parametrize(
    "text",
    [
        "Sure, here is an example:\n\nExample 1\nInput: a\nOutput: b\n\nLet me know if you need more examples.",
        "Task: Rewrite the text.\nExample 1\nInput: a\nOutput: b",
        "**Task:** Rewrite the text.\n\n### Example 1\n**Input:** a\n**Output:** b",
        "Here is one:\n\nInput: a\nOutput: b\n---",
        "```\nExample 1\nInput: a\nOutput: b\n```",
        "<think>Input: x\nOutput: y</think>Example 1\nInput: a\nOutput: b",
    ],
)
def test_only_inputs_and_outputs_of_examples_are_read(text: str) -> None:
    parsed = parsers.instances_input_first(Reply(text), "Example 1\n", TASK)
    assert [(task.input, task.output) for task in parsed.tasks] == [("a", "b")]
    assert not parsed.dropped


def test_a_preamble_is_no_input_of_a_task_without_input() -> None:
    parsed = parsers.instances_input_first(Reply("Here is the output:\n\nOutput: b"), "Example 1\n", TASK)
    assert [(task.input, task.output) for task in parsed.tasks] == [("", "b")]


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here are examples for each label:\n\nClass label: yes\nText: a\nClass label: no\nText: b",
        "Task: Rewrite the text.\nClass label: yes\nText: a\nClass label: no\nText: b",
        "<think>Class label: x</think>\nClass label: yes\nText: a\n\nClass label: no\nText: b\n\nI hope these help.",
        "```\n**Class label:** yes\nText: a\n\n**Class label:** no\nText: b\n```",
        " yes\nText: a\nClass label: no\nText: b",
    ],
)
def test_only_labels_and_their_inputs_are_read(text: str) -> None:
    parsed = parsers.instances_output_first(Reply(text), "Class label:", TASK)
    assert [(task.output, task.input) for task in parsed.tasks] == [("yes", "Text: a"), ("no", "Text: b")]


@pytest.mark.parametrize(
    "text",
    [
        "<think>Classification: No? Yes.</think>\nYes",
        "Task: Sort.\nClassification: Yes",
        "Sure.\n**Classification:** Yes",
    ],
)
def test_yes_after_thought_and_preamble(text: str) -> None:
    assert parsers.classification(Reply(text), "Classification:") is True
