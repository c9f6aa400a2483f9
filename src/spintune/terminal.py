"""What leaves for a terminal: no text of data, models or servers can give it commands.

A terminal obeys escape sequences wherever they come from: they move the cursor, hide text, change the title, and with
some terminals more. A bidirectional override shows a line in another order than it has.
"""

from __future__ import annotations

import logging
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

_CONTROLS = {*range(0x20), *range(0x7F, 0xA0)} - {ord("\n"), ord("\t")}
_DIRECTIONS = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_VISIBLE = {code: f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" for code in _CONTROLS | _DIRECTIONS}


def visible(text: str) -> str:
    r"""The text with its control characters written out, as Python writes them.

    >>> visible("a\x1b[31mb\tc\n")
    'a\\x1b[31mb\tc\n'
    """
    return text.translate(_VISIBLE)


def print_lines(lines: Iterable[str]) -> None:
    """Prints lines; on a terminal those that are wider go on below what follows their first word, broken at spaces."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    for line in map(visible, lines):
        sys.stdout.write(("\n".join(_folded(line, width)) if width else line) + "\n")


def _folded(line: str, width: int) -> list[str]:
    """A line as lines of at most ``width`` characters. A word that is longer stays whole."""
    label = re.match(r" *(?:\S+ {2,}|[A-Z]{2,} )(?=\S)| *", line)
    indent = " " * min(len(label[0]) if label else 0, width // 2)
    return textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, drop_whitespace=True
    ) or [""]


class SafeConsole(Console):
    """rich's console, with control characters in texts written out, and ``:b:`` as it is. Its own colors and movements
    stay.
    """

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings, emoji=False)  # type: ignore[arg-type]

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """The segments of a renderable, as rich's console gives them."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


class SafeFormatter(logging.Formatter):
    """Log lines with control characters written out."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return visible(super().format(record))
