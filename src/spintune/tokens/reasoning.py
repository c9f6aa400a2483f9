"""Reasoning before an answer, as a chat template sees it."""

from __future__ import annotations

from dataclasses import dataclass

from spintune.text.reasoning import KNOWN_MARKS, Marks


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
