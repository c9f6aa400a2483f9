"""Texts of data, models and servers give a terminal no commands."""

from __future__ import annotations

import io
import logging
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from spintune.terminal import SafeConsole, SafeFormatter, visible

ATTACKS = {
    "\x1b]0;title\x07": r"\x1b]0;title\x07",
    "\x1b[2J": r"\x1b[2J",
    "\x9b2J": r"\x9b2J",
    "a\rb": r"a\x0db",
    "\u202egnp": r"\u202egnp",
    "\x7f\x08": r"\x7f\x08",
}


@pytest.mark.parametrize(("attack", "shown"), ATTACKS.items())
def test_control_characters_are_written_out_wherever_text_is_shown(attack: str, shown: str) -> None:
    assert visible(attack) == shown
    record = logging.LogRecord("n", logging.WARNING, "", 0, "%s", (attack,), None)
    assert SafeFormatter("%(message)s").format(record) == shown
    table = Table(title=attack)
    table.add_column(attack)
    table.add_row(attack)
    for renderable in (attack, Text(attack, style="green"), table):
        file = io.StringIO()
        SafeConsole(file=file, force_terminal=True, width=90, markup=False, color_system="truecolor").print(renderable)
        assert attack not in file.getvalue()
        assert "\x1b[2J" not in file.getvalue()


def test_ordinary_text_and_the_consoles_own_colors_stay() -> None:
    text = "tab\tline\nübung 漢字 👩\u200d🚀 العربية"
    assert visible(text) == text
    file = io.StringIO()
    console = SafeConsole(file=file, force_terminal=True, width=90, color_system="truecolor")
    console.print(Text("green", style="green"))
    with Progress(console=console) as bars:
        bars.add_task("moving", total=2)
    assert "\x1b[32mgreen\x1b[0m" in file.getvalue()
    assert "\x1b[2K" in file.getvalue()  # the bar is drawn again in its place


def test_an_error_about_a_hostile_file_gives_a_terminal_no_commands(tmp_path: Path) -> None:
    """A key with a sequence that clears the screen, seen from a real pseudo-terminal."""
    (tmp_path / "r.yaml").write_text('"\\e[2J\\e]0;owned\\a": 1\n')
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "spintune", "run", "r.yaml"]
    done = subprocess.Popen(command, cwd=tmp_path, stdin=follower, stdout=follower, stderr=follower)
    os.close(follower)
    seen = b""
    while True:
        try:
            piece = os.read(leader, 65536)
        except OSError:
            break
        if not piece:
            break
        seen += piece
    os.close(leader)
    assert done.wait() != 0
    assert b"owned" in seen
    assert b"\x1b[2J" not in seen
    assert b"\x1b]0;owned" not in seen
