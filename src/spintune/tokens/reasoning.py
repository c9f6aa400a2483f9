"""Reasoning before an answer: the marks that templates put around it, and its place in a content."""

from __future__ import annotations

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
)


@dataclass(frozen=True)
class Thought:
    """What a template may see of an answer's reasoning: the white space around it.

    Attributes:
        marks: those around it where it stands in the content; None where the data give it apart.
        left, right: white space before and after it. ``marks.open`` may be missing in the data, as it is where the
            generation prompt wrote it.
    """

    left: str
    right: str
    marks: Marks | None = None

    def inside(self, placeholder: str, marks: Marks) -> str:
        """The reasoning within its marks, to stand before a content."""
        if self.marks is None:
            return f"{marks.open}\n{placeholder}\n{marks.close}\n\n"
        return f"{marks.open}{self.left}{placeholder}{self.right}{marks.close}"


def marks_of(source: str) -> tuple[Marks, ...]:
    """The known marks that a template's source mentions."""
    return tuple(marks for marks in KNOWN_MARKS if marks.close in source)


def split_content(content: str, known: Sequence[Marks]) -> tuple[str, Marks | None, str]:
    """Reasoning, its marks and the rest of an answer's content; no marks where it does not begin with reasoning."""
    for marks in known:
        before, close, after = content.partition(marks.close)
        if not close:
            continue
        before = before.lstrip()
        reasoning = before.removeprefix(marks.open)
        if marks.open not in reasoning and (reasoning != before or before.strip()):
            return reasoning, marks if reasoning != before else Marks("", marks.close), after
    return "", None, content


def without_reasoning(text: str) -> str:
    """The answer in a text that a model wrote: what follows its reasoning, or all of it where it has none.

    The prompt may have opened the reasoning. Then the closing mark stands at the edge of a line: inside one it is more
    likely part of an answer about such marks.
    """
    reasoning, marks, answer = split_content(text, KNOWN_MARKS)
    if marks is None:
        return text
    at_edge = reasoning.endswith("\n") or not answer or answer.startswith("\n")
    return answer.lstrip() if marks.open or at_edge else text
