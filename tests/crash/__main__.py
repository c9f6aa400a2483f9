"""The crash regime: ``PYTHONPATH=tests python -m crash``. See docs/lab/crashes.md.

Prints one line per fault with the command that repeats it, then the tables of docs/lab/crashes.md; the exit code is 1
when there was a fault. Counts go to stderr as they come. From files with those, ``--table FILE FILE`` prints the tables
again; what a later file counts takes the place of what an earlier one did.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from crash import shim
from crash.kinds import KINDS, Kind, Stage, Tried, numbers
from crash.machine import Machine
from crash.worlds import WORLDS

Counts = dict[str, Counter[str]]

COLUMNS = ("tried", "disturbances", "equal", "refused", "DIFFERENT")

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
    words.add_argument("--share", type=float, default=1.0, help="of the planned cases, at least one per run and kind")
    words.add_argument("--only", type=int, help="one case, by its number")
    words.add_argument("--keep", type=Path, help="with --only: a folder to copy the disk to at the end")
    words.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="print the tables of earlier counts")
    asked = words.parse_args()
    if asked.table:
        return print_tables(read_counts(asked.table))
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
    return print_tables(counts)


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
            count = max(1, round((count or kind.cases(stage)) * asked.share))
            for number in [asked.only] if asked.only is not None else numbers(kind, stage, count):
                tried = kind.try_one(stage, number)
                here.update({"tried": 1, "disturbances": tried.disturbances, tried.verdict.kind: 1})
                if tried.verdict.kind == "DIFFERENT" or asked.only is not None:
                    print(_told(stage, kind_name, number, tried), flush=True)
            here["computing"] = round(stage.computing)
            here["seconds"] = round(time.monotonic() - started)
            print(json.dumps({"counted": f"{name} {kind_name}", **here}), file=sys.stderr, flush=True)
    return counts


def _kinds(stage: Stage, names: list[str]) -> Iterator[tuple[str, Kind]]:
    for name in names:
        if name in stage.world.kinds if stage.world.kinds else stage.world.recipe or KINDS[name].without_recipe:
            yield name, KINDS[name]


def _told(stage: Stage, kind: str, number: int, tried: Tried) -> str:
    again = f"python -m crash --recipe {stage.name} --kind {kind} --seed {stage.seed} --only {number}"
    return f"{tried.verdict.kind}: {tried.what}: {tried.verdict.why}\n    {again}"


def read_counts(logs: Sequence[Path]) -> Counts:
    """The counts that earlier commands wrote to stderr; later ones of the same run and kind replace earlier ones."""
    lines = [line for log in logs for line in log.read_text().splitlines() if line.startswith('{"counted"')]
    found = [json.loads(line) for line in lines]
    return {one.pop("counted"): Counter(one) for one in found}


def print_tables(counts: Counts) -> int:
    """What was tried and what came of it, by kind and by run. Returns 1 where a case was different, else 0."""
    _print_table("kind", counts, lambda name: name.partition(" ")[2])
    print()
    total = _print_table("run", counts, lambda name: name.partition(" ")[0])
    print(f"\n{total['computing'] / 60:.0f} minutes of computing, {total['seconds'] / 60:.0f} by the clock")
    return 1 if total["DIFFERENT"] else 0


def _print_table(heading: str, counts: Counts, group_of: Callable[[str], str]) -> Counter[str]:
    groups: Counts = {}
    for name, one in counts.items():
        groups.setdefault(group_of(name), Counter()).update(one)
    total = sum(groups.values(), Counter[str]())
    print(f"| {heading} | {' | '.join(COLUMNS)} |\n|---|{'---:|' * len(COLUMNS)}")
    for name, one in {**{f"`{name}`": one for name, one in groups.items()}, "all": total}.items():
        print(f"| {name} | {' | '.join(f'{one[column]:,}' for column in COLUMNS)} |")
    return total


if __name__ == "__main__":
    sys.exit(main())
