"""Memory that a plan predicts beside the most that a whole run held, each in a process of its own.

    python benchmarks/plan.py [--only "NAME; ..."] [--report FILE]

For each setting a recipe is written, ``spintune plan`` says what it takes on this machine, and ``spintune run`` runs
it: two or three optimizer steps of two calls each, of rows with 64 words of prompt and 64 of answer. *Planned* is the
stage that needs the most, with what the process holds before its model; *measured* is the most that the process of
the run ever held (VmHWM: its own memory and the files that it has mapped), from its first import to its last file.
Models are random Llamas of a few words, and the packaged 135M model. Other work on the machine changes nothing.
Results that are in FILE are kept, so a call that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

WORDS = tuple(a + b for a in "bcdfghjklm" for b in ("an", "el", "id", "os", "um"))
ROW = 64
SMALL, MIDDLE, ALIAS = "0.1M", "12M", "smollm2-135m-instruct"
WIDTHS = {SMALL: (64, 2), MIDDLE: (384, 8)}


@dataclass(frozen=True)
class Case:
    """A model and the keys of a recipe; ``tokens`` of one call, two of which make a step."""

    model: str
    tokens: int
    keys: dict[str, Any] = field(default_factory=dict)
    section: dict[str, Any] = field(default_factory=dict)
    spin: bool = False


CASES = {
    "0.1M, sft, 512 tokens": Case(SMALL, 512),
    "12M, sft, 512 tokens": Case(MIDDLE, 512),
    "12M, sft, 2048 tokens": Case(MIDDLE, 2048),
    "12M, spin, 2048 tokens": Case(MIDDLE, 2048, spin=True),
    "12M, lora, 2048 tokens": Case(MIDDLE, 2048, {"lora": {"rank": 16}}),
    "12M, recompute: 1, 2048 tokens": Case(MIDDLE, 2048, {"recompute": 1.0}),
    "12M, adafactor, 2048 tokens": Case(MIDDLE, 2048, section={"optimizer": "adafactor"}),
    "135M, sft, 256 tokens": Case(ALIAS, 256),
    "135M, lora, 256 tokens": Case(ALIAS, 256, {"lora": {"rank": 16}}),
    "135M, sft, 1024 tokens": Case(ALIAS, 1024),
    "135M, spin, 256 tokens": Case(ALIAS, 256, spin=True),
}

RUN = """
import re, sys
from pathlib import Path
from spintune.cli import main
try:
    main()
except SystemExit as ended:
    if ended.code:
        raise
print("most", re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""
"""A command of spintune that ends with the most memory that its process held."""


def write_recipe(case: Case, folder: Path) -> Path:
    """Writes the data and the recipe of a case; its model is there already."""
    draw = random.Random(0)
    steps, rows = 2 if case.model == ALIAS else 3, 2 * case.tokens // (2 * ROW)
    data = [
        {
            "instruction": f"{number} {' '.join(draw.choices(WORDS, k=ROW))}",
            "output": " ".join(draw.choices(WORDS, k=ROW)),
        }
        for number in range(steps * rows + 4)
    ]
    (folder / "rows.json").write_text(json.dumps(data))
    section = {"learning_rate": 1e-5, "max_steps": steps, **case.section}
    if case.spin:
        section.pop("max_steps")
        trained = {"spin": {"iterations": 1, "pairs_per_step": max(2, rows // 2), "max_new_tokens": ROW, **section}}
    else:
        trained = {"sft": {"tokens_per_step": 2 * case.tokens, "epochs": 1.0, **section}}
    model = case.model if case.model == ALIAS else str(folder.parent / case.model)
    values = {
        "out": str(folder / "run"),
        "model": model,
        "data": {"train": str(folder / "rows.json"), "max_length": 512, "eval_fraction": 0.01},
        "tokens_per_forward": case.tokens,
        "eval": [],
        **case.keys,
        **trained,
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(values))  # which is YAML as well
    return path


def measure(name: str, folder: Path) -> dict[str, float]:
    """The bytes that a plan predicts for a case, and those that its run held at most."""
    case = CASES[name]
    folder.mkdir()
    recipe = str(write_recipe(case, folder))
    environment = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **os.environ}

    def spintune(*words: str) -> str:
        command = [sys.executable, "-c", RUN, *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"{name}: {' '.join(words)} ended with {done.returncode}; its last words:\n{done.stderr[-2000:]}")
        return done.stdout

    said = spintune("plan", recipe, "--json", "--no-probe")
    plan = json.loads(said[: said.rindex("most")])
    most = re.search(r"^most (\d+)$", spintune("run", recipe), re.M)
    assert most
    return {"planned": plan["needed"], "measured": int(most[1]) * 1024}


def write_models(folder: Path, names: set[str]) -> None:
    """Writes the random models. torch is imported in a process of its own, whose memory no other one inherits."""
    for name in names & set(WIDTHS):
        width, layers = WIDTHS[name]
        arguments = f"Path({str(folder / name)!r}), 0, {WORDS!r}, {width}, {layers}, 512"
        code = f"from pathlib import Path; from word_models import write_word_model; write_word_model({arguments})"
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True, stderr=subprocess.DEVNULL)


def main() -> None:
    """Prints a table, a row for each setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=";".join(CASES), help="names of settings, with ; between them")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(";")]
    found = json.loads(options.report.read_text()) if options.report and options.report.exists() else {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_models(folder, {CASES[name].model for name in names if name not in found})
        print("| setting | planned [MB] | measured [MB] | planned / measured |\n|---|---|---|---|")
        for place, name in enumerate(names):
            if name not in found:
                found[name] = measure(name, folder / str(place))
                if options.report:
                    options.report.write_text(json.dumps(found, indent=1))
            planned, measured = found[name]["planned"], found[name]["measured"]
            print(f"| {name} | {planned / 1e6:,.0f} | {measured / 1e6:,.0f} | {planned / measured:.2f} |", flush=True)


if __name__ == "__main__":
    main()
