"""Foreign text in Markdown, for cards: it is shown as it is, and no HTML, link or heading comes from it.

Every text that a model, a teacher or a user wrote passes one of these functions. Lines end as CommonMark says: at a
line feed, a carriage return, or both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_SPECIAL = re.compile(r"[\\`*{}\[\]<>#|&~$!]|(?<![^\W_])_|_(?![^\W_])")
"""An underscore inside a word means nothing, and names are full of them."""
_BLOCK_START = re.compile(r"^(\d{0,9})([-+.)])(?=\s|$)|^()([-=])(?=[-=]*$)")
"""What begins a list or underlines a heading."""


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def lines(text: str) -> list[str]:
    """The lines of a text, whichever way they end."""
    return re.split(r"\r\n|\r|\n", text)


def plain(value: object) -> str:
    """A text on one line, shown as it is."""
    if isinstance(value, Markdown):
        return value
    text = _SPECIAL.sub(r"\\\g<0>", " ".join(str(value).split()))
    return _BLOCK_START.sub(r"\1\3\\\2\4", text)


def code(text: str) -> Markdown:
    """A text on one line as code; back-ticks in it become apostrophes."""
    return Markdown(f"`{' '.join(text.split()).replace('`', chr(39)) or ' '}`")


def block(text: str, language: str = "") -> Markdown:
    """A text as a block of code, fenced by more back-ticks than it has in a row."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return Markdown("\n".join([f"{fence}{language}", *lines(text.rstrip()), fence]))


def table(rows: Sequence[Sequence[str]], numbers: bool = False) -> Markdown:
    """A table whose first row is the heading; with ``numbers``, all columns but the first are aligned to the right."""
    heading, *others = [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    rule = f"| {' | '.join(['---', *('---:' if numbers else '---' for _ in rows[0][1:])])} |"
    return Markdown("\n".join([heading, rule, *others]))


def _cell(text: str) -> str:
    """A cell ends at a bar, in code as well."""
    return re.sub(r"(?<!\\)\|", r"\\|", text) if isinstance(text, Markdown) else plain(text)
