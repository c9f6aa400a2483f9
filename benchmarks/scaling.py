"""How the cost of a self-play step grows: with answers, prompts, negatives, the step, the vocabulary, the model.

    python benchmarks/scaling.py [--repeats 3] [--bfloat16] [--report FILE]      about ten minutes on 2 cores

One axis at a time is varied around a middle point, with random weights and random tokens. Timed is what a step of
training spends in the engine: forward and backward of SPIN's loss over all pairs, as a recipe runs them. Beside the
time stands the number of operations that the step cannot do without (``workload.py``), and their quotient: where that
stays the same, cost grows as the count does; where it falls, something is done besides.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from machine import describe, matmul_peak, threads
from transformers import LlamaConfig, LlamaForCausalLM
from workload import ModelShape, PreferencePair, Workload, step_operations

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import pack
from spintune.kernels.allocator import reuse_memory
from spintune.records import Answer, Pair
from spintune.training.objectives import SelfPlay

TOKENS_PER_FORWARD = 1024


@dataclass(frozen=True)
class Point:
    """Tokens of prompt and answers, generated answers a pair, pairs a step, words of the vocabulary, and the model."""

    prompt: int = 64
    response: int = 128
    negatives: int = 1
    pairs: int = 8
    vocabulary: int = 32000
    width: int = 512
    layers: int = 8


AXES: dict[str, tuple[int, ...]] = {
    "response": (32, 64, 128, 256, 512),
    "prompt": (16, 64, 256, 1024),
    "negatives": (1, 2, 4, 8),
    "pairs": (2, 8, 32),
    "vocabulary": (2000, 8000, 32000, 128000),
    "width": (256, 512, 1024),
    "layers": (4, 8, 16),
}


def measure(point: Point, repeats: int, autocast: torch.dtype | None) -> dict[str, Any]:
    """Median seconds of a step, its operations, and the rate."""
    engine = LogProbEngine(_model(point), autocast)
    objective, pairs = SelfPlay(), _pairs(point)
    weight = sum(map(objective.weight, pairs))
    seconds = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        for run in pack(pairs, lambda pair: objective.query(pair).tokens, TOKENS_PER_FORWARD):
            loss = objective(run, engine([objective.query(pair) for pair in run]))
            (loss.total / weight).backward()
        seconds.append(time.perf_counter() - began)
        engine.model.zero_grad()
    operations = _operations(point)
    typical = statistics.median(seconds[1:])  # the first one warms up
    return {"seconds": typical, "tflop": operations / 1e12, "gflop_per_second": operations / typical / 1e9}


def _model(point: Point) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=point.vocabulary,
            hidden_size=point.width,
            intermediate_size=8 * point.width // 3,
            num_hidden_layers=point.layers,
            num_attention_heads=point.width // 64,
            num_key_value_heads=point.width // 64,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )


def _pairs(point: Point) -> list[Pair]:
    draw = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(point.vocabulary, (count,), generator=draw).tolist())

    def answer() -> Answer:
        return Answer(ids(point.response), "", True, 0.0)

    return [
        Pair(str(n), ids(point.prompt), answer(), tuple(answer() for _ in range(point.negatives)))
        for n in range(point.pairs)
    ]


def _operations(point: Point) -> int:
    """The count of ``workload.py``; every generated answer adds what the first one does, for it sees no other."""
    inner = 8 * point.width // 3
    body = point.layers * (4 * point.width**2 + 3 * point.width * inner)
    shape = ModelShape(point.layers, point.width, body, point.width, inner, point.vocabulary)

    def step(generated: int) -> int:
        pair = PreferencePair([0] * point.prompt, [0] * point.response, [0] * generated)
        return step_operations(Workload("", shape, [], [pair]), "spin")

    return point.pairs * (step(0) + point.negatives * (step(point.response) - step(0)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--bfloat16", action="store_true", help="matrix products in bfloat16")
    parser.add_argument("--axes", default=",".join(AXES), help="some of them, with commas between")
    parser.add_argument("--report", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(threads())
    reuse_memory()
    precision = "bfloat16" if options.bfloat16 else "float32"
    autocast = torch.bfloat16 if options.bfloat16 else None
    middle = Point()
    peak = max(matmul_peak(middle.width, 8 * middle.width // 3, middle.vocabulary, precision).values())
    facts: dict[str, Any] = {"machine": describe(), "precision": precision, "peak": peak, "axes": {}}
    print(f"{facts['machine']['processor']['name']}, {threads()} threads, {precision}, best product {peak:.0f} GFLOP/s")
    print(f"middle: {middle}")
    print("| axis | value | step, s | TFLOP | GFLOP/s | of peak |\n|---|---|---|---|---|---|")
    for axis in options.axes.split(","):
        for value in AXES[axis]:
            found = measure(replace(middle, **{axis: value}), options.repeats, autocast)
            facts["axes"].setdefault(axis, {})[value] = found
            print(
                f"| {axis} | {value} | {found['seconds']:.2f} | {found['tflop']:.2f} | "
                f"{found['gflop_per_second']:.0f} | {found['gflop_per_second'] / peak:.0%} |",
                flush=True,
            )
    if options.report:
        options.report.write_text(json.dumps(facts, indent=2))


if __name__ == "__main__":
    main()
