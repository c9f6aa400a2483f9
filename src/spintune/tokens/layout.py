"""The layout of a rendered conversation: which stretches are control tokens or plain text, and which are trained.

A chat template is rendered with a placeholder for each content. The text that it writes around the placeholders is
template text, and only there does the text of a control token mean that token::

    <|im_start|>user\\nHi<|im_end|>\\n<|im_start|>assistant\\nHello!<|im_end|>\\n
    control     text    control   text control    text        text  control text
                                                              [-- trained --]

Text between two control tokens is one span, template text and contents joined, because the tokenizer sees it so. A cut
always comes before an assistant's turn, so that the prompt is a token prefix of the row.
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

    ``left`` and ``right`` stay in the rendered text, so that a template that trims contents does so here as well.
    """

    role: Role
    left: str
    right: str
    empty: bool


@dataclass(frozen=True)
class Control:
    """A control token; ``lstrip`` and ``rstrip`` say whether it removes the white space before and after it."""

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
    """How a template and its tokenizer write a conversation.

    Attributes:
        controls: control tokens by their text.
        end: the token that closes an assistant's turn where the template does not.
        template_ends: the template closes an assistant's turn with the first control token after the content.
        answer_space: white space between the template's generation prompt and the answer (Llama-2's space). It belongs
            to the response, as it does wherever the model is used through its generation prompt.
    """

    controls: dict[str, Control]
    end: Control
    template_ends: bool
    answer_space: str

    def split(self, text: str) -> list[str | Control]:
        """Splits template text into text and control tokens."""
        return split_controls(text, self.controls)


def split_controls(text: str, controls: dict[str, Control]) -> list[str | Control]:
    """Splits text at control tokens; the longest one wins, as in the tokenizer."""
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
    style: TemplateStyle,
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
            items += [(item, False) for item in (*style.split(open_text), index)]
            open_text = text_after
            continue
        own = turn.left if len(bare) == len(parts) and text_before == f"{bare[place - 1]}{turn.left}" else ""
        header = open_text.removesuffix(own).removesuffix(style.answer_space)
        closing, rest = _end_of_turn(text_after, turn, style)
        items += [(item, False) for item in (*style.split(header), _Cut())]
        items += [(item, index in answers) for item in (open_text[len(header) :], index, *closing)]
        open_text = rest
    return _through_last_trained(_spans(items))


def _end_of_turn(text: str, turn: Turn, style: TemplateStyle) -> tuple[list[_Item], str]:
    """The items that close the assistant's turn before ``text``, and the rest of ``text`` after them."""
    pieces = style.split(text)
    for number, piece in enumerate(pieces):
        if isinstance(piece, Control):
            if style.template_ends or piece == style.end:
                closing = pieces[: number + 1]
                return [*closing], text[sum(len(p if isinstance(p, str) else p.text) for p in closing) :]
            break
    own = turn.right if text.startswith(turn.right) else ""
    return [own, style.end], text[len(own) :]


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
    """The parts without empty texts and without the white space that neighboring control tokens remove."""
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
