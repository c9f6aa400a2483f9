"""Prints a few prompts with the answers before and after training, and what was gained."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spintune.terminal import visible
from spintune.text.words import one_line

if TYPE_CHECKING:
    from spintune.evaluation.gain import Gain

SIDE_BY_SIDE = 60
"""Columns from which on the answers stand side by side."""
EXCERPT = 140
"""Characters of a prompt or an answer that are shown."""


def print_gain(console: Console, gain: Gain) -> None:
    """Prints prompts, answers and the sentence; in a narrow window the answers stand below each other."""
    count = len(gain.shown)
    which = f"The first {count} held-out prompts" if count > 1 else "The first held-out prompt"
    console.print(f"\n{which}, answered before and after training:", soft_wrap=not console.is_terminal)
    if console.width < SIDE_BY_SIDE:
        for one in gain.shown:
            console.print(_prompt(one.prompt))
            console.print(Text(f"  {gain.before}: ").append_text(_answer(one.before, one.was_right)))
            console.print(Text(f"  {gain.after}: ").append_text(_answer(one.after, one.right)))
    else:
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, leading=1)
        for heading in ("prompt", f"before: {gain.before}", f"after: {gain.after}"):
            table.add_column(heading, ratio=1)
        for one in gain.shown:
            table.add_row(_prompt(one.prompt), _answer(one.before, one.was_right), _answer(one.after, one.right))
        console.print(table)
    console.print(gain.sentence, soft_wrap=not console.is_terminal)


def _prompt(text: str) -> Text:
    return Text(_excerpt(text), style="dim")


def _answer(text: str, right: bool | None) -> Text:
    found = Text(_excerpt(text) or "(nothing)")
    return found if right is None else Text("right: " if right else "wrong: ", style="bold").append_text(found)


def _excerpt(text: str) -> str:
    """The beginning of a text, on one line."""
    line = visible(one_line(text))
    return line if len(line) <= EXCERPT else line[: EXCERPT - 1].rstrip() + "…"
