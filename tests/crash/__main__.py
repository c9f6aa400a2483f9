"""The crash regime: ``PYTHONPATH=tests python -m crash``. See docs/lab/crashes.md.

Prints one line per fault with the command that repeats it, then a table; the exit code is 1 when there was one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from crash import shim
from crash.kinds import KINDS, Kind, Stage, Tried, numbers
from crash.machine import Machine
from crash.worlds import WORLDS

Counts = dict[str, Counter[str]]

COLUMNS = ("tried", "disturbances", "equal", "refused", "DIFFERENT", "computing", "seconds")
"""Of the table. Computing is processor time, seconds are by the clock; both without the undisturbed runs."""

PLAN: dict[str | tuple[str, str], int | None] = {
    "kill": 4,
    "nth": 8,
    "stop": 4,
    "fail": 8,
    "cut": 8,
    "finished": 12,
    "verify": 6,
    "half": 12,
    "cache": 3,
    ("small", "nth"): None,
    ("small", "finished"): 100,
    ("small", "verify"): None,
    ("small", "half"): 50,
}
"""Cases of a kind in a run, None for all of them: what one core does in forty minutes."""


def main() -> int:
    """Tries what the command line names; everything by default."""
    words = argparse.ArgumentParser(prog="python -m crash", description=__doc__)
    words.add_argument("--recipe", action="append", choices=WORLDS, help="which runs; all by default")
    words.add_argument("--kind", action="append", choices=KINDS, help="which disturbances; all by default")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--count", type=int, help="cases per run and kind; as planned by default, 0 for all")
    words.add_argument("--only", type=int, help="one case, by its number")
    words.add_argument("--keep", type=Path, help="with --only: a folder to copy the disk to at the end")
    asked = words.parse_args()
    if why := shim.missing():
        print(f"skipped: {why}")
        return 0
    os.nice(10)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the scratch folder goes
    with Machine() as machine:
        machine.start(["call:crash.inputs:build", str(machine.inputs)])
        counts = regime(machine, asked)
        if asked.keep:
            shutil.copytree(machine.disk, asked.keep, symlinks=True)
    print_table(counts)
    return 1 if any(one["DIFFERENT"] for one in counts.values()) else 0


def regime(machine: Machine, asked: argparse.Namespace) -> Counts:
    """Tries every case that was asked for; counts of verdicts by run and kind."""
    counts: Counts = {}
    for name in asked.recipe or WORLDS:
        world = WORLDS[name]
        if world.given:
            _ = Stage(machine, WORLDS[world.given], asked.seed).reference
        stage = Stage(machine, world, asked.seed)
        for kind_name, kind in _kinds(stage, asked.kind or list(KINDS)):
            here = counts[f"{name} {kind_name}"] = Counter()
            _ = stage.reference
            started, stage.computing = time.monotonic(), 0.0
            count = PLAN.get((name, kind_name), PLAN[kind_name]) if asked.count is None else asked.count
            for number in [asked.only] if asked.only is not None else numbers(kind, stage, count or None):
                tried = kind.try_one(stage, number)
                here.update({"tried": 1, "disturbances": tried.disturbances, tried.verdict.kind: 1})
                if tried.verdict.kind == "DIFFERENT" or asked.only is not None:
                    print(_told(stage, kind_name, number, tried), flush=True)
            here["computing"] = round(stage.computing)
            here["seconds"] = round(time.monotonic() - started)
            print(f"{name} {kind_name}: {dict(here)}", file=sys.stderr, flush=True)
    return counts


def _kinds(stage: Stage, names: list[str]) -> Iterator[tuple[str, Kind]]:
    for name in names:
        if name in stage.world.kinds if stage.world.kinds else stage.world.recipe or KINDS[name].without_recipe:
            yield name, KINDS[name]


def _told(stage: Stage, kind: str, number: int, tried: Tried) -> str:
    again = f"python -m crash --recipe {stage.name} --kind {kind} --seed {stage.seed} --only {number}"
    return f"{tried.verdict.kind}: {tried.what}: {tried.verdict.why}\n    {again}"


def print_table(counts: Counts) -> None:
    """What was tried and what came of it: by run and kind, then by kind."""
    kinds: Counts = {}
    for name, one in counts.items():
        kinds.setdefault(name.partition(" ")[2], Counter()).update(one)
    total = sum(kinds.values(), Counter[str]())
    for heading, rows in (("run and kind", counts), ("kind", {**kinds, "all": total})):
        print(f"| {heading} | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
        for name, one in rows.items():
            print(f"| {name} | {' | '.join(str(one[column]) for column in COLUMNS)} |")


if __name__ == "__main__":
    sys.exit(main())
