"""From a row to a prompt and its target, alone or after exemplars.

::

    zero-shot   input cue                                          -> target
    few-shot    (prefix input lead target separator) * shots
                prefix input lead                                  -> target

``lead`` is the phrasing's own cue, or else the frame's. A prompt ends after it; trailing spaces, but not line breaks,
are removed, as the Flan collection does (flan/v2/few_shot.py), so that a target never follows a lone space token.
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
    """What stands around exemplars. A phrasing with a cue of its own takes only the separator from it."""

    prefix: str
    lead: str
    separator: str


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
    """How long a few-shot prompt may be: ``count(prompt) <= tokens``. The text is counted whole, separators too."""

    tokens: int
    count: Callable[[str], int]


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt, its target, and how they came about.

    Attributes:
        prompt: what the model reads.
        target: what it is to answer.
        task: name of the task.
        row: line or row of the task's file, from 1.
        kind: "direct", or "cot" where the rationale takes part.
        inverted: True where the task is turned around.
        phrasing: number of the phrasing among those of its kind and direction.
        shots: exemplars in the prompt.
        wanted_shots: exemplars that were asked for; 0 in the zero-shot quadrants.
        found_shots: exemplars that asked something else than the query; ``shots`` of them fitted.
        labelled: True where the target names the option by its label.
        optionless: True where the options of the row are not shown.
    """

    prompt: str
    target: str
    task: str
    row: int
    kind: Kind
    inverted: bool
    phrasing: int
    shots: int
    wanted_shots: int
    found_shots: int
    labelled: bool
    optionless: bool

    @property
    def quadrant(self) -> QuadrantName:
        """By what is in the prompt: a few-shot prompt in which no exemplar fitted is a zero-shot one."""
        if self.kind == "direct":
            return "few_direct" if self.shots else "zero_direct"
        return "few_cot" if self.shots else "zero_cot"

    @property
    def source(self) -> str:
        """Its provenance in one line; :func:`provenance` reads it."""
        direction = "-inverted" if self.inverted else ""
        shots = f"few-shot({self.shots})" if self.shots else "zero-shot"
        return f"mixture:{self.task}/{self.kind}{direction}/{shots}/template-{self.phrasing}:row-{self.row}"

    def example(self) -> Example:
        return Example((Message("user", self.prompt), Message("assistant", self.target)), self.source)


@dataclass(frozen=True)
class MixtureProvenance:
    """Where an example of a mixture came from, see :class:`RenderedPrompt`."""

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
    """Reads an example's ``source``; None when it is not of a mixture.

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
    wanted_shots: int | None = None,
    budget: PromptBudget | None = None,
) -> RenderedPrompt:
    """Puts a row into words, after as many of the exemplars as fit: the first so many.

    ``style`` None leaves the options out. Exemplars that ask the same as the row do are skipped, so that no answer is
    given away. ``wanted_shots`` is for the record only.
    """
    question, answer = _worded(item, way, style)
    asked = {question}
    parts = []
    for other in exemplars:
        input_, target = _worded(other, way, style)
        if input_ in asked or task.key(other) == task.key(item):
            continue
        prefix, lead = ("", way.cue) if way.cue else (frame.prefix, frame.lead)
        parts.append(prefix + input_ + lead + target + frame.separator)
    shots = len(parts)
    while shots and budget and budget.count(_prompt(parts[:shots], question, way, frame)) > budget.tokens:
        shots -= 1
    return RenderedPrompt(
        prompt=_prompt(parts[:shots], question, way, frame),
        target=answer,
        task=task.name,
        row=item.number,
        kind=way.kind,
        inverted=way.inverted,
        phrasing=way.number,
        shots=shots,
        wanted_shots=len(exemplars) if wanted_shots is None else wanted_shots,
        found_shots=len(parts),
        labelled=_answers_with_label(item, way, style),
        optionless=bool(item.options) and (style is None or not way.asks_with_options),
    )


def _worded(item: TaskItem, way: Phrasing, style: OptionStyle | None) -> tuple[str, str]:
    """Input and target. Options that are not shown have no labels to answer with."""
    fields = {**item.fields, OPTIONS: style.render(item.options) if style else ""}
    if style and item.choice is not None and way.asks_with_options:
        fields[ANSWER] = style.target(item.options, item.choice)
    return way.input.fill(fields), way.target.fill(fields)


def _answers_with_label(item: TaskItem, way: Phrasing, style: OptionStyle | None) -> bool:
    return bool(style and style.answer == "label" and item.options and way.asks_with_options)


def _prompt(exemplars: Sequence[str], question: str, way: Phrasing, frame: ExemplarFrame) -> str:
    if not exemplars:
        return (question + way.cue).rstrip(" ")
    prefix, lead = ("", way.cue) if way.cue else (frame.prefix, frame.lead)
    return ("".join(exemplars) + prefix + question + lead).rstrip(" ")
