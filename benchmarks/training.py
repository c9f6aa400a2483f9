"""Trains one model on the same token ids with spintune and with TRL, and says how long each takes.

    python benchmarks/training.py [--model NAME] [--rows 24] [--pairs 16] [--data FILE] [--only sft,spin]
                                  [--repeats 3] [--bfloat16 auto|yes|no] [--batch N] [--json FILE]
    python benchmarks/training.py --report FILE      what an earlier --json FILE holds, measured nothing anew

Needs ``pip install "spintune[benchmarks]"``. Contestants, each in a process of its own, in alternating order:

* spintune: its engine and training loop, as a recipe runs them;
* TRL tuned: float32, no gradient checkpointing, rows sorted by length, the fastest batch size of those tried, and for
  DPO reference log-probabilities computed beforehand;
* TRL defaults: what ``use_cpu=True`` alone gives, which is bfloat16 autocast and gradient checkpointing;
* on a processor that multiplies bfloat16 natively, spintune and TRL tuned once more in bfloat16 autocast.

``--batch`` gives TRL tuned this batch size in place of a search, and leaves its defaults out.

A step is forward, backward and optimizer (AdamW, clipping) on all rows. A process takes one step to warm up and one
that counts; medians are over the processes. SFT is measured on ``--rows`` examples; SPIN, which TRL computes as DPO
with the sigmoid loss, on ``--pairs`` pairs of a real answer and one that the model wrote itself (T = 1), both of at
most 128 tokens, and its log-probabilities of the opponent (TRL: of the reference model) are timed as well.

Times count only if both sides compute the same thing: losses before and after the first step, gradient norms and the
log-probabilities of every answer are compared, and the exit code is 1 when they differ.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from checks import check_all
from machine import busy_seconds, children_seconds, describe, threads
from report import print_report
from trl_settings import Setting, candidates, default_setting
from workload import TASKS, Workload, forward_operations, step_operations

STEPS = 2
"""One to warm up, one that counts."""
ANSWER_TOKENS = 128
"""Longest answer of a pair."""
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@dataclass
class Contestant:
    """Who computes a task, and what was measured of it."""

    name: str
    role: str
    precision: str
    setting: dict[str, Any] | None = None
    remark: str = ""
    once: bool = False
    runs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seconds(self) -> float:
        """Of a training step, median."""
        return statistics.median(second for run in self.runs for second in run["seconds"])

    @property
    def score_seconds(self) -> float | None:
        """Of the log-probabilities that are computed once, median; None where a step computes them anew."""
        seconds = [run["score_seconds"] for run in self.runs if run.get("score_seconds") is not None]
        return statistics.median(seconds) if seconds else None

    @property
    def together(self) -> float:
        """One pass over the data: what is computed once, and a training step."""
        return self.seconds + (self.score_seconds or 0.0)

    @property
    def peak_gb(self) -> float:
        return max(run["peak_gb"] for run in self.runs)


class ContestantError(Exception):
    """A contestant's process failed or was killed."""


