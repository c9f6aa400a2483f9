"""Renders a row as a prompt and its target, alone or after exemplars.

::

    zero-shot   input cue                                         -> target
    few-shot    (prefix input cue target separator) * shots
                prefix input cue                                  -> target

The cue is the phrasing's own, or else the frame's, and ends the prompt. Trailing spaces, but not line breaks, are
removed as in the Flan collection (flan/v2/few_shot.py), so that a target never follows a lone space token.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from spintune.mixtures.options import PLAIN, OptionStyle
from spintune.mixtures.phrasings import ANSWER, OPTIONS, Kind, Phrasing
from spintune.mixtures.tasks import MixtureTask, TaskItem
from spintune.recipe.mixture import QuadrantName
from spintune.records import Example, Message

QUADRANTS: tuple[QuadrantName, ...] = ("zero_direct", "few_direct", "zero_cot", "few_cot")


@dataclass(frozen=True)
class ExemplarFrame:
    """The text around exemplars. A phrasing with its own cue uses only the separator."""

    prefix: str
    cue: str
    separator: str

    def around(self, way: Phrasing) -> tuple[str, str]:
        """The texts before and after an input."""
        return ("", way.cue) if way.cue else (self.prefix, self.cue)


_AROUND = (
    ("", "\n"),
    ("", "\n\n"),
    ("Q: ", "\nA: "),
    ("Question: ", "\nAnswer: "),
    ("Input: ", "\nOutput: "),
    ("Problem: ", "\nSolution: "),
    ("Task: ", "\nResponse: "),
    ("[question]\n", "\n[answer]\n"),
    ("User: ", "\nAssistant: "),
    ("Here is one: ", "\nThe reply: "),
)
_SEPARATORS = ("\n\n", "\n\n\n", "\n---\n", "\n\n###\n\n", "\n\n*****\n\n")

FRAMES: tuple[ExemplarFrame, ...] = tuple(
    ExemplarFrame(*around, separator) for around in _AROUND for separator in _SEPARATORS
)


@dataclass(frozen=True)
class PromptBudget:
    """Maximum length of a few-shot prompt: ``count(prompt) <= tokens``, where ``count`` gets the whole text."""

    tokens: int
    count: Callable[[str], int]


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt, its target, and how they were made.

    Attributes:
        prompt: what the model reads.
        target: the correct response.
        task: name of the task.
        row: line or row of the task's file, from 1.
        kind: "direct", or "cot" with a rationale.
        inverted: whether the task is inverted.
        phrasing: number of the phrasing among those of its kind and direction.
        shots: exemplars in the prompt.
        requested_shots: exemplars that were requested; 0 in the zero-shot quadrants.
        available_shots: exemplars that ask something else than the row; the first ``shots`` of them fit.
        labeled: whether the target names the option by its label.
        hides_options: whether the row has options that the prompt does not show.
    """

    prompt: str
    target: str
    task: str
    row: int
    kind: Kind
    inverted: bool
    phrasing: int
    shots: int
    requested_shots: int
    available_shots: int
    labeled: bool
    hides_options: bool

    @property
    def quadrant(self) -> QuadrantName:
        """By what the prompt holds: a few-shot prompt into which no exemplar fits is a zero-shot one."""
        if self.kind == "direct":
            return "few_direct" if self.shots else "zero_direct"
        return "few_cot" if self.shots else "zero_cot"

    @property
    def source(self) -> str:
        """The provenance as one line, which :func:`provenance` reads."""
        direction = "-inverted" if self.inverted else ""
        shots = f"few-shot({self.shots})" if self.shots else "zero-shot"
        return f"mixture:{self.task}/{self.kind}{direction}/{shots}/template-{self.phrasing}:row-{self.row}"

    def example(self) -> Example:
        """The prompt and target as a conversation."""
        return Example((Message("user", self.prompt), Message("assistant", self.target)), self.source)


@dataclass(frozen=True)
class MixtureProvenance:
    """Where an example of a mixture comes from; the fields are those of :class:`RenderedPrompt`."""

    task: str
    row: int
    kind: str
    inverted: bool
    phrasing: int
    shots: int


_SOURCE = re.compile(
    r"mixture:(?P<task>.+)/(?P<kind>direct|cot)(?P<inverted>-inverted)?/(?:zero-shot|few-shot\((?P<shots>\d+)\))"
    r"/template-(?P<phrasing>\d+):row-(?P<row>\d+)"
)


def provenance(source: str) -> MixtureProvenance | None:
    """Reads an example's ``source``; None if the example is not part of a mixture.

    >>> provenance("mixture:gsm8k/cot/few-shot(3)/template-4:row-17").shots
    3
    """
    found = _SOURCE.fullmatch(source)
    if found is None:
        return None
    return MixtureProvenance(
        found["task"],
        int(found["row"]),
        found["kind"],
        found["inverted"] is not None,
        int(found["phrasing"]),
        int(found["shots"] or 0),
    )


def render(
    task: MixtureTask,
    item: TaskItem,
    way: Phrasing,
    style: OptionStyle | None = PLAIN,
    frame: ExemplarFrame = FRAMES[0],
    exemplars: Sequence[TaskItem] = (),
    requested_shots: int | None = None,
    budget: PromptBudget | None = None,
) -> RenderedPrompt:
    """Renders a row after as many of the exemplars as fit, in their order.

    ``style`` None leaves the options out. Exemplars that ask the same as the row are skipped, so that none gives the
    answer away. ``requested_shots`` is only recorded.
    """
    question, target = _rendered(item, way, style)
    prefix, cue = frame.around(way)
    parts = []
    for other in exemplars:
        other_question, other_target = _rendered(other, way, style)
        if other_question != question and task.key(other) != task.key(item):
            parts.append(prefix + other_question + cue + other_target + frame.separator)
    shots = len(parts)
    while shots and budget and budget.count(_prompt(parts[:shots], question, way, frame)) > budget.tokens:
        shots -= 1
    shows_options = style is not None and way.asks_with_options
    return RenderedPrompt(
        prompt=_prompt(parts[:shots], question, way, frame),
        target=target,
        task=task.name,
        row=item.number,
        kind=way.kind,
        inverted=way.inverted,
        phrasing=way.number,
        shots=shots,
        requested_shots=len(exemplars) if requested_shots is None else requested_shots,
        available_shots=len(parts),
        labeled=style is not None and style.answer == "label" and bool(item.options) and shows_options,
        hides_options=bool(item.options) and not shows_options,
    )


def _rendered(item: TaskItem, way: Phrasing, style: OptionStyle | None) -> tuple[str, str]:
    """Input and target. Hidden options have no labels to answer with."""
    fields = {**item.fields, OPTIONS: style.render(item.options) if style else ""}
    if style and item.choice is not None and way.asks_with_options:
        fields[ANSWER] = style.target(item.options, item.choice)
    return way.input.fill(fields), way.target.fill(fields)


def _prompt(exemplars: Sequence[str], question: str, way: Phrasing, frame: ExemplarFrame) -> str:
    if not exemplars:
        return (question + way.cue).rstrip(" ")
    prefix, cue = frame.around(way)
    return ("".join(exemplars) + prefix + question + cue).rstrip(" ")
