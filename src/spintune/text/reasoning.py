"""Reasoning before an answer: the marks that models put around it, and its place in what they write.

One list for templates, data and replies of teachers. A prompt may have opened the reasoning, so that a text holds only
the closing mark.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Marks:
    """What a family of models writes before and after its reasoning."""

    open: str
    close: str


KNOWN_MARKS = (
    Marks("<think>", "</think>"),
    Marks("[THINK]", "[/THINK]"),
    Marks("<seed:think>", "</seed:think>"),
    Marks("<mm:think>", "</mm:think>"),
    Marks("<thinking>", "</thinking>"),
    Marks("<|START_THINKING|>", "<|END_THINKING|>"),
    Marks("<|inner_prefix|>", "<|inner_suffix|>"),
    Marks("<|channel>thought", "<channel|>"),
    Marks("Here are my reasoning steps:", "[BEGIN FINAL RESPONSE]"),
    Marks("<thought>", "</thought>"),
    Marks("<thoughts>", "</thoughts>"),
    Marks("<reasoning>", "</reasoning>"),
    Marks("<analysis>", "</analysis>"),
    Marks("<scratchpad>", "</scratchpad>"),
    Marks("◁think▷", "◁/think▷"),
    Marks("<|begin_of_thought|>", "<|end_of_thought|>"),
    Marks("<unused94>thought", "<unused95>"),
)


def split_content(content: str, known: Sequence[Marks] = KNOWN_MARKS) -> tuple[str, Marks | None, str]:
    """Reasoning, its marks and the rest of an answer's content; no marks where it does not begin with reasoning.

    The prompt may have opened the reasoning. Then the closing mark stands at the edge of a line: inside one it is more
    likely part of an answer about such marks.
    """
    for marks in known:
        before, close, after = content.partition(marks.close)
        if not close:
            continue
        before = before.lstrip()
        reasoning = before.removeprefix(marks.open)
        if marks.open in reasoning:
            continue
        if reasoning != before:
            return reasoning, marks, after
        if before.strip() and (before.endswith("\n") or not after or after.startswith("\n")):
            return reasoning, Marks("", marks.close), after
    return "", None, content


def without_reasoning(text: str) -> str:
    """The answer in a text that a model wrote: what follows its reasoning, or all of it where it has none."""
    _, marks, answer = split_content(text)
    return text if marks is None else answer.lstrip()


# Replies of servers ----------------------------------------------------------------------------------------------

# an opening mark in plain words may begin any reply
_OPENING = "|".join(re.escape(marks.open) for marks in KNOWN_MARKS if not marks.open[0].isalpha()) + (
    # gpt-oss, also where a server removed the special tokens and left "analysis" glued to the reasoning
    r"|(?:<\|start\|>assistant)?<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?|(?-i:analysis(?=[A-Z]))"
)
_CLOSING = "|".join(re.escape(marks.close) for marks in KNOWN_MARKS) + (
    r"|(?:<\|start\|>assistant)?<\|channel\|>final[^<\n]*<\|message\|>"
)
_OPEN = re.compile(rf"\s*(?:{_OPENING})", re.IGNORECASE)
_CLOSE = re.compile(_CLOSING, re.IGNORECASE)
# without an opening mark, one inside a line is more likely a text about such marks
_CLOSE_AT_LINE = re.compile(rf"^[ \t]*(?:{_CLOSING})|(?:{_CLOSING})[ \t]*$", re.IGNORECASE | re.MULTILINE)
_GLUED = re.compile(r"assistantfinal")
# what some models put around the answer that follows
_BEFORE_ANSWER = re.compile(r"(?:<answer>|<\|begin_of_solution\|>|<\|START_RESPONSE\|>)?", re.IGNORECASE)
_BEHIND_ANSWER = re.compile(
    r"(?:</answer>|<\|end_of_solution\|>|<\|END_RESPONSE\|>|<\|return\|>|<\|end\|>)\Z", re.IGNORECASE
)


def scored_answer(text: str) -> str:
    """What is scored of a text that a model wrote: what follows its reasoning; nothing where the reasoning has no end.

    >>> scored_answer("<think>Two and two.</think> Four"), scored_answer("<think>It is 4"), scored_answer("Four")
    ('Four', '', 'Four')
    """
    answer = without_reasoning(text)
    return split_reasoning(text)[1] or "" if answer == text and _OPEN.match(text) else answer


def split_reasoning(text: str) -> tuple[str, str | None]:
    """The reasoning and the answer of a reply. The answer is None if the reasoning has no end: the reply was cut there.

    >>> split_reasoning("<think>Two and two.</think>\\n\\nFour")
    ('Two and two.', 'Four')
    >>> split_reasoning("<think>Two and")
    ('Two and', None)
    >>> split_reasoning("Four")
    ('', 'Four')

    The last closing mark counts: reasoning may quote one, and no part of it may pass for an answer.
    """
    opened = _OPEN.match(text)
    begin = opened.end() if opened else 0
    ends = list((_CLOSE if opened else _CLOSE_AT_LINE).finditer(text))
    if not ends and opened:
        ends = list(_GLUED.finditer(text))
    if ends:
        answer = _BEFORE_ANSWER.sub("", text[ends[-1].end() :].strip(), count=1)
        return text[begin : ends[-1].start()].strip(), _BEHIND_ANSWER.sub("", answer)
    return (text[begin:].strip(), None) if opened else ("", text)
