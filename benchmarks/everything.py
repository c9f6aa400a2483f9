"""All speed benchmarks with one command, and at the end what came out beside what was aimed at.

    python benchmarks/everything.py --out FOLDER [--quick [--accept]] [--only NAME,NAME] [--choices FILE]

Writes FOLDER/NAME.txt (what the benchmark printed) and FOLDER/NAME.json (everything it measured) for each benchmark,
and FOLDER/summary.md and summary.json. About two hours on two cores. ``--choices`` is a .tsv file of FLAN's
chain-of-thought data for likelihood.py, which makes up questions without it. Benchmarks that fail, or whose contestants
computed different things, are named, and the exit code is 1.

``--quick`` asks whether anything has become slower: small sizes, two or three runs of each, every ratio to a peer
beside the one that was last accepted on such a machine (accepted.json; verdicts.py has the rule), and exit code 1 if
one is lower by more than its noise. ``--accept`` writes the ratios into that file, unless other work disturbed them.
A peer that is not installed is left out.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from machine import kind
from report import DISTURBED
from verdicts import measured, read_accepted, table, verdict, write_accepted

HERE = Path(__file__).resolve().parent
ACCEPTED = HERE / "accepted.json"


@dataclass(frozen=True)
class Script:
    """A benchmark, the name of its option for a file of results, its arguments, and the package of its peer."""

    quick: tuple[str, ...] | None = None
    """None: it compares spintune with nothing."""
    option: str = "--report"
    full: tuple[str, ...] = ()
    needs: str = ""


SCRIPTS = {
    "training": Script(
        ("--rows", "8", "--pairs", "4", "--repeats", "2", "--bfloat16", "no", "--batch", "2"), "--json", needs="trl"
    ),
    "generation": Script(
        ("--prompts", "32", "--new-tokens", "32", "--repeats", "2", "--without", "generate_batch"),
    ),
    "pipeline": Script(("--prompts", "4", "--new-tokens", "32", "--repeats", "2")),
    "likelihood": Script(
        ("--questions", "8", "--cases", "shots", "--batches", "8", "--repeats", "2"), "--json", needs="lm_eval"
    ),
    "t5_training": Script(),
    "scaling": Script(),
    "products": Script(option=""),
    "data": Script(),
    "startup": Script(("--examples", "5000", "--repeats", "3"), full=("--repeats", "3")),
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
    Goal("SFT beside TRL tuned, float32", "training", _training("sft", True), "4", _at_least(4), " x as fast"),
    Goal("SFT's share of the best product", "training", _training("sft", False), "75", _at_least(75), " %"),
    Goal("SPIN beside TRL tuned, float32", "training", _training("spin", True), "5", _at_least(5), " x as fast"),
    Goal("generation beside transformers", "generation", _against("generate"), "4.5", _at_least(4.5), " x as fast"),
    Goal("generation beside CTranslate2", "generation", _against("ctranslate2"), "2.2", _at_least(2.2), " x as fast"),
    Goal("an iteration beside TRL and generate", "pipeline", _whole("trl"), "6", _at_least(6), " x as fast"),
    Goal("an iteration beside the authors' algorithm", "pipeline", _whole("authors"), "", _at_least(1), " x as fast"),
    Goal("first step, 50,000 new examples", "startup", _first_step("first"), "below 5", _below(5), " s"),
    Goal("first step, examples seen before", "startup", _first_step("again"), "below 3", _below(3), " s"),
    Goal("spintune --help", "startup", lambda found: median(found["help_seconds"]), "below 0.1", _below(0.1), " s"),
    Goal("more memory for the most examples", "data", _memory, "", _below(1000), " MB"),
)


def main() -> int:
    options = parse()
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, Any] = {}
    failed = []
    for name in options.only:
        if (needs := SCRIPTS[name].needs) and importlib.util.find_spec(needs) is None:
            print(f"{name}: left out, {needs} is not installed", flush=True)
            continue
        file = options.out / f"{name}.json"
        file.unlink(missing_ok=True)  # of an earlier time
        began = time.monotonic()
        code = _run(name, options)
        minutes = (time.monotonic() - began) / 60
        print(f"{name}: {minutes:.1f} minutes{f', exit code {code}' if code else ''}", flush=True)
        if code:
            failed.append(name)
        if file.is_file():
            results[name] = json.loads(file.read_text())
    if peers := results.get("generation", {}).get("left_out"):
        print(f"generation: without {', '.join(peers)}")
    if failed:
        print(f"failed, or computed different things: {', '.join(failed)}; see their .txt files in {options.out}")
    lines, summary = (_ratios if options.quick else _goals)(results)
    text = "\n".join(lines)
    (options.out / "summary.md").write_text(text + "\n")
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    print(f"\n{text}")
    slower = any(one.get("verdict") == "SLOWER" for one in summary)
    if options.accept:
        return _accept(results, failed)
    return 1 if failed or slower else 0


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="has a ratio fallen?")
    parser.add_argument("--accept", action="store_true", help="writes the ratios of --quick into accepted.json")
    parser.add_argument("--only", type=lambda text: text.split(","))
    parser.add_argument("--choices", type=Path, help="a .tsv file for likelihood.py")
    options = parser.parse_args()
    known = [name for name, script in SCRIPTS.items() if script.quick or not options.quick]
    options.only = options.only or known
    if unknown := set(options.only) - set(known):
        parser.error(f"--only takes {', '.join(known)}, not {', '.join(sorted(unknown))}")
    if options.accept and not options.quick:
        parser.error("--accept goes with --quick")
    return options


def _goals(results: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The table of what was aimed at, and the same as facts."""
    lines = ["| what | measured | aim | |", "| --- | --- | --- | --- |"]
    summary = []
    for goal in GOALS:
        try:
            value = goal.value(results[goal.script])
        except KeyError:  # not run, or a peer that is not installed
            continue
        reached = goal.reached(value)
        summary.append({"what": goal.name, "value": value, "aim": goal.aim, "reached": reached})
        said = ("reached" if reached else "not reached") if goal.aim else ""
        lines.append(f"| {goal.name} | {value:.3g}{goal.unit} | {goal.aim} | {said} |")
    return lines, summary


