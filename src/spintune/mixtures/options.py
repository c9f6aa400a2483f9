"""Styles in which a prompt lists its answer options, and whether the target is an option's text or its label.

The Flan collection has 16 openings, 87 item styles and 3 endings (flan/v2/templates.py). These are our own and fewer,
and combine freely. Unlike in Flan, only a style with labels may turn the target into a label, so a bullet never does;
and a style is used only for lists that its labels suffice for.
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
        opening: text before the list.
        item: template of one option, with ``{label}`` (unless ``labels`` is "none") and ``{text}``.
        between: text between two items.
        labels: kind of labels.
        answer: whether the target holds the option's text or its label.
    """

    opening: str
    item: str
    between: str
    labels: Labels
    answer: Literal["text", "label"]

    def holds(self, count: int) -> bool:
        """Whether it has labels for ``count`` options; there are 26 letters."""
        return self.labels not in _ALPHABETS or count <= len(_ALPHABETS[self.labels])

    def label(self, index: int) -> str:
        """The label of option ``index``, without what surrounds it: "B", "b" or "2"."""
        return _ALPHABETS[self.labels][index] if self.labels in _ALPHABETS else str(index + 1)

    def render(self, options: Sequence[str]) -> str:
        """The list; "" without options."""
        before, _, after = self.item.partition("{text}")
        items = (
            before.replace("{label}", "" if self.labels == "none" else self.label(index)) + text + after
            for index, text in enumerate(options)
        )
        return self.opening + self.between.join(items) if options else ""

    def target(self, options: Sequence[str], index: int) -> str:
        """The target that chooses option ``index``: "(B)", "B" or the option's text."""
        if self.answer == "text":
            return options[index]
        label = self.label(index)
        return f"({label})" if "({label})" in self.item else label


PLAIN = OptionStyle("Options:\n", "- {text}", "\n", "none", "text")

_OPENINGS = ("Options:\n", "Choices:\n", "Possible answers:\n", "Pick one of these:\n", "OPTIONS:\n", "")
_BULLETS = ("- {text}", "* {text}", "• {text}", "{text}")
_LABELED: tuple[tuple[Labels, str], ...] = (
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
    *(OptionStyle(opening, item, "\n", labels, "label") for labels, item in _LABELED for opening in _OPENINGS),
    *(OptionStyle(opening, item, "\n", labels, "text") for labels, item in _LABELED for opening in _OPENINGS[:2]),
    OptionStyle("Options: ", "({label}) {text}", " ", "upper", "label"),
    OptionStyle("Choices: ", "{label}. {text}", "; ", "upper", "label"),
)
"""All styles. In about two of three the label is the answer."""


def styles_for(count: int, letters: bool) -> list[OptionStyle]:
    """The styles that can list ``count`` options; with ``letters`` only those labeled A, B, C, ..., if any can."""
    lettered = [style for style in STYLES if style.labels == "upper" and style.holds(count)]
    return lettered if letters and lettered else [style for style in STYLES if style.holds(count)]
