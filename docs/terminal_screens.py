"""Draws the screens of docs/reference/terminal.md: a real run of a tiny model, in tmux windows of three widths.

::

    python docs/terminal_screens.py            # all widths, some minutes
    python docs/terminal_screens.py 80         # one

It needs tmux. A screen is taken in the middle of SFT and at the end, with its colors, and written as SVG.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import DIMMED_MONOKAI
from rich.text import Text

DOCS = Path(__file__).resolve().parent
SECONDS = 900
THINGS = ("headphones", "charger", "lamp", "kettle", "router", "phone", "camera", "keyboard")


def write_recipe(folder: Path) -> Path:
    """A run of a model of two layers, which learns answers of one form within a minute."""
    sys.path.insert(0, str(DOCS.parent / "tests"))
    from tiny_folders import write_llama

    rows = []
    for number in range(140):
        thing, days = THINGS[number % 8], 2 + number // 8 % 8
        answer = f"Sorry about your {thing}. Hold its button for {days} seconds. - Fern"
        rows.append({"instruction": f"Order {number}: my {thing} broke after {days} days. What now?", "output": answer})
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = [text for row in rows[:80] for text in row.values()]
    model = write_llama(folder / "model", corpus=texts, vocabulary=700, hidden_size=128, intermediate_size=256)
    path = folder / "recipe.yaml"
    path.write_text(
        f"model: {model}\nout: runs/support\n"
        f"data: {{train: {{path: {folder / 'data.jsonl'}}}, eval_fraction: 0.5, max_length: 96}}\n"
        "sft: {epochs: 16, learning_rate: 3e-3, tokens_per_step: 512, keep: last}\n"
        "spin: {iterations: 1, pairs_per_step: 8, max_new_tokens: 32, learning_rate: 1e-4, baseline: none}\n"
    )
    return path


def tmux(*words: str) -> str:
    """The output of a tmux command on a server of its own."""
    return subprocess.run(["tmux", "-L", "spintune-screens", *words], capture_output=True, text=True, check=True).stdout


def wait_for(width: int, pattern: str) -> str:
    """The screen, with colors, once its text has a pattern."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        screen = tmux("capture-pane", "-p", "-e", "-S", "-60", "-t", f"w{width}")
        text = Text.from_ansi(screen).plain
        if re.search(pattern, text) and "stage " in text:  # not between two drawings
            return screen
        time.sleep(0.2)
    raise SystemExit(f"the screen of {width} columns never shows {pattern!r}")


def draw_svg(screen: str, width: int, path: Path) -> None:
    """Writes a screen as an SVG that loads nothing."""
    console = Console(record=True, width=width, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(screen.strip("\n")), soft_wrap=False)
    svg = console.export_svg(title=f"{width} columns", theme=DIMMED_MONOKAI, unique_id=path.stem)
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.S).replace("Fira Code, monospace", "monospace")
    path.write_text(re.sub(r"\n\s*\n", "\n", svg), encoding="utf-8")


def take(width: int, recipe: Path, folder: Path) -> None:
    """Both screens of one width."""
    place = folder / f"w{width}"
    place.mkdir()
    command = f"cd {shlex.quote(str(place))} && clear && {shlex.quote(sys.executable)} -m spintune run {recipe}"
    tmux("new-session", "-d", "-s", f"w{width}", "-x", str(width), "-y", "50", f"{command}; echo ended; sleep 1000")
    try:
        middle = wait_for(width, r"[4-8]\d %.*steps")
        draw_svg(middle[max(0, middle.rfind("loading torch")) :], width, DOCS / "images" / f"terminal-{width}.svg")
        end = wait_for(width, r"(?m)^ended$")
        last = end[end.rfind("stage ") :].partition("\n")[2].partition("\nended")[0]
        draw_svg(last, width, DOCS / "images" / f"terminal-{width}-end.svg")
    finally:
        tmux("kill-session", "-t", f"w{width}")


def main() -> None:
    """Draws the widths that are given, or all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = write_recipe(folder)
        for width in map(int, sys.argv[1:] or ("60", "80", "120")):
            take(width, recipe, folder)


if __name__ == "__main__":
    main()
