"""The end of an assistant's turn, learned from how a template writes a plain conversation."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from spintune.tokens.layout import Control, Part, Piece, Splitter

_END = re.compile(r"end|eo[tsm]|return|^</", re.IGNORECASE)
"""Names of tokens that end a turn."""


@dataclass(frozen=True)
class TurnEnd:
    """What ends an answer.

    Attributes:
        pieces: text and control tokens that end a trained answer; the last one is a control token.
        written: the template writes them after the last answer.
        rest: what the template writes after the last answer besides; it is not trained.
    """

    pieces: tuple[Piece, ...]
    written: bool
    rest: str

    @property
    def token(self) -> Control:
        """The token at which generation stops."""
        return next(piece for piece in reversed(self.pieces) if isinstance(piece, Control))

    @property
    def text(self) -> str:
        """The pieces as text."""
        return text_of(self.pieces)

    def close(self, answer: tuple[Part, ...], splitter: Splitter) -> tuple[Part, ...]:
        """An answer as the template writes it, with the end that is trained and nothing after it."""
        tail = str(answer[-1]).removesuffix(self.rest)
        if not self.written:
            return (*answer[:-1], tail + self.text)
        pieces = splitter.split(tail)
        if len(pieces) > 1 and isinstance(pieces[-2], Control) and isinstance(pieces[-1], str) and pieces[-1].isspace():
            del pieces[-1]  # a call of a tool may end otherwise than a content, so its rest is another one
        if not (pieces and isinstance(pieces[-1], Control)):
            pieces += self.pieces
        return (*answer[:-1], text_of(pieces))


def learn_end(
    answered: Sequence[Part], continued: Sequence[Part] | None, splitter: Splitter, eos: Control | None
) -> TurnEnd | None:
    """The end of an answer; None where neither the template nor the tokenizer has one.

    Args:
        answered: a question and its answer as the template writes them.
        continued: the same with a second question; None where the template refuses that.
        eos: the tokenizer's end-of-sequence token.
    """
    after = splitter.split(str(answered[-1]))
    between = _before_next_turn(continued, splitter) if continued else []
    common = _common_start(after, between)
    for pieces in (_through_last_control(common), _first_controls(after)):
        if pieces:
            return TurnEnd(pieces, True, text_of(after)[len(text_of(pieces)) :])
    # a template may end an answer only where another turn follows
    end = _through_last_control(between)
    if not end and eos:
        end = (eos,)
    return TurnEnd(end, False, text_of(after)) if end else None


def _before_next_turn(continued: Sequence[Part], splitter: Splitter) -> list[Piece]:
    """What stands between an answer and the header of the next question, which the first question shows."""
    if list(continued[1:-1:2]) != [0, 1, 2]:
        return []
    first, between = splitter.split(str(continued[0])), splitter.split(str(continued[4]))
    header = 0
    while header < min(len(first), len(between)) and first[-1 - header] == between[-1 - header]:
        if isinstance(piece := first[-1 - header], Control) and _END.search(piece.text):
            break  # the end of a system turn that the template adds
        header += 1
    if header:
        return between[: len(between) - header]
    if between and isinstance(between[-1], str):  # text that begins the next turn
        return between[:-1]
    return between if len(between) == 1 else []


def _common_start(first: Sequence[Piece], second: Sequence[Piece]) -> list[Piece]:
    return [one for one, _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False))]


def _through_last_control(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    last = max((place for place, piece in enumerate(pieces) if isinstance(piece, Control)), default=-1)
    return tuple(pieces[: last + 1])


def _first_controls(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Through the first control token and those that follow it without text between them."""
    first = next((place for place, piece in enumerate(pieces) if isinstance(piece, Control)), None)
    if first is None:
        return ()
    run = takewhile(lambda piece: isinstance(piece, Control), pieces[first:])
    return (*pieces[:first], *run)


def text_of(pieces: Sequence[Piece]) -> str:
    """The pieces as text."""
    return "".join(piece if isinstance(piece, str) else piece.text for piece in pieces)