class Lab:
    """Starts contestants one after the other, in a temporary folder."""

    def __init__(self, folder: Path, cache: Path) -> None:
        self.folder, self.cache, self.count, self.started = folder, cache, 0, time.monotonic()
        self.workload = folder / "workload.json"
        self.foreign_cores: list[float] = []
        """Cores that other work kept busy during each run."""

    def run(self, role: str, title: str, **spec: Any) -> Any:
        """A role's result. Prints a line before. Raises ContestantError, with the last words of the process."""
        self.count += 1
        print(f"[{time.monotonic() - self.started:6.0f} s] {title}", file=sys.stderr, flush=True)
        folder = self.folder / f"{self.count:03d}"
        folder.mkdir()
        paths = folder / "spec.json", folder / "result.json"
        common = {"workload": str(self.workload), "folder": str(folder), "cache": str(self.cache), "threads": threads()}
        paths[0].write_text(json.dumps({**common, **spec}))
        environment = {
            **os.environ,
            **ENVIRONMENT,
            "OMP_NUM_THREADS": str(threads()),
            "HF_DATASETS_CACHE": str(folder / "datasets"),
        }
        busy, own, began = busy_seconds(), children_seconds(), time.monotonic()
        script = Path(__file__).with_name("contestant.py")
        done = subprocess.run(
            [sys.executable, str(script), role, *map(str, paths)],
            env=environment,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            killed = f"ended by {signal.Signals(-done.returncode).name}" if done.returncode < 0 else "failed"
            reason = f"{killed}; its last words:\n{done.stderr[-4000:]}"
            raise ContestantError(f"{title}: {reason}")
        foreign = (busy_seconds() - busy) - (children_seconds() - own)
        self.foreign_cores.append(max(0.0, foreign) / (time.monotonic() - began))
        return json.loads(paths[1].read_text())


def contestants(
    lab: Lab, task: str, workload: Workload, precisions: list[str], batch: int | None
) -> tuple[list[Contestant], dict[str, list[dict[str, Any]]]]:
    """Everybody in a task, TRL with its fastest settings, or with a batch size; and what was tried to find them."""
    rows = len(workload.rows if task == "sft" else workload.pairs)
    default = default_setting(rows)
    defaults = Contestant("TRL defaults", "trl", "bfloat16", asdict(default), str(default), once=True)
    field_of = [] if batch else [defaults]
    searches = {}
    for precision in precisions:
        suffix = "" if precision == "float32" else f" {precision}"
        given = Setting(True, precision, batch or 0)
        searches[precision] = (
            [{"setting": asdict(given), "name": str(given)}] if batch else search(lab, task, rows, precision)
        )
        best = searches[precision][0]
        field_of += [
            Contestant(f"TRL tuned{suffix}", "trl", precision, best["setting"], best["name"]),
            Contestant(f"spintune{suffix}", "spintune", precision, remark=precision),
        ]
    return field_of[::-1], searches


def search(lab: Lab, task: str, rows: int, precision: str) -> list[dict[str, Any]]:
    """TRL's candidate settings, fastest first, by the one step (and the precomputation) of a process each.

    A setting that does not fit into memory drops out. What is sought is an order, so no step warms up.
    """
    tried = []
    for setting in candidates(task, rows, precision):
        spec = {"task": task, "steps": 1, "setting": asdict(setting)}
        try:
            run = lab.run("trl", f"{task}: trying TRL, {setting}", **spec)
        except ContestantError as error:
            print(f"{error}; setting left out", file=sys.stderr)
            continue
        seconds = run["first_seconds"] + run.get("score_seconds", 0.0)
        tried.append({"setting": asdict(setting), "name": str(setting), "seconds": seconds, "peak_gb": run["peak_gb"]})
    if not tried:
        raise ContestantError(f"{task}: no setting of TRL works here")
    return sorted(tried, key=lambda candidate: candidate["seconds"])


def compete(lab: Lab, task: str, field_of: list[Contestant], repeats: int) -> None:
    """Runs all contestants ``repeats`` times, to and fro; one that is shown only for orientation runs once.

    A run that fails is left out with a message, but each contestant needs one that does not.
    """
    for repeat in range(repeats):
        for contestant in field_of if repeat % 2 == 0 else field_of[::-1]:
            if contestant.once and repeat:
                continue
            title = f"{task}: {contestant.name}, run {repeat + 1} of {1 if contestant.once else repeats}"
            spec = {"task": task, "steps": STEPS, "precision": contestant.precision, "setting": contestant.setting}
            try:
                contestant.runs.append(lab.run(contestant.role, title, **spec))
            except ContestantError as error:
                print(f"{error}; run left out", file=sys.stderr)
    if missing := [contestant.name for contestant in field_of if not contestant.runs]:
        raise ContestantError(f"{task}: no run of {', '.join(missing)} came to its end")


def as_json(task: str, workload: Workload, everybody: list[Contestant], peaks: dict[str, float]) -> dict[str, Any]:
    """What the table says, and the runs behind it."""
    operations = {"step": step_operations(workload, task), "score": forward_operations(workload, task)}
    return {
        "rows": len(workload.rows if task == "sft" else workload.pairs),
        "tokens": workload.tokens(task),
        "scored_tokens": workload.scored(task),
        "operations": operations,
        "contestants": [
            {
                "name": contestant.name,
                "precision": contestant.precision,
                "remark": contestant.remark,
                "step_seconds": contestant.seconds,
                "score_seconds": contestant.score_seconds,
                "together_seconds": contestant.together,
                "peak_gb": contestant.peak_gb,
                "share_of_peak": operations["step"] / contestant.seconds / 1e9 / peaks[contestant.precision],
                "runs": contestant.runs,
            }
            for contestant in everybody
        ],
    }


def main() -> int:
    arguments = parse()
    if arguments.report:
        return report(json.loads(arguments.report.read_text()))
    if importlib.util.find_spec("trl") is None:
        sys.exit('TRL is missing: pip install "spintune[benchmarks]"')
    facts = describe()
    if facts["load_before"] > 0.5:
        print(f"warning: load {facts['load_before']:.1f}; other work disturbs the times", file=sys.stderr)
    native = facts["processor"]["native_bfloat16"]
    bfloat16 = arguments.bfloat16 == "yes" or (arguments.bfloat16 == "auto" and native)
    precisions = ["float32", "bfloat16"] if bfloat16 else ["float32"]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

    results: dict[str, Any] = {"machine": facts, "model": arguments.model, "data": arguments.data}
    with tempfile.TemporaryDirectory(prefix="spintune-benchmark-") as temporary:
        lab = Lab(Path(temporary), home / "spintune")
        wanted = {key: getattr(arguments, key) for key in ("model", "data", "rows", "pairs", "seed")}
        lab.run("prepare", f"rows and pairs for {arguments.model}", **wanted, answer_tokens=ANSWER_TOKENS)
        workload = Workload.load(lab.workload)
        measured = precisions if arguments.batch else ["float32", "bfloat16"]
        rates = [_peaks(lab, measured)]
        fields: dict[str, list[Contestant]] = {}
        results["searches"] = {}
        for task in arguments.only:
            chosen = contestants(lab, task, workload, precisions, arguments.batch)
            fields[task], results["searches"][task] = chosen
            compete(lab, task, fields[task], arguments.repeats)
        rates.append(_peaks(lab, measured))
        peaks = {precision: max(max(rate[precision].values()) for rate in rates) for precision in rates[0]}
        results |= {"matmul_gflops": rates, "peak_gflops": peaks}
        results["tasks"] = {task: as_json(task, workload, fields[task], peaks) for task in arguments.only}
        results["foreign_cores"] = lab.foreign_cores
        results["minutes"] = (time.monotonic() - lab.started) / 60
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return report(results)


def report(results: dict[str, Any]) -> int:
    """Prints tables and comparisons; the exit code."""
    checks = [
        check
        for task, facts in results["tasks"].items()
        for check in check_all(task, [(c["name"], c["precision"], c["runs"]) for c in facts["contestants"]])
    ]
    print_report({**results, "checks": [asdict(check) for check in checks]})
    return 0 if all(check.passed for check in checks) else 1


def _peaks(lab: Lab, precisions: list[str]) -> dict[str, dict[str, float]]:
    return {
        precision: lab.run("peak", f"matrix products, {precision}", precision=precision) for precision in precisions
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m-instruct", help="alias, folder or cached hub id")
    parser.add_argument("--data", default="builtin:seeds", help="builtin:NAME or a file that spintune reads")
    parser.add_argument("--rows", type=int, default=24, help="examples of an SFT step")
    parser.add_argument("--pairs", type=int, default=16, help="pairs of a SPIN step")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each contestant")
    parser.add_argument("--seed", type=int, default=0, help="of the generated answers")
    parser.add_argument("--only", default=",".join(TASKS), type=lambda text: text.split(","), help="sft,spin")
    parser.add_argument("--bfloat16", choices=("auto", "yes", "no"), default="auto", help="auto: where it is native")
    parser.add_argument("--batch", type=int, help="of TRL tuned, in place of a search; it divides rows and pairs")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--report", type=Path, help="print an earlier --json file instead of measuring")
    arguments = parser.parse_args()
    if unknown := set(arguments.only) - set(TASKS):
        parser.error(f"--only takes {', '.join(TASKS)}, not {', '.join(unknown)}")
    if min(arguments.rows, arguments.pairs, arguments.repeats) < 1:
        parser.error("--rows, --pairs and --repeats are at least 1")
    if Path(arguments.model).is_dir():
        arguments.model = str(Path(arguments.model).resolve())
    if not arguments.data.startswith("builtin:") and Path(arguments.data).is_file():
        arguments.data = str(Path(arguments.data).resolve())
    return arguments


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ContestantError as error:
        sys.exit(str(error))
