"""What a training step loses beside other work, and under a quota of processor time: spintune's, and TRL's beside it.

    python benchmarks/busy_trl.py [--busy 1,2] [--quota 1.0] [--repeats 2]      twelve minutes on 2 cores

Runs training.py (SFT, 8 rows, float32, TRL at batch size 2) alone, beside busy processes, and in a control group with a
quota where one can be made. Beside each time is what it is of the fair one: over the time alone, times the share of the
cores that is left, as in busy.py. 1.00 is a slowdown in proportion. ``busy.py`` has smaller pieces of work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from busy import busy, quota
from machine import processor, threads

WORKLOAD = ["--only", "sft", "--rows", "8", "--batch", "2", "--bfloat16", "no"]
CONTESTANTS = ("spintune", "TRL tuned")


def steps(repeats: int, cgroup: str = "") -> dict[str, float]:
    """Median seconds of each contestant's step."""
    here = Path(__file__).resolve().parent
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "found.json"
        options = [*WORKLOAD, "--repeats", str(repeats), "--json", str(found)]
        command = [sys.executable, str(here / "training.py"), *options]

        def join() -> None:
            if cgroup:
                (Path(cgroup) / "cgroup.procs").write_text(str(os.getpid()))

        done = subprocess.run(command, preexec_fn=join, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"training.py failed; its last words:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        tasks = json.loads(found.read_text())["tasks"]
    runs = {one["name"]: one["runs"] for one in tasks["sft"]["contestants"]}
    return {name: statistics.median(second for run in runs[name] for second in run["seconds"]) for name in CONTESTANTS}


def numbers(kind: type) -> Callable[[str], list[float]]:
    """Reads numbers above 0 between commas; of nothing, none."""

    def read(text: str) -> list[float]:
        found = [kind(part) for part in text.split(",") if part]
        if min(found, default=1) <= 0:
            raise ValueError
        return found

    read.__name__ = "numbers above 0"
    return read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--busy", type=numbers(int), default=[1, 2], help="busy processes, such as 1,2; alone comes first"
    )
    parser.add_argument("--quota", type=numbers(float), default=[1.0], help="cores, such as 1.0,1.5")
    parser.add_argument("--repeats", type=int, default=2)
    options = parser.parse_args()
    cores = threads()
    print(f"{processor()['name']}, {cores} cores, load before {os.getloadavg()[0]:.1f}\n")
    print("| | spintune, s | of the fair time | TRL, s | of the fair time | spintune is |\n|---|---|---|---|---|---|")
    alone = steps(options.repeats)

    def row(situation: str, found: dict[str, float], share: float) -> None:
        cells = [f"{found[name]:.2f} | {found[name] / alone[name] * share:.2f}" for name in CONTESTANTS]
        ratio = found["TRL tuned"] / found["spintune"]
        print(f"| {situation} | {' | '.join(cells)} | {ratio:.2f} x as fast |", flush=True)

    row("alone", alone, 1.0)
    for count in options.busy:
        with busy(count):
            row(f"beside {count}", steps(options.repeats), min(1.0, cores / (cores + count)))
    for limit in options.quota:
        with quota(limit) as group:
            if group is None:
                print("\nno quota was measured: control groups cannot be made here")
                return
            row(f"a quota of {limit}", steps(options.repeats, group), min(1.0, limit / cores))


if __name__ == "__main__":
    main()
