"""Is the model that the default command chooses ever worse than another that it made? Over data sets and seeds.

    python benchmarks/default_command.py --out FOLDER [--model NAME] [--seeds 5] [--data NAME=PATH ...] [KEY=VALUE ...]

Runs ``spintune spin --model M --data FILE seed=S`` on two data sets that are made here and on every file given, for
each seed, and reads what the run reports on the held-out examples that chose nothing: the chosen model minus base,
SFT and further SFT, by the run's own metric. A difference is the mean over seeds with its 95 % t-interval. Overrides
after the flags hold for all runs. The same command goes on where it was stopped, since finished runs are not repeated.

    conversions   "How many grams are 3.5 kilograms?" -> "3500 grams"
    support       a customer's message -> a reply in the manner of one house
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from seeds import Interval

from spintune.evaluation.metric_choice import better_of, measure_of
from spintune.metrics import NLL
from spintune.results import RunResults
from spintune.typed_json import from_json

ROWS = 200
RIVALS = ("base", "sft", "sft-more")
UNITS = {
    ("kilograms", "grams"): 1000,
    ("kilometers", "meters"): 1000,
    ("meters", "centimeters"): 100,
    ("hours", "minutes"): 60,
    ("minutes", "seconds"): 60,
    ("days", "hours"): 24,
    ("weeks", "days"): 7,
    ("liters", "milliliters"): 1000,
    ("dozens", "pieces"): 12,
    ("feet", "inches"): 12,
}
ITEMS = (
    *("lamp", "backpack", "kettle", "umbrella", "keyboard", "tent", "jacket", "bicycle", "speaker", "blender"),
    *("camera", "desk", "mirror", "rug", "scooter", "stove", "toaster", "vase", "watch", "wallet"),
)
PROBLEMS = {
    "arrived with a crack": "A new one leaves our house tomorrow, and you may keep the old one.",
    "never arrived": "I have asked the carrier to look for it, and you will hear from me within two days.",
    "is the wrong color": "Please send it back with the label I attach, and the right one is on its way.",
    "stopped working after a week": "Our workshop repairs it free of charge; the label for the parcel is attached.",
    "is too small": "You can exchange it for a larger one within thirty days, at our cost.",
    "came without its manual": "The manual is attached, and I am glad to answer any question about it.",
}
GREETINGS = ("Hello,", "Hi,", "Good morning,", "Dear team,", "Hey there,")


def conversions(rng: random.Random) -> Iterator[dict[str, str]]:
    """Questions whose answers can be computed."""
    while True:
        (big, small), factor = rng.choice(sorted(UNITS.items()))
        amount = rng.randint(2, 60) / rng.choice((1, 1, 2))
        yield {"prompt": f"How many {small} are {amount:g} {big}?", "response": f"{amount * factor:g} {small}"}


def support(rng: random.Random) -> Iterator[dict[str, str]]:
    """Messages of customers, and replies that always have the same build."""
    while True:
        item, problem, number = rng.choice(ITEMS), rng.choice(sorted(PROBLEMS)), rng.randint(1000, 9999)
        message = f"{rng.choice(GREETINGS)} the {item} from order {number} {problem}. What can I do?"
        reply = (
            f"Thank you for writing to Northlight. I am sorry that your {item} {problem}. {PROBLEMS[problem]} "
            f"Your case is N-{number}. Ines, Northlight"
        )
        yield {"prompt": message, "response": reply}


def made_data(folder: Path) -> dict[str, Path]:
    """Writes the two data sets that are made here."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {}
    for name, rows in (("conversions", conversions), ("support", support)):
        distinct: dict[str, dict[str, str]] = {}
        for row in rows(random.Random(name)):
            distinct.setdefault(row["prompt"], row)
            if len(distinct) == ROWS:
                break
        files[name] = folder / f"{name}.jsonl"
        files[name].write_text("".join(json.dumps(row) + "\n" for row in distinct.values()))
    return files


def run(model: str, data: Path, out: Path, seed: int, overrides: Sequence[str]) -> RunResults:
    """The default command, in a process of its own; what its results.json says. No weights stay: 1 GB a run.

    Raises SystemExit for a folder that holds another command's run.
    """
    path, known = out / "results.json", out.parent / f"{out.name}.command.json"
    words = ["spin", "--model", model, "--data", str(data), "--out", str(out), f"seed={seed}", *overrides]
    command = json.dumps([*words, hashlib.sha256(data.read_bytes()).hexdigest()])
    if known.is_file() and known.read_text() != command:
        raise SystemExit(f"{out} holds the run of another command ({known}); take another --out")
    known.write_text(command)
    if not path.is_file():
        subprocess.run([sys.executable, "-m", "spintune", *words], check=True, stdout=subprocess.DEVNULL)
    for weights in out.rglob("*.safetensors"):
        weights.unlink()
    return from_json(RunResults, json.loads(path.read_text()), path)


def gains(results: RunResults, rivals: Sequence[str]) -> dict[str, float]:
    """By how much the chosen model is better than each rival on the examples that report, by the run's metric."""
    best = results.best
    assert best is not None
    metric = best.metric or NLL.name
    measure = "nll_per_token" if metric == NLL.name else measure_of(metric)
    sign = 1.0 if better_of(metric) == "higher" else -1.0
    means = {name: intervals[measure].mean for name, intervals in results.heldout.items()}
    return {rival: sign * (means[best.name] - means[rival]) for rival in rivals if rival in means}


def verdict(interval: Interval) -> str:
    """What an interval of gains says."""
    if interval.high < 0:
        return "WORSE"
    return "better" if interval.low > 0 else "same"


def table(found: Mapping[str, Sequence[RunResults]]) -> bool:
    """Prints a row for each data set and rival; whether no chosen model is significantly worse."""
    print("| data | metric | chosen, by seed | rival | chosen minus rival | verdict |")
    print("|---|---|---|---|---|---|")
    fine = True
    for name, runs in found.items():
        chosen = ", ".join(one.best.name for one in runs if one.best)
        metrics = " or ".join(sorted({one.best.metric or "none" for one in runs if one.best}))
        by_run = [gains(one, RIVALS) for one in runs]
        for rival in RIVALS:
            values = [one[rival] for one in by_run if rival in one]
            if values:
                interval = Interval.of(values)
                fine = fine and interval.high >= 0
                print(f"| {name} | {metrics} | {chosen} | {rival} | {interval} | {verdict(interval)} |")
    return fine


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="so that two commands can share the seeds")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    files = made_data(arguments.out / "data") | {
        name: Path(path) for name, _, path in (one.partition("=") for one in arguments.data)
    }
    total, done, began = len(files) * arguments.seeds, 0, time.monotonic()
    found: dict[str, list[RunResults]] = {name: [] for name in files}
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, data in files.items():
            out = arguments.out / f"{name}-{seed}"
            found[name].append(run(arguments.model, data, out, seed, arguments.overrides))
            done += 1
            minutes = (time.monotonic() - began) / 60
            print(
                f"{done} of {total}: {out.name}, {minutes:.0f} min, {minutes / done * (total - done):.0f} left",
                file=sys.stderr,
            )
    return 0 if table(found) else 1


if __name__ == "__main__":
    sys.exit(main())