def _ratios(results: dict[str, Any]) -> tuple[list[str], list[dict[str, Any]]]:
    """The table of ratios beside the accepted ones, and the same as facts."""
    now, accepted = measured(results), read_accepted(ACCEPTED, kind())
    lines = [f"{kind()}, {_foreign(results):.2f} cores busy with other work at most", "", *table(now, accepted)]
    if _foreign(results) > DISTURBED:
        lines += ["", "these times are DISTURBED by other work; measure again on a quiet machine"]
    return lines, [{"what": x, **asdict(one), "verdict": verdict(one, accepted.get(x))} for x, one in now.items()]


def _accept(results: dict[str, Any], failed: list[str]) -> int:
    if failed or _foreign(results) > DISTURBED:
        print("not accepted: a benchmark failed, or other work disturbed the times")
        return 1
    write_accepted(ACCEPTED, kind(), measured(results))
    print(f"accepted for {kind()} in {ACCEPTED}")
    return 0


def _foreign(results: dict[str, Any]) -> float:
    """Most cores that other work kept busy during a run."""
    return max((cores for found in results.values() for cores in found.get("foreign_cores", ())), default=0.0)


def _run(name: str, options: argparse.Namespace) -> int:
    script = SCRIPTS[name]
    command = [sys.executable, str(HERE / f"{name}.py"), *((options.quick and script.quick) or script.full)]
    if script.option:
        command += [script.option, str((options.out / f"{name}.json").resolve())]
    if name == "likelihood" and options.choices:
        command += ["--data", str(options.choices.resolve())]
    with (options.out / f"{name}.txt").open("w") as file:
        return subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
