"""How long a user waits: for ``spintune --help``, and from ``spintune sft`` to the first step on many examples.

    python benchmarks/startup.py [--examples 50000] [--repeats 3] [--model smollm2-135m-instruct] [--report FILE]

The examples are made up: instructions of 12 words and answers of 20 to 120, drawn from a vocabulary of 5,000 words of
3 to 9 letters; about 350 tokens each. Every repeat makes others, and runs twice: the second time, in another folder,
their tokens are known. What counts is the time from the start of the command to the event that announces the first
optimizer step: importing, reading, splitting, writing the run's data, loading the model, tokenizing and ordering rows.
The least that anybody waits who trains a model is timed beside it: Python importing torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import string
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import describe

COMMAND = [sys.executable, "-m", "spintune"]


def made_up(count: int, seed: int) -> list[dict[str, str]]:
    draw = random.Random(seed)
    words = ["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 9))) for _ in range(5000)]

    def text(length: int) -> str:
        return " ".join(draw.choices(words, k=length))

    return [
        {"instruction": f"{text(12)} {number}", "input": "", "output": text(draw.randint(20, 120))}
        for number in range(count)
    ]


def help_seconds() -> float:
    began = time.perf_counter()
    subprocess.run([*COMMAND, "--help"], check=True, capture_output=True)
    return time.perf_counter() - began


def import_seconds() -> float:
    """What a program waits that imports torch and transformers and does nothing."""
    began = time.perf_counter()
    program = "import torch; from transformers import AutoModelForCausalLM"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    return time.perf_counter() - began


def first_step(model: str, data: Path, out: Path) -> dict[str, float]:
    """Seconds from the command to each event that is new, "SFT" being the first step; then the command is stopped."""
    settings = ["data.eval_fraction=0.0", "eval=[]", "--json"]
    command = [*COMMAND, "sft", "--model", model, "--data", str(data), "--out", str(out), *settings]
    began = time.perf_counter()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    reached: dict[str, float] = {}
    try:
        for line in process.stderr or ():
            event: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
            name = str(event.get("task") or event.get("note") or "").replace(str(data), "FILE").split(":")[0]
            if name and name not in reached:
                reached[name] = time.perf_counter() - began
            if name == "SFT":
                return reached
    finally:
        process.kill()
        process.wait()
    sys.exit(f"{' '.join(command)} ended before its first step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    facts: dict[str, Any] = {"machine": describe(), "examples": options.examples}
    import_seconds()  # from the disk
    facts["import_seconds"] = [import_seconds() for _ in range(options.repeats)]
    facts["help_seconds"] = [help_seconds() for _ in range(2 * options.repeats)]
    with tempfile.TemporaryDirectory(prefix="spintune-startup-") as folder:
        for repeat in range(options.repeats):
            data = Path(folder) / f"{repeat}.json"
            data.write_text(json.dumps(made_up(options.examples, repeat)))
            for time_of in ("first", "again"):
                reached = first_step(options.model, data, Path(folder) / f"{time_of}-{repeat}")
                facts.setdefault(time_of, []).append(reached)
    print(f"{facts['machine']['processor']['name']}, load before {facts['machine']['load_before']:.2f}")
    print(f"importing torch and transformers: {statistics.median(facts['import_seconds']):.2f} s")
    print(f"spintune --help: {statistics.median(facts['help_seconds']):.2f} s")
    for time_of, words in (("first", "data that are new to it"), ("again", "the same data once more")):
        typical = sorted(facts[time_of], key=lambda reached: reached["SFT"])[options.repeats // 2]
        print(f"spintune sft to its first step on {options.examples:,} examples, {words}: {typical['SFT']:.1f} s")
        for name, seconds in typical.items():
            print(f"  {seconds:5.1f} s  {name}")
    if options.report:
        options.report.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
