"""All speed benchmarks with one command, and at the end what came out beside what was aimed at.

    python benchmarks/everything.py --out FOLDER [--quick] [--only NAME,NAME] [--choices FILE]

Writes FOLDER/NAME.txt (what the benchmark printed) and FOLDER/NAME.json (everything it measured) for each benchmark,
and FOLDER/summary.md and summary.json. About two hours on two cores; ``--quick`` takes smaller sizes and one run of
each, about half an hour. ``--choices`` is a .tsv file of FLAN's chain-of-thought data, which likelihood.py needs.
Benchmarks that fail, or whose contestants computed different things, are named, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Script:
    """A benchmark, with its arguments when it is quick and the name of its option for a file of results."""

    quick: tuple[str, ...] = ()
    option: str = "--report"
    full: tuple[str, ...] = ()


SCRIPTS = {
    "training": Script(("--rows", "16", "--pairs", "8", "--repeats", "1", "--bfloat16", "no"), "--json"),
    "generation": Script(("--quick", "--without", "generate_batch")),
    "pipeline": Script(("--prompts", "8", "--new-tokens", "32", "--repeats", "1")),
    "likelihood": Script(("--questions", "24", "--repeats", "1"), "--json"),
    "t5_training": Script(("--repeats", "1")),
    "scaling": Script(("--repeats", "1")),
    "products": Script(("--repeats", "1"), ""),
    "data": Script(("--examples", "1000,10000,100000")),
    "startup": Script(("--repeats", "1"), full=("--repeats", "3")),
}


@dataclass(frozen=True)
class Goal:
    """A number of a benchmark's results that there is a goal for."""

    name: str
    script: str
    value: Callable[[Any], float]
    aim: str
    reached: Callable[[float], bool]
    unit: str = ""


def _training(task: str, ratio: bool) -> Callable[[Any], float]:
    def value(results: Any) -> float:
        contestants = {one["name"]: one for one in results["tasks"][task]["contestants"]}
        ours, theirs = contestants["spintune"], contestants["TRL tuned"]
        return theirs["together_seconds"] / ours["together_seconds"] if ratio else 100 * ours["share_of_peak"]

    return value


def _against(peer: str) -> Callable[[Any], float]:
    return lambda results: results["contestants"][peer]["seconds"] / results["contestants"]["spintune"]["seconds"]


def _whole(peer: str) -> Callable[[Any], float]:
    return lambda results: results["contestants"][peer]["whole"] / results["contestants"]["spintune"]["whole"]


def _first_step(time_of: str) -> Callable[[Any], float]:
    return lambda results: median(run["SFT"] for run in results[time_of])


def _memory(memory: Any) -> float:
    largest = max(memory["sizes"], key=int)
    return memory["sizes"][largest]["megabytes"]


def _at_least(aim: float) -> Callable[[float], bool]:
    return lambda value: value >= aim


def _below(aim: float) -> Callable[[float], bool]:
    return lambda value: value < aim


GOALS = (
    Goal("SFT beside TRL tuned, float32", "training", _training("sft", True), "2.5", _at_least(2.5), " x as fast"),
    Goal("SFT's share of the best product", "training", _training("sft", False), "75", _at_least(75), " %"),
    Goal("SPIN beside TRL tuned, float32", "training", _training("spin", True), "5", _at_least(5), " x as fast"),
    Goal("generation beside transformers", "generation", _against("generate"), "3", _at_least(3), " x as fast"),
    Goal("generation beside CTranslate2", "generation", _against("ctranslate2"), "1.5", _at_least(1.5), " x as fast"),
    Goal("an iteration beside TRL and generate", "pipeline", _whole("trl"), "", _at_least(1), " x as fast"),
    Goal("an iteration beside the authors' algorithm", "pipeline", _whole("authors"), "", _at_least(1), " x as fast"),
    Goal("first step, 50,000 new examples", "startup", _first_step("first"), "below 15", _below(15), " s"),
    Goal("first step, examples seen before", "startup", _first_step("again"), "below 15", _below(15), " s"),
    Goal("spintune --help", "startup", lambda found: median(found["help_seconds"]), "below 0.3", _below(0.3), " s"),
    Goal("more memory for the most examples", "data", _memory, "", _below(1000), " MB"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(SCRIPTS), type=lambda text: text.split(","))
    parser.add_argument("--choices", type=Path, help="a .tsv file for likelihood.py, which is left out without it")
    options = parser.parse_args()
    if unknown := set(options.only) - SCRIPTS.keys():
        parser.error(f"--only takes {', '.join(SCRIPTS)}, not {', '.join(sorted(unknown))}")
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    failed = []
    for name in options.only:
        if name == "likelihood" and not options.choices:
            print("likelihood: left out, it needs --choices FILE", flush=True)
            continue
        began = time.monotonic()
        code = _run(name, options)
        minutes = (time.monotonic() - began) / 60
        print(f"{name}: {minutes:.1f} minutes{f', exit code {code}' if code else ''}", flush=True)
        if code:
            failed.append(name)
        if (file := options.out / f"{name}.json").is_file():
            results[name] = json.loads(file.read_text())
    lines = ["| what | measured | aim | |", "| --- | --- | --- | --- |"]
    summary = []
    for goal in GOALS:
        try:
            value = goal.value(results[goal.script])
        except KeyError:  # not run, or a peer that is not installed
            continue
        reached = goal.reached(value)
        summary.append({"what": goal.name, "value": value, "aim": goal.aim, "reached": reached})
        verdict = ("reached" if reached else "not reached") if goal.aim else ""
        lines.append(f"| {goal.name} | {value:.3g}{goal.unit} | {goal.aim} | {verdict} |")
    text = "\n".join(lines)
    (options.out / "summary.md").write_text(text + "\n")
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"\n{text}")
    if failed:
        print(f"\nfailed, or computed different things: {', '.join(failed)}; see their .txt files in {options.out}")
    return 1 if failed else 0


def _run(name: str, options: argparse.Namespace) -> int:
    script = SCRIPTS[name]
    command = [sys.executable, str(HERE / f"{name}.py"), *(script.quick if options.quick else script.full)]
    if script.option:
        command += [script.option, str((options.out / f"{name}.json").resolve())]
    if name == "likelihood":
        command += ["--data", str(options.choices.resolve())]
    with (options.out / f"{name}.txt").open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
