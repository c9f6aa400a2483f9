"""Is the rate that ``learning_rate: auto`` finds close to the best of a fine grid, and what does it cost?

    python benchmarks/rates.py --data NAME=PATH ... [--tasks NAME,...] [--rows 600] [--each 4] [--out FOLDER]

A task is METHOD/MODEL/DATA. Methods: sft; spin (λ = 0.1) and spin1 (λ = 1). Models: tiny and small (Llamas of 0.1 and
1 million weights) and t5 (0.2 million), which first learn from random on another part of the data, or alias
(SmolLM2-135M-Instruct). Data: grammar and arithmetic are made up; others are files or folders, given by ``--data``:

    rasbt     ch07/01_main-chapter-code/instruction-data.json of github.com/rasbt/LLMs-from-scratch
    gsm8k     train.jsonl of github.com/openai/grade-school-math
    flan_cot  flan/v2/cot_data of github.com/google-research/FLAN
    t0        data/finetuning/t0_train_50k of github.com/yizhongw/self-instruct

Each task trains its whole stage at every rate of a fine grid and at the recipe's default, and climbs the
ladder as a run does. The ladder sees the selection part of the held-out rows; the tables are of the other part. What is
done is in FOLDER/results.jsonl, and the same command goes on from there.
"""

from __future__ import annotations

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rate_tasks import Player, SftTask, SpinTask, Task, read_data, write_random_model

from spintune.recipe import SftSection, SpinSection

TASKS = (
    "sft/tiny/grammar",
    "sft/tiny/arithmetic",
    "sft/t5/arithmetic",
    "sft/small/rasbt",
    "sft/small/gsm8k",
    "sft/small/flan_cot",
    "sft/t5/t0",
    "sft/alias/rasbt",
    "spin/tiny/grammar",
    "spin1/tiny/grammar",
    "spin/tiny/arithmetic",
    "spin1/tiny/arithmetic",
    "spin/t5/arithmetic",
    "spin/small/rasbt",
)
EPOCHS = {"grammar": 4.0, "arithmetic": 12.0}
"""Of the first SFT of a random model; 6 for texts."""
TOKENS = {"tiny": 512, "t5": 512, "small": 1024, "alias": 512}
LADDERS = {"sft": (-5.0, -1.5), "spin": (-5.0, -2.0), "alias": (-5.0, -3.0)}
"""First and last rate of the grid, decades."""


def grid(low: float, high: float, each: int) -> list[float]:
    """Rates with two digits, ``each`` to a decade."""
    return [float(f"{10 ** (place / each):.1e}") for place in range(round(low * each), round(high * each) + 1)]


class Results:
    """One line for each training, on disk."""

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.is_file() else []
        self.known: dict[tuple[str, str], Any] = {
            (row["task"], row["what"]): row["found"] for row in map(json.loads, lines)
        }

    def get(self, task: str, what: str, compute: Any) -> Any:
        if (task, what) not in self.known:
            began = time.monotonic()
            found = self.known[task, what] = compute()
            with self._path.open("a") as file:
                file.write(json.dumps({"task": task, "what": what, "found": found}) + "\n")
            print(f"{task} {what}: {_short(found)}, {time.monotonic() - began:.0f} s", flush=True)
        return self.known[task, what]

    def rates(self, task: str) -> dict[float, dict[str, float]]:
        """What the whole stage gave at each rate; 0 is the start."""
        found = {float(what): value for (of, what), value in self.known.items() if of == task and what != "auto"}
        return dict(sorted(found.items()))


def _short(found: dict[str, Any]) -> str:
    return f"rate {found['rate']:g}" if "rate" in found else f"loss {found['report']:.4f}"


