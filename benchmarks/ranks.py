"""Many ranks against one process: the largest differences over SFT and two iterations of self-play, and waiting.

    python benchmarks/ranks.py --processes 2            # replicated
    python benchmarks/ranks.py --processes 2 --shard    # FSDP2
    python benchmarks/ranks.py --alone                  # what FSDP2 costs one rank: steps, checkpoints, resuming

Both runs train the same tiny Llama with random weights, which the script makes. They differ by rounding alone. Alone,
one process with one thread trains a Llama of 5 million weights, plain and sharded by turns; times are of the processor,
so that a busy machine does not change them much. How long training waits for a checkpoint, until it is written or only
copied, is measured by the clock, disk included.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from safetensors.numpy import load_file

if TYPE_CHECKING:
    from spintune.tokens.rows import TokenRow

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.append(str(REPOSITORY / "tests"))
WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"]
TIMES = 5
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


def alone(folder: Path) -> None:
    """Prints times of one rank under FSDP2 beside those of a plain process, by turns in one run."""
    import torch
    from tiny_folders import write_llama

    from spintune.engine.logprobs import LogProbEngine
    from spintune.engine.sharded import shard_model
    from spintune.engine.sharing import ENGINE
    from spintune.models.loading import load_model
    from spintune.ranks.environment import Place
    from spintune.ranks.team import joined
    from spintune.training.checkpoint import Checkpoints
    from spintune.training.objectives import NegativeLogLikelihood
    from spintune.training.optimization import Optimization
    from spintune.training.stepping import stepper_of

    torch.set_num_threads(1)
    sizes = {"hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 6, "num_attention_heads": 8}
    model, rows = write_llama(folder / "llama", **sizes), make_rows()
    seconds: dict[str, list[list[float]]] = {"step": [], "checkpoint": [], "resume": []}
    with joined(Place(0, 1, 0, 1, "127.0.0.1", 29_511, "benchmark")) as team:
        engines = [LogProbEngine(load_model(str(model), cache=folder).model) for _ in range(2)]
        shard_model(engines[1], team, 1)
        team.objects[ENGINE] = engines[1]
        steppers = [stepper_of(engine, NegativeLogLikelihood(), Optimization(1e-4)) for engine in engines]
        kept = [Checkpoints(folder / name, 0) for name in ("plain", "shards")]
        copied = [Checkpoints(folder / f"{name}-async", 0, copies=True) for name in ("plain", "shards")]
        waits: dict[str, list[list[float]]] = {"sync": [], "async": []}
        for number in range(TIMES + 1):
            for what in seconds:
                seconds[what].append([])
            for engine, stepper, checkpoints in zip(engines, steppers, kept, strict=True):
                times = [time.process_time()]
                stepper.finite_gradients(rows, number, False)
                stepper.update(1e-4)
                times.append(time.process_time())
                checkpoints.save(number + 1, engine.model, stepper.optimizer)
                times.append(time.process_time())
                checkpoints.restore(engine.model, stepper.optimizer)
                times.append(time.process_time())
                for what, begin, end in zip(seconds, times, times[1:], strict=False):
                    seconds[what][-1].append(end - begin)
            for what, ways in zip(waits, (kept, copied), strict=True):
                waits[what].append([])
                for engine, stepper, checkpoints in zip(engines, steppers, ways, strict=True):
                    began = time.perf_counter()
                    checkpoints.save(number + 1, engine.model, stepper.optimizer)
                    waits[what][-1].append(time.perf_counter() - began)
                    checkpoints.finish()
    weights = sum(parameter.numel() for parameter in engines[0].model.parameters())
    print(f"one rank, {weights / 1e6:.0f} million weights, 2048 tokens a step")
    print(f"seconds of the processor, medians of {TIMES}")
    for what, pairs in seconds.items():
        plain, sharded = map(statistics.median, zip(*pairs[1:], strict=True))
        ratio = statistics.median(b / a for a, b in pairs[1:])
        print(f"{what:11} plain {plain:.3f} s, FSDP2 {sharded:.3f} s: {ratio:.2f} times")
    print("seconds by the clock that training waits for a checkpoint")
    for what, pairs in waits.items():
        plain, sharded = map(statistics.median, zip(*pairs[1:], strict=True))
        print(f"{what:11} plain {plain:.3f} s, FSDP2 {sharded:.3f} s")


def make_rows() -> list[TokenRow]:
    """16 rows of 128 tokens."""
    from spintune.tokens.rows import TokenRow

    draw, rows = random.Random(0), []
    for number in range(16):
        prompt, answer = (tuple(draw.choices(range(3, 300), k=size)) for size in (48, 80))
        rows.append(TokenRow(str(number), prompt, answer, (True,) * len(answer), True))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--shard", action="store_true")
    parser.add_argument("--alone", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.alone:
            alone(folder)
            return
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
        for name, what in (("imbalance", "imbalance of tokens "), ("waiting", "waiting, by time    ")):
            print(f"{what} {sum(b[name] for _, b in pairs) / len(pairs):.1%} of a step, mean")
        took = [sum(line["seconds"] for line in steps(each)) for each in (one, other)]
        print(f"time of all steps    {took[0]:.1f} s alone, {took[1]:.1f} s on {options.processes} ranks")


if __name__ == "__main__":
    main()
