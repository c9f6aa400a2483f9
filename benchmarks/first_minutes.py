"""The first minutes of a new user: from ``spintune init`` to the first training step, and what a run says it will take.

python benchmarks/first_minutes.py [--data builtin:tickets] [--recipe recipes/quickstart.yaml] [--out FOLDER]

The first part runs init on data and then its recipe until the first step of SFT is done. The second, with --recipe,
runs a recipe to its end and holds the time that it said after its first seconds against the time that it took. Seconds
of the processor are those of the command; on a busy machine they say more than the clock.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import describe

SPINTUNE = [sys.executable, "-m", "spintune"]
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "days": 86400.0}


@dataclass(frozen=True)
class Took:
    """Seconds by the clock, and of the processor."""

    clock: float
    processor: float

    def __str__(self) -> str:
        return f"{self.clock:.0f} s, {self.processor:.0f} s of the processor"


def ended(process: subprocess.Popen[str], began: float) -> Took:
    """Waits for a command, which may have been asked to stop."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return Took(time.monotonic() - began, usage.ru_utime + usage.ru_stime)


def write_recipe(data: str, folder: Path) -> Took:
    """``spintune init`` with all defaults."""
    began = time.monotonic()
    process = subprocess.Popen([*SPINTUNE, "init", data, "--out", str(folder / "r.yaml"), "--yes"], text=True)
    took = ended(process, began)
    if process.returncode:
        sys.exit(process.returncode)
    return took


def first_step(folder: Path) -> tuple[float, Took]:
    """Seconds until the first step of SFT is done, and the whole command, which is stopped then."""
    began, first = time.monotonic(), 0.0
    command = [*SPINTUNE, "run", str(folder / "r.yaml"), f"out={folder / 'run'}", "--json"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    for line in process.stderr or ():
        event = json.loads(line) if line.startswith("{") else {}
        if event.get("task") == "SFT" and event.get("done", 0) >= 1 and not first:
            first = time.monotonic() - began
            process.send_signal(signal.SIGTERM)  # Ctrl-C is ignored behind a shell that put this away
    return first, ended(process, began)


def whole_run(recipe: Path, folder: Path) -> tuple[float, float, Took]:
    """Seconds that a run said after its first ones, those that it took from there, and the whole command."""
    began, said, at = time.monotonic(), 0.0, 0.0
    command = [*SPINTUNE, "run", str(recipe), f"out={folder / 'whole'}"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr or ():
        sys.stderr.write(line)
        if found := re.match(r"(?:about|at least) ([\d.]+) (s|min|h|days) to the end", line):
            said, at = float(found[1]) * UNITS[found[2]], time.monotonic()
    took = ended(process, began)
    return said, began + took.clock - at, took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default="builtin:tickets")
    parser.add_argument("--recipe", type=Path)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        print(describe())
        print(f"init, recipe written: {write_recipe(arguments.data, folder)}", flush=True)
        first, took = first_step(folder)
        print(f"run, first step of SFT: {first:.0f} s; stopped after {took}", flush=True)
        if arguments.recipe:
            said, real, whole = whole_run(arguments.recipe, folder)
            print(f"{arguments.recipe}: said {said:.0f} s, took {real:.0f} s from there; in all {whole}")


if __name__ == "__main__":
    main()
