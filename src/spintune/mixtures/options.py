"""Answer options: how a list of them is shown, and when its label is the answer.

The Flan collection has 16 openings, 87 item styles and 3 endings (flan/v2/templates.py); these are our own, fewer, and
combine freely. Unlike there, only a style with labels may turn the target into a label, so a single option behind a
bullet does not, and a list too long for a style's labels never meets that style.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Labels = Literal["none", "upper", "lower", "digits"]
_ALPHABETS = {"upper": string.ascii_uppercase, "lower": string.ascii_lowercase}


@dataclass(frozen=True)
class OptionStyle:
    """A way to list options.

    Attributes:
        opening: stands before the list.
        item: around one option, with ``{label}`` (unless ``labels`` is "none") and ``{text}``.
        between: between two items.
        labels: what labels are made of.
        answer: what the target holds: the option's text, or its label.
    """

    opening: str
    item: str
    between: str
    labels: Labels
    answer: Literal["text", "label"]

    def holds(self, count: int) -> bool:
        """Whether it has labels for so many options. Letters end at 26."""
        return self.labels not in _ALPHABETS or count <= len(_ALPHABETS[self.labels])

    def label(self, index: int) -> str:
        return _ALPHABETS[self.labels][index] if self.labels in _ALPHABETS else str(index + 1)

    def render(self, options: Sequence[str]) -> str:
        """The list; it is empty for no options."""
        before, _, after = self.item.partition("{text}")
        items = (
            before.replace("{label}", "" if self.labels == "none" else self.label(index)) + text + after
            for index, text in enumerate(options)
        )
        return self.opening + self.between.join(items) if options else ""

    def target(self, options: Sequence[str], index: int) -> str:
        """What answers with option ``index``: "(B)", "B" or the text itself."""
        if self.answer == "text":
            return options[index]
        label = self.label(index)
        return f"({label})" if "({label})" in self.item else label


PLAIN = OptionStyle("Options:\n", "- {text}", "\n", "none", "text")

_OPENINGS = ("Options:\n", "Choices:\n", "Possible answers:\n", "Pick one of these:\n", "OPTIONS:\n", "")
_BULLETS = ("- {text}", "* {text}", "• {text}", "{text}")
_LABELLED: tuple[tuple[Labels, str], ...] = (
    ("upper", "({label}) {text}"),
    ("upper", "{label}. {text}"),
    ("upper", "{label}) {text}"),
    ("upper", "{label}: {text}"),
    ("upper", "[{label}] {text}"),
    ("upper", "- {label}. {text}"),
    ("lower", "({label}) {text}"),
    ("lower", "{label}) {text}"),
    ("digits", "{label}. {text}"),
    ("digits", "({label}) {text}"),
)

STYLES: tuple[OptionStyle, ...] = (
    *(OptionStyle(opening, item, "\n", "none", "text") for item in _BULLETS for opening in _OPENINGS),
    OptionStyle("Options: ", "{text}", "; ", "none", "text"),
    OptionStyle("Choose from: ", "{text}", " / ", "none", "text"),
    *(OptionStyle(opening, item, "\n", labels, "label") for labels, item in _LABELLED for opening in _OPENINGS),
    *(OptionStyle(opening, item, "\n", labels, "text") for labels, item in _LABELLED for opening in _OPENINGS[:2]),
    OptionStyle("Options: ", "({label}) {text}", " ", "upper", "label"),
    OptionStyle("Choices: ", "{label}. {text}", "; ", "upper", "label"),
)
"""All styles. Labels are the answer in about two of three."""


def styles_for(count: int, letters: bool) -> list[OptionStyle]:
    """The styles that can list so many options; with ``letters`` only those labelled A, B, C, ..., if they can."""
    lettered = [style for style in STYLES if style.labels == "upper" and style.holds(count)]
    return lettered if letters and lettered else [style for style in STYLES if style.holds(count)]
