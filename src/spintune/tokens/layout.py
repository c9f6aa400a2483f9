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

from spintune.records import Role, ToolCall
from spintune.tokens.plain import Position
from spintune.tokens.reasoning import Thought

Part = str | int
"""Template text, or a slot: ``i`` for the content of message ``i``, and ``-1 - i`` for its reasoning."""


@dataclass(frozen=True)
class TurnExtras:
    """What only some turns have; see :class:`spintune.records.Message`."""

    thought: Thought | None = None
    calls: tuple[ToolCall, ...] = ()
    call_id: str = ""
    name: str = ""
    text: str | None = None
    """A content that cannot have a placeholder, since the template rewrites it: the text itself."""


@dataclass(frozen=True)
class Turn:
    """What a template may see of a message: its role, the white space around its content, and whether it is empty.

    ``left`` and ``right`` stay in the rendered text, so that a template that trims contents does so here as well.
    """

    role: Role
    left: str
    right: str
    empty: bool
    extras: TurnExtras | None = None


@dataclass(frozen=True)
class Control:
    """A control token; ``lstrip`` and ``rstrip`` say whether it removes the white space before and after it."""

    id: int
    text: str
    lstrip: bool = False
    rstrip: bool = False


Piece = str | Control


@dataclass(frozen=True)
class Span:
    """A stretch of tokens: a control token, or parts that are joined and encoded as one plain text."""

    parts: tuple[Part, ...] | Control
    position: Position
    trained: bool


class Splitter:
    """Splits template text at control tokens; the longest one wins, as in the tokenizer."""

    def __init__(self, controls: dict[str, Control]) -> None:
        pattern = "|".join(map(re.escape, sorted(controls, key=len, reverse=True)))
        self._controls, self._pattern = controls, re.compile(f"({pattern})" if pattern else "(?!)")

    def split(self, text: str) -> list[Piece]:
        """The text and control tokens of ``text``."""
        return [self._controls.get(piece, piece) for piece in self._pattern.split(text) if piece]


def rest_after(parts: Sequence[Part], beginning: Sequence[Part]) -> tuple[Part, ...] | None:
    """What follows ``beginning`` in ``parts``, text first; None where they begin otherwise. Both begin with text."""
    last = len(beginning) - 1
    if len(parts) <= last or tuple(parts[:last]) != tuple(beginning[:last]):
        return None
    text, start = str(parts[last]), str(beginning[last])
    return (text[len(start) :], *parts[last + 1 :]) if text.startswith(start) else None


def joined(first: Sequence[Part], second: Sequence[Part]) -> tuple[Part, ...]:
    """Two renderings in a row, the texts at the seam as one."""
    return (*first[:-1], f"{first[-1]}{second[0]}", *second[1:])


def fill(parts: Sequence[Part], texts: Sequence[str]) -> str:
    """The text of a rendering whose slots hold ``texts``."""
    return "".join(texts[part] if isinstance(part, int) else part for part in parts)


def lay_out(segments: Sequence[tuple[Sequence[Part], bool]], splitter: Splitter) -> tuple[Span, ...]:
    """The spans of consecutive segments, each with whether it is trained. A cut comes before every trained one."""
    spans: list[Span] = []
    run: list[Part] = []
    run_trained, swallow = False, False
    position: Position = "start"

    def close(swallow_before: bool) -> bool:
        stripped = _stripped(run, swallow, swallow_before)
        run.clear()
        if stripped:
            spans.append(Span(stripped, position, run_trained))
        return bool(stripped)

    for number, (parts, trained) in enumerate(segments):
        if number and (trained or run_trained) and close(False):
            position, swallow = "cut", False
        run_trained = trained
        pieces = [piece for part in parts for piece in ([part] if isinstance(part, int) else splitter.split(part))]
        for piece in pieces:
            if isinstance(piece, Control):
                close(piece.lstrip)
                spans.append(Span(piece, position, trained))
                position, swallow = "control", piece.rstrip
            else:
                run.append(piece)
    close(False)
    return tuple(spans)


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
