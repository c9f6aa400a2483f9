"""Many ranks against one process: the largest differences over SFT and two iterations of self-play, and waiting.

    python benchmarks/ranks.py --processes 2            # replicated
    python benchmarks/ranks.py --processes 2 --shard    # FSDP2

Both runs train the same tiny Llama with random weights, which the script makes. They differ by rounding alone.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests"))
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
MODELS = ("sft", "spin/iterate-1", "spin/iterate-2")


def make_world(folder: Path) -> dict[str, object]:
    """A tiny model and 60 instructions, and a recipe for them without its out."""
    from tiny_folders import write_llama

    draw = random.Random(0)
    rows = [
        {
            "instruction": " ".join(draw.choices(WORDS, k=draw.randint(2, 12))),
            "input": "",
            "output": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
        }
        for _ in range(60)
    ]
    data = folder / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model": str(write_llama(folder / "llama")),
        "seed": 3,
        "data": {"train": str(data), "eval_fraction": 0.2, "max_length": 128},
        "sft": {"epochs": 2, "learning_rate": 1e-3, "tokens_per_step": 300},
        "spin": {"iterations": 2, "learning_rate": 1e-3, "pairs_per_step": 10, "max_new_tokens": 8},
        "eval": ["heldout"],
    }


def run(folder: Path, name: str, recipe: dict[str, object], *words: str) -> Path:
    """The folder of a finished run."""
    out, file = folder / name, folder / f"{name}.yaml"
    file.write_text(json.dumps({**recipe, "out": str(out)}))
    subprocess.run(
        [sys.executable, "-m", "spintune", "run", str(file), "--json", *words], check=True, capture_output=True
    )
    return out


def steps(folder: Path) -> list[dict[str, float]]:
    """The metrics of each optimizer step."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if "grad_norm" in line]


def generated(folder: Path, iteration: int) -> list[list[int]]:
    """The tokens of all answers of an iteration."""
    lines = (folder / f"spin/iterate-{iteration}/pairs/answers.jsonl").read_text().splitlines()
    return [answer["ids"] for line in lines for answer in json.loads(line)["generated"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shard", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        recipe = make_world(folder)
        one = run(folder, "one", recipe)
        more = {"parallel": "shard"} if options.shard else {}
        other = run(folder, "ranks", {**recipe, **more}, "--processes", str(options.processes))
        pairs = list(zip(steps(one), steps(other), strict=True))
        print(f"{options.processes} ranks{', sharded' * options.shard}, {len(pairs)} steps; largest differences")
        print(f"loss of a step       {max(abs(a['loss'] - b['loss']) for a, b in pairs):.1e} nats")
        print(f"norm of a gradient   {max(abs(a['grad_norm'] / b['grad_norm'] - 1) for a, b in pairs):.1e} relative")
        for name in MODELS:
            mine, theirs = (load_file(each / name / "model/model.safetensors") for each in (one, other))
            print(f"weights, {name:14} {max(float(np.abs(mine[key] - theirs[key]).max()) for key in mine):.1e}")
        answers = [(a, b) for i in (1, 2) for a, b in zip(generated(one, i), generated(other, i), strict=True)]
        print(f"answers              {sum(a != b for a, b in answers)} of {len(answers)} differ")
        print(f"imbalance of tokens  {sum(b['imbalance'] for _, b in pairs) / len(pairs):.1%} of a step, mean")


if __name__ == "__main__":
    main()
