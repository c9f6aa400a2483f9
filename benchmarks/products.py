"""torch's own float32 products beside oneDNN's, in training's shapes and in a step, and attention in both precisions.

    python benchmarks/products.py [--threads 1] [--repeats 3]      two minutes

The step is forward and backward of supervised rows of ``builtin:seeds`` (about 1,024 tokens) under SmolLM2-135M, once
with the products that spintune uses and once with torch's; gradients are compared. Times are processor seconds of
alternating calls, so that other work on the machine disturbs them little.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from spintune.data.sources import Source, read_sources
from spintune.models import logprobs
from spintune.models.loading import load_model
from spintune.models.logprobs import LogProbEngine, pack
from spintune.models.memory import keep_freed_memory
from spintune.tokens.chat import Renderer
from spintune.training.objectives import NegativeLogLikelihood

SHAPES = ((976, 576, 1536), (976, 1536, 576), (976, 576, 576), (976, 576, 192), (627, 576, 49152))
LENGTHS = (48, 150, 300, 800)


def onednn(x: Tensor, weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def seconds(call: Callable[[], object], times: int) -> float:
    call()
    began = time.process_time()
    for _ in range(times):
        call()
    return (time.process_time() - began) / times


def products(repeats: int) -> None:
    print("\nProducts in float32, GFLOP/s: torch, oneDNN\n")
    print("| rows x in x out | forward | gradient of the input | gradient of the weight |\n|---|---|---|---|")
    for rows, inside, outside in SHAPES:
        x, weight, grad = torch.randn(rows, inside), torch.randn(outside, inside), torch.randn(rows, outside)
        cells = []
        for a, b in ((x, weight), (grad, weight.t()), (grad.t(), x.t())):
            rates = [
                2e-9 * rows * inside * outside / min(seconds(lambda f=f, a=a, b=b: f(a, b), 8) for _ in range(repeats))
                for f in (linear, onednn)
            ]
            cells.append(", ".join(f"{rate:.0f}" for rate in rates))
        print(f"| {rows} x {inside} x {outside} | {' | '.join(cells)} |")


def step(repeats: int) -> None:
    loaded = load_model("smollm2-135m-instruct", cache=Path.home() / ".cache" / "spintune", precision="float32")
    engine, objective = LogProbEngine(loaded.model), NegativeLogLikelihood()
    examples = read_sources([Source("builtin:seeds")], seed=0).examples[:24]
    rows = Renderer(loaded.tokenizer).rows(examples)
    queries = pack([objective.query(row) for row in rows], lambda query: query.tokens, 1024)[0]

    def run() -> Tensor:
        loaded.model.zero_grad()
        (-engine(queries).sum_N.sum()).backward()
        return torch.cat([weight.grad.flatten() for weight in loaded.model.parameters()])

    ways = {"torch's products": lambda *_: contextlib.nullcontext(), "spintune": logprobs.fast_training}
    times: dict[str, list[float]] = {name: [] for name in ways}
    gradients = {}
    for _ in range(repeats):
        for name, way in ways.items():
            logprobs.fast_training = way
            times[name].append(seconds(run, 1))
            gradients[name] = run()
    one, other = gradients.values()
    print(f"\nA step of {sum(query.tokens for query in queries)} tokens in float32, processor seconds:")
    for name, found in times.items():
        print(f"  {statistics.median(found):.2f}  {name}")
    print(f"  gradients differ by {((one - other).norm() / one.norm()).item():.1e} of their norm")


def attention(repeats: int) -> None:
    print("\nFused attention of 9 query and 3 key heads of 64, forward and backward, ms\n")
    print("| tokens | float32 | bfloat16 |\n|---|---|---|")
    for length in LENGTHS:
        cells = []
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = (torch.randn(1, heads, length, 64, dtype=dtype, requires_grad=True) for heads in (9, 3, 3))

            def run(q: Tensor = q, k: Tensor = k, v: Tensor = v) -> None:
                scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True).sum().backward()

            cells.append(f"{1000 * min(seconds(run, 8) for _ in range(repeats)):.1f}")
        print(f"| {length} | {' | '.join(cells)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(f"{describe()['processor']['name']}, {options.threads} threads")
    products(options.repeats)
    attention(options.repeats)
    step(options.repeats)


if __name__ == "__main__":
    main()
