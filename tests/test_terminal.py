"""Texts of data, models and servers give a terminal no commands."""

from __future__ import annotations

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.progress import Progress
from rich.table import Table
from rich.text import Text

from spintune.terminal import SafeConsole, SafeFormatter, print_lines, visible

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


def test_a_name_between_colons_is_no_picture() -> None:
    output = io.StringIO()
    SafeConsole(file=output).print("runs/a:b: held out, :smile:")
    assert output.getvalue() == "runs/a:b: held out, :smile:\n"


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


def on_a_terminal(command: list[str], folder: Path, columns: int = 80) -> tuple[int, bytes]:
    """The exit code of a command on a pseudo-terminal, and all that it sent there."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    settings = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    done = subprocess.Popen(
        command, cwd=folder, stdin=follower, stdout=follower, stderr=follower, env={**settings, "TERM": "xterm"}
    )
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
    return done.wait(), seen


def screens(sent: str) -> Iterator[list[str]]:
    """The lines of a terminal after each movement upwards and at the end, as far as rich's live display needs it."""
    lines, row, column = [""], 0, 0
    for piece in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", sent):
        if piece.startswith("\x1b"):
            if piece.endswith("A"):
                yield lines[:]
                row -= int(piece[2:-1] or 1)
            elif piece.endswith("K"):
                lines[row] = ""
        elif piece == "\r":
            column = 0
        elif piece == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        else:
            lines[row] = (lines[row].ljust(column) + piece)[: column + len(piece)]
            column += len(piece)
    yield lines


_RUN = """
import time
from spintune.progress import ExpectedStage, ExpectedTask
from spintune.progress_display import open_progress

with open_progress(False) as progress:
    progress.expect([ExpectedStage("SFT", (ExpectedTask("steps", 20, 100),)), ExpectedStage("evaluation", None)])
    with progress.stage("SFT"), progress.task("SFT", 20, "steps") as task:
        for step in range(20):
            time.sleep(0.05)
            task.advance(1, loss=2.5, tokens_per_s=1234.0)
    progress.note("a note")
"""


@pytest.mark.parametrize("columns", [60, 120])
def test_a_run_is_two_lines_that_are_drawn_again(tmp_path: Path, columns: int) -> None:
    code, sent = on_a_terminal([sys.executable, "-c", _RUN], tmp_path, columns)
    assert code == 0, sent
    *seen, last = screens(sent.decode())
    assert max(len(line) for lines in seen for line in lines) <= columns
    assert max(len([line for line in lines if line]) for lines in seen) <= 4  # two live ones, and what stays
    assert any("loss 2.5" in line and "steps" in line for lines in seen for line in lines)
    assert re.fullmatch(r"stage 1 of 2, SFT: 20 steps in \d+ s, loss 2.5", last[0])
    assert [line for line in last if line][1:] == ["a note"]


def test_an_error_about_a_hostile_file_gives_a_terminal_no_commands(tmp_path: Path) -> None:
    """A key with a sequence that clears the screen, seen from a real pseudo-terminal."""
    (tmp_path / "r.yaml").write_text('"\\e[2J\\e]0;owned\\a": 1\n')
    code, seen = on_a_terminal([sys.executable, "-m", "spintune", "run", "r.yaml"], tmp_path)
    assert code != 0
    assert b"owned" in seen
    assert b"\x1b[2J" not in seen
    assert b"\x1b]0;owned" not in seen


def test_long_lines_go_on_below_their_text_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [
        "",
        "  tokens     prompts 35, answers 6, all fit max_length 64",
        "    one device  2.66 GB: weights 1 GB",
        "WRONG g++: not on the PATH; install it",
        "a\x07b",
    ]
    print_lines(lines)
    assert capsys.readouterr().out == "".join(f"{visible(line)}\n" for line in lines)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "32")
    print_lines(lines)
    assert capsys.readouterr().out.splitlines() == [
        "",
        "  tokens     prompts 35, answers",
        "             6, all fit",
        "             max_length 64",
        "    one device  2.66 GB: weights",
        "    1 GB",
        "WRONG g++: not on the PATH;",
        "      install it",
        "a\\x07b",
    ]
