"""Is the model that the default command chooses ever worse than another that it made? Over data sets and seeds.

    python benchmarks/default_command.py --out FOLDER [--records FILE] [--model NAME] [--seeds 5]
        [--data NAME=PATH ...] [KEY=VALUE ...]

Runs ``spintune spin --model M --data FILE seed=S`` on two data sets that are made here and on every file given, for
each seed, and reads what the run reports on the held-out examples that chose nothing: the chosen model minus base,
SFT and further SFT, by the run's own metric. A difference is the mean over seeds with its 95 % t-interval. Overrides
after the flags hold for all runs. A finished run is a line of the records (FOLDER/records.jsonl) and is not repeated:
the same command goes on where it was stopped, and with ``--recorded`` it prints the tables of what is finished.

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
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from machine import processor
from seeds import Interval
from self_play.ledger import Facts, Ledger, Unit

from spintune.evaluation.heldout import HeldoutAnswer
from spintune.evaluation.metric_choice import better_of, choose_metric, measure_of
from spintune.metrics import NLL
from spintune.recipe.evaluation import AUTO
from spintune.records import read_records
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


@dataclass(frozen=True)
class Run:
    """The default command on one data set with one seed; its facts are what a record holds."""

    model: str
    data: Path
    out: Path
    seed: int
    overrides: Sequence[str]

    def __call__(self) -> Facts:
        words = ["spin", "--model", self.model, "--data", str(self.data), "--out", str(self.out), f"seed={self.seed}"]
        command = [sys.executable, "-m", "spintune", *words, *self.overrides]
        of = {"data": digest(self.data), "revision": revision(), "processor": processor()["name"]}
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        path = self.out / "results.json"
        facts = facts_of(from_json(RunResults, json.loads(path.read_text()), path), references(self.out))
        for weights in self.out.rglob("*.safetensors"):  # 1 GB a run
            weights.unlink()
        return {**of, **facts}


def revision() -> str:
    """The commit that the sources are at."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def digest(data: Path) -> str:
    """Names the rows of a file."""
    return hashlib.sha256(data.read_bytes()).hexdigest()[:16]


def references(run: Path) -> list[str]:
    """The answers that the run's held-out examples have."""
    return [one.reference for one in read_records(run / "eval/heldout/base/answers.jsonl", HeldoutAnswer)]


def facts_of(results: RunResults, expected: Sequence[str]) -> Facts:
    """Which model the run chose, and each model's mean on the examples that report.

    It is by the metric that chose; where too few examples are there to choose by, by the one that would have chosen.
    """
    best = results.best
    assert best is not None
    metric = best.metric or choose_metric(AUTO, None, expected).name
    measure = "nll_per_token" if metric == NLL.name else measure_of(metric)
    means = {name: intervals[measure].mean for name, intervals in results.heldout.items()}
    return {"chosen": best.name, "metric": metric, "means": means}


def gains(facts: Facts) -> dict[str, float]:
    """By how much the chosen model is better than each rival on the examples that report, by the run's metric."""
    sign = 1.0 if better_of(facts["metric"]) == "higher" else -1.0
    means = facts["means"]
    return {rival: sign * (means[facts["chosen"]] - means[rival]) for rival in RIVALS if rival in means}


def verdict(interval: Interval) -> str:
    """What an interval of gains says."""
    if interval.high < 0:
        return "WORSE"
    return "better" if interval.low > 0 else "same"


def tables(found: Mapping[str, Sequence[Facts]]) -> bool:
    """Prints what was found, data set by data set; whether no chosen model is significantly worse."""
    print("| data | metric | chosen, by seed | compared with | chosen minus that | verdict |")
    print("|---|---|---|---|---|---|")
    fine = True
    for name, runs in found.items():
        chosen = ", ".join(one["chosen"] for one in runs)
        for other in RIVALS:
            if values := [gain for one in runs if (gain := gains(one).get(other)) is not None]:
                interval = Interval.of(values)
                fine = fine and interval.high >= 0
                print(f"| {name} | {_metrics(runs)} | {chosen} | {other} | {interval} | {verdict(interval)} |")
    print("\n| data | metric | model | by seed | mean |")
    print("|---|---|---|---|---|")
    for name, runs in found.items():
        for model in dict.fromkeys(model for one in runs for model in one["means"]):
            values = [one["means"][model] for one in runs if model in one["means"]]
            digits = ", ".join(f"{value:.3f}" for value in values)
            print(f"| {name} | {_metrics(runs)} | {model} | {digits} | {fmean(values):.3f} |")
    print("\n| data | metric | self-play minus as much SFT, whichever is chosen |")
    print("|---|---|---|")
    for name, runs in found.items():
        if runs:
            print(f"| {name} | {_metrics(runs)} | {Interval.of([by_self_play(one) for one in runs])} |")
    return fine


def by_self_play(facts: Facts) -> float:
    """By how much the last iterate is better than the baseline."""
    last = [name for name in facts["means"] if name.startswith("iterate-")][-1]
    return gains({**facts, "chosen": last})["sft-more"]


def _metrics(runs: Sequence[Facts]) -> str:
    return " or ".join(sorted({one["metric"] for one in runs}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--records", type=Path, help="FOLDER/records.jsonl where none is given")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=0, help="so that two commands can share the seeds")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--recorded", action="store_true", help="run nothing; the tables of what is recorded")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    files = made_data(arguments.out / "data") | {
        name: Path(path) for name, _, path in (one.partition("=") for one in arguments.data)
    }
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    units = {
        (name, seed): Unit(
            f"{name}, seed {seed}",
            Run(arguments.model, data, arguments.out / f"{name}-{seed}", seed, arguments.overrides),
        )
        for seed in seeds
        for name, data in files.items()
    }
    records = arguments.records or arguments.out / "records.jsonl"
    ledger = Ledger(records, {"model": arguments.model, "overrides": arguments.overrides})
    for (name, _), unit in units.items():
        if unit.key in ledger.done and ledger.done[unit.key]["data"] != digest(files[name]):
            raise SystemExit(f"{records}: {unit.key} is of other rows than {files[name]}; give another --records")
    done = ledger.done if arguments.recorded else ledger.run([*units.values()])
    found: dict[str, list[Facts]] = {name: [] for name in files}
    for (name, _), unit in units.items():
        if unit.key in done:
            found[name].append(done[unit.key])
    return 0 if tables(found) else 1


if __name__ == "__main__":
    sys.exit(main())