def build(name: str, places: dict[str, Path], rows: int, scratch: Path) -> Task:
    """The task of that name, at its start."""
    method, model, source = name.split("/")
    data = read_data(source, places.get(source), rows // 2 if model == "alias" else rows)
    if model == "alias":
        player = Player("smollm2-135m-instruct", data, Path.home() / ".cache" / "spintune")
    else:
        write_random_model(model, data.first + data.then, scratch / "model")
        player = Player(str(scratch / "model"), data, scratch)
        player.learn_first(EPOCHS.get(source, 6.0), scratch / "first")
    if method == "sft":
        return SftTask(name, player, SftSection(epochs=1.0 if model == "alias" else 3.0, tokens_per_step=TOKENS[model]))
    section = SpinSection.model_validate({"pairs_per_step": 16, "lambda": 1.0 if method == "spin1" else 0.1})
    return SpinTask(name, player, section, scratch)


def run(name: str, places: dict[str, Path], rows: int, each: int, results: Results) -> None:
    """All trainings of a task that are not done yet."""
    method, model, _ = name.split("/")
    low, high = LADDERS["alias" if model == "alias" else method.rstrip("1")]
    rates = grid(low, high, each)
    wanted = {"0", "auto", *map(str, rates)}
    if all((name, what) in results.known for what in wanted):
        return
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        task = build(name, places, rows, scratch)
        results.get(name, "0", lambda: {**task.measure(), "steps": len(task.batches)})
        auto = results.get(name, "auto", lambda: task.climb(scratch / "ladder"))
        for number, rate in enumerate(dict.fromkeys([auto["rate"], task.plain_rate, *rates])):
            results.get(name, str(rate), partial(task.train, rate, scratch / f"run-{number}"))


def report(names: Sequence[str], results: Results) -> None:
    """The tables, of the tasks whose trainings are all done."""
    _head("task", "steps", "start", "best of the grid", "auto", "lost", "of the gain", "default", "cost")
    for name in names:
        if (name, "auto") not in results.known or len(results.rates(name)) < 4:
            continue
        runs, auto = results.rates(name), results.known[name, "auto"]
        best = min(runs, key=lambda rate: runs[rate]["report"])
        found, start = runs[auto["rate"]]["report"], runs[0.0]["report"]
        plain = _plain(name, runs)
        lost = 100 * (found / runs[best]["report"] - 1)
        gain = (start - found) / (start - runs[best]["report"]) if start > runs[best]["report"] else math.nan
        cells = [
            name,
            str(runs[0.0]["steps"]),
            f"{start:.4f}",
            f"{runs[best]['report']:.4f} at {best:g}",
            f"{found:.4f} at {auto['rate']:g}",
            f"{lost:.1f} %",
            f"{100 * gain:.0f} %",
            f"{runs[plain]['report']:.4f}",
            f"{100 * auto['share']:.0f} %",
        ]
        print(f"| {' | '.join(cells)} |")
    _report_rules(names, results)


def _head(*columns: str) -> None:
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")


def _plain(name: str, runs: dict[float, Any]) -> float:
    """The default rate, which is 2e-5 or 5e-6 at these sizes."""
    return 2e-5 if name.startswith("sft") else min(runs, key=lambda rate: abs(rate - 5e-6) if rate else math.inf)


def _report_rules(names: Sequence[str], results: Results) -> None:
    """Self-play: the rate that the pair loss at λ = 1 would choose, and the one that the loss of training would."""
    _head("task", "chosen by", "rate", "KL from the opponent", "margin", "loss a real token (start)")
    for name in names:
        runs = results.rates(name)
        if not name.startswith("spin") or len(runs) < 4:
            continue
        whole = {rate: one for rate, one in runs.items() if rate and math.isfinite(one["loss"])}
        for rule, key in (("pair loss at λ = 1", "loss"), ("pair loss at its own λ", "own")):
            rate = min(whole, key=lambda one: whole[one][key])
            one = whole[rate]
            print(
                f"| {name} | {rule} | {rate:g} | {one['moved']:.2f} | {one['margin']:.2f} | "
                f"{one['nll']:.3f} ({runs[0.0]['nll']:.3f}) |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--rows", type=int, default=600, help="of the stage and of the first SFT, each; half for alias")
    parser.add_argument("--each", type=int, default=4, help="rates of the grid in a decade")
    parser.add_argument("--out", type=Path, default=Path("runs/rates"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    places = {name: Path(path) for name, _, path in (entry.partition("=") for entry in options.data)}
    results, names = Results(options.out / "results.jsonl"), options.tasks.split(",")
    for name in names:
        if (source := name.split("/")[2]) in ("grammar", "arithmetic") or source in places:
            run(name, places, options.rows, options.each, results)
        else:
            print(f"{name} is left out: give --data {source}=PATH")
    report(names, results)


if __name__ == "__main__":
    main()
