"""Where the tokens of a conversation come from, and which of them are trained.

A chat template is rendered with a placeholder for each content. What it writes around the placeholders is template
text, and only there a control token is one::

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
    control     text    control   text control    text        text  control text
                                                              [-- trained --]

Text between two control tokens is one span, template text and contents joined, because that is how the tokenizer sees
it; only before an assistant's turn there is always a cut, so that the prompt is a token prefix of the row.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from spintune.records import Role
from spintune.tokens.plain import Position

Part = str | int
"""Template text, or the index of the message whose content stands here."""


@dataclass(frozen=True)
class Turn:
    """What a template may see of a message: its role, the white space around its content, and whether it is empty.

    ``left`` and ``right`` stay in the rendered text, so that a template which trims contents does so here as well.
    """

    role: Role
    left: str
    right: str
    empty: bool


@dataclass(frozen=True)
class Control:
    """A control token; ``lstrip`` and ``rstrip`` say whether it swallows the white space before and after it."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


@dataclass(frozen=True)
class Span:
    """A stretch of tokens: a control token, or parts that are joined and encoded as one plain text."""

    parts: tuple[Part, ...] | Control
    position: Position
    trained: bool


@dataclass(frozen=True)
class TemplateStyle:
    """How a template and its tokenizer write.

    Attributes:
        controls: control tokens by their text.
        end: closes an assistant's turn where the template does not do it, always with this token.
        template_ends: the template closes an assistant's turn with the first control token after the content.
        lead: white space between the template's generation prompt and the answer (Llama-2's space). It belongs to
            the response, as it does wherever the model is used through its generation prompt.
    """

    controls: dict[str, Control]
    end: Control
    template_ends: bool
    lead: str

    def split(self, text: str) -> list[str | Control]:
        """Template text as text and control tokens."""
        return split_controls(text, self.controls)


def split_controls(text: str, controls: dict[str, Control]) -> list[str | Control]:
    """Text and control tokens in order; the longest control token wins, as in the tokenizer."""
    if not controls:
        return [text]
    pattern = "|".join(map(re.escape, sorted(controls, key=len, reverse=True)))
    return [controls.get(piece, piece) for piece in re.split(f"({pattern})", text) if piece]


class _Cut:
    """Marks the place where the response begins."""


_Item = Part | Control | _Cut


def lay_out(
    parts: Sequence[Part],
    bare: Sequence[Part],
    turns: Sequence[Turn],
    answers: frozenset[int],
    dialect: TemplateStyle,
) -> tuple[Span, ...]:
    """The spans of a rendered conversation, up to the last trained one.

    Args:
        parts: the rendered template, text and content indices by turns: ``text, index, text, ..., text``.
        bare: the same for a rendering in which assistant contents have no white space before them. The difference
            tells white space of the content, which is trained, from white space of the template.
        turns: the messages.
        answers: indices of the trained messages.
    """
    items: list[tuple[_Item, bool]] = []
    open_text = str(parts[0])
    for place in range(1, len(parts), 2):
        index, text_before, text_after = int(parts[place]), str(parts[place - 1]), str(parts[place + 1])
        turn = turns[index]
        if turn.role != "assistant":
            items += [(item, False) for item in (*dialect.split(open_text), index)]
            open_text = text_after
            continue
        own = turn.left if len(bare) == len(parts) and text_before == f"{bare[place - 1]}{turn.left}" else ""
        header = open_text.removesuffix(own).removesuffix(dialect.lead)
        closing, rest = _end_of_turn(text_after, turn, dialect)
        items += [(item, False) for item in (*dialect.split(header), _Cut())]
        items += [(item, index in answers) for item in (open_text[len(header) :], index, *closing)]
        open_text = rest
    return _through_last_trained(_spans(items))


def _end_of_turn(text: str, turn: Turn, dialect: TemplateStyle) -> tuple[list[_Item], str]:
    """What closes the assistant's turn that ``text`` follows, and what of ``text`` comes after that."""
    pieces = dialect.split(text)
    for number, piece in enumerate(pieces):
        if isinstance(piece, Control):
            if dialect.template_ends or piece == dialect.end:
                closing = pieces[: number + 1]
                return [*closing], text[sum(len(p if isinstance(p, str) else p.text) for p in closing) :]
            break
    own = turn.right if text.startswith(turn.right) else ""
    return [own, dialect.end], text[len(own) :]


def _spans(items: Sequence[tuple[_Item, bool]]) -> list[Span]:
    spans: list[Span] = []
    run: list[Part] = []
    run_trained, swallow = False, False
    position: Position = "start"

    def close(swallow_before: bool) -> bool:
        joined = _stripped(run, swallow, swallow_before)
        run.clear()
        if joined:
            spans.append(Span(joined, position, run_trained))
        return bool(joined)

    for item, trained in items:
        if isinstance(item, Control):
            close(item.lstrip)
            spans.append(Span(item, position, trained))
            position, swallow = "control", item.rstrip
        elif isinstance(item, _Cut):
            if close(False):
                position, swallow = "cut", False
        else:
            run.append(item)
            run_trained = trained
    close(False)
    return spans


def _stripped(run: Sequence[Part], left: bool, right: bool) -> tuple[Part, ...]:
    """The parts without the white space that neighbouring control tokens swallow, and without empty texts."""
    parts = [part for part in run if part != ""]
    while left and parts and isinstance(parts[0], str):
        parts[0] = parts[0].lstrip()
        if parts[0]:
            break
        del parts[0]
    while right and parts and isinstance(parts[-1], str):
        parts[-1] = parts[-1].rstrip()
        if parts[-1]:
            break
        del parts[-1]
    return tuple(parts)


def _through_last_trained(spans: Sequence[Span]) -> tuple[Span, ...]:
    last = max((number for number, span in enumerate(spans) if span.trained), default=-1)
    return tuple(spans[: last + 1])
