"""Phrasings: the templates that turn a row of a task into a prompt and a target.

A pattern is text with ``{field}`` in it. It is substituted once, so braces in a user's data stay as they are.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from spintune.errors import RecipeError
from spintune.mixtures.declarations import PhrasingSection

Kind = Literal["direct", "cot"]
OPTIONS, ANSWER, RATIONALE = "options", "answer", "rationale"

_TOKEN = re.compile(r"\{\{|\}\}|\{(\w+)\}|[{}]")


@dataclass(frozen=True)
class Pattern:
    """Literal text and fields in turn: ``literals[0] fields[0] literals[1] ... literals[-1]``.

    >>> Pattern.parse("{{{word}}}: ", "here").fill({"word": "{word}"})
    '{{word}}: '
    """

    literals: tuple[str, ...]
    fields: tuple[str, ...]

    @classmethod
    def parse(cls, text: str, where: str) -> Pattern:
        """``{{`` and ``}}`` stand for braces. Raises RecipeError for any other brace that is not around a name."""
        literals, fields, end = [""], [], 0
        for token in _TOKEN.finditer(text):
            literals[-1] += text[end : token.start()]
            end = token.end()
            if token[1]:
                fields.append(token[1])
                literals.append("")
            elif len(token[0]) == 2:
                literals[-1] += token[0][0]
            else:
                raise RecipeError(
                    f"{where}: a lone {token[0]} in {text!r:.60}; write {{name}} for a field, {token[0] * 2} for text"
                )
        literals[-1] += text[end:]
        return cls(tuple(literals), tuple(fields))

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with each field replaced. Where the options are empty, the line breaks before them go as well."""
        parts = [self.literals[0]]
        for field, literal in zip(self.fields, self.literals[1:], strict=True):
            if field == OPTIONS and not values[OPTIONS]:
                parts[-1] = parts[-1].rstrip("\n")
            parts += [values[field], literal]
        return "".join(parts)


@dataclass(frozen=True)
class Phrasing:
    """One way to ask.

    Attributes:
        input: what is asked.
        cue: text before the answer ("\\nAnswer: "); when empty, the frame of a few-shot prompt chooses one.
        target: what is answered.
        kind: "cot" when a rationale is part of it, else "direct".
        inverted: whether the task is inverted: the answer is part of the input.
        number: place among the phrasings of its kind and direction, from 0.
        where: file and key, for errors.
    """

    input: Pattern
    cue: str
    target: Pattern
    kind: Kind
    inverted: bool
    number: int
    where: str

    @property
    def fields(self) -> set[str]:
        return {*self.input.fields, *self.target.fields}

    @property
    def asks_with_options(self) -> bool:
        return OPTIONS in self.input.fields


def phrasing(spec: PhrasingSection, kind: Kind, inverted: bool, number: int, where: str) -> Phrasing:
    """Parses a phrasing and checks that it is of its kind. Raises RecipeError.

    direct: the target holds {answer}; cot: the target holds {rationale} and then {answer}; inverted: the target holds
    a field that the input does not give away.
    """
    made = Phrasing(
        input=Pattern.parse(spec.input, f"{where}.input"),
        cue=spec.cue,
        target=Pattern.parse(spec.target, f"{where}.target"),
        kind=kind,
        inverted=inverted,
        number=number,
        where=where,
    )
    given, asked = made.input.fields, made.target.fields
    if not given:
        raise RecipeError(f"{where}.input holds no field, so every row would ask the same; write a field as {{name}}")
    if not asked:
        raise RecipeError(f"{where}.target holds no field; write the answer as {{{ANSWER}}}")
    if shared := sorted(set(given) & set(asked)):
        raise RecipeError(f"{where}: {{{shared[0]}}} is in the input and in the target; the answer would be given away")
    if OPTIONS in asked:
        raise RecipeError(f"{where}.target holds {{{OPTIONS}}}, which only an input may; write {{{ANSWER}}}")
    if inverted:
        return made
    if ANSWER not in asked:
        raise RecipeError(f"{where}.target lacks {{{ANSWER}}}; add it")
    if hidden := sorted({ANSWER, RATIONALE} & set(given)):
        raise RecipeError(f"{where}.input holds {{{hidden[0]}}}; an inverted phrasing belongs to inverted")
    if kind == "cot" and (RATIONALE not in asked or asked.index(RATIONALE) > asked.index(ANSWER)):
        raise RecipeError(f"{where}.target: {{{RATIONALE}}} must stand before {{{ANSWER}}}; a rationale leads to it")
    if kind == "direct" and RATIONALE in asked:
        raise RecipeError(f"{where}.target holds {{{RATIONALE}}}; a phrasing with a rationale belongs to cot")
    return made


def unknown_field(phrasing: Phrasing, known: Iterable[str]) -> str | None:
    """Describes the first field that a phrasing uses and the task lacks; None if it lacks none."""
    names = sorted(known)
    for name in (*phrasing.input.fields, *phrasing.target.fields):
        if name not in names:
            close = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {{{close[0]}}}?" if close else f"known here: {', '.join(names)}"
            return f"{phrasing.where}: the task has no field {{{name}}}; {hint}"
    return None
