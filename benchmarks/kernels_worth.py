"""Is each kernel worth its keep? A step and a batch of answers, with all kernels and with each one left out.

    python benchmarks/kernels_worth.py [--precision float32|bfloat16] [--repeats 6]      ten minutes on 2 quiet cores

The step is forward and backward of supervised rows of ``builtin:seeds`` (about 1,024 tokens), the answers are 32 of 32
tokens to its prompts, greedy, by SmolLM2-135M. What stands in for a kernel is the next best way that spintune has: that
which it takes where there is no compiler. Each kernel has pairs of runs, with all kernels and without it, in turn. Its
gain is the median of their ratios, beside the smallest and the largest; what leaves nothing out shows the noise.
Results without a kernel are compared with those with all. A kernel that gains less than 5 % of both has to have another
reason.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from unittest import mock

import torch
from machine import describe, threads
from torch import Tensor

from spintune.data.sources import Source, read_sources
from spintune.engine import packing
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import pack
from spintune.generation import kv_cache
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling, stream_keys
from spintune.kernels import fused, linear, rotary
from spintune.kernels.allocator import reuse_memory
from spintune.models.loading import load_model
from spintune.storage import cache_folder
from spintune.tokens.chat import ChatRenderer
from spintune.training.objectives import NegativeLogLikelihood

Outcome = Tensor
"""The gradient of a step, or the tokens of all answers."""


@dataclass(frozen=True)
class Kernel:
    """A kernel by the functions that decide for it, what is taken when they decline, and in which works it is."""

    name: str
    instead: str
    deciders: tuple[tuple[object, str], ...]
    works: tuple[str, ...] = ("step", "answers")


KERNELS = (
    Kernel("nothing", "", ()),
    Kernel("products of linear layers", "torch's", ((linear, "_can_train"), (linear, "_can_run"))),
    Kernel("the same, our own", "oneDNN's; in bfloat16 torch's", ((linear, "can_multiply"),)),
    Kernel("attention of packed rows", "torch's fused", ((packing, "can_attend"),), ("step",)),
    Kernel("attention of slots", "torch's products", ((kv_cache, "can_attend"),), ("answers",)),
    Kernel("norms", "the model's own", ((fused, "_rms_norm_parts"),)),
    Kernel("gates", "the model's own", ((fused, "_swiglu_parts"),)),
    Kernel("rotary embeddings", "the model's own", ((rotary, "can_rotate"),)),
    Kernel("sparse gradient of a tied embedding", "a dense one", ((linear, "tied_lookup"),), ("step",)),
)


def declines(*_: object) -> dict[object, object]:
    """A function, for a Mock would remember, and so keep in memory, every tensor that it is asked about."""
    return {}


@contextlib.contextmanager
def without(kernel: Kernel) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name in kernel.deciders:
            stack.enter_context(mock.patch.object(module, name, declines))
        yield


def works(precision: str) -> Mapping[str, Callable[[], Outcome]]:
    """The step and the answers."""
    loaded = load_model("smollm2-135m-instruct", cache=cache_folder(), precision=precision)
    model, objective = loaded.model, NegativeLogLikelihood()
    engine, renderer = LogProbEngine(model, loaded.autocast), ChatRenderer(loaded.tokenizer)
    rows = renderer.rows(read_sources([Source("builtin:seeds")], seed=0).examples[:32])
    queries = pack([objective.query(row) for row in rows], lambda query: query.tokens, 1024)[0]
    prompts = [row.prompt_ids for row in rows]
    generator = build_generator(engine, loaded.tokenizer, renderer.stop_ids)
    sampling = Sampling(max_new_tokens=32, temperature=0.0, seed=0)

    def step() -> Outcome:
        model.zero_grad()
        (-engine(queries).sum_N.sum()).backward()
        return torch.cat([weight.grad.flatten() for weight in model.parameters()])

    def answers() -> Outcome:
        written = generator.generate(prompts, sampling, stream_keys(prompts, 0))
        return torch.tensor([[*one.ids, *[-1] * 32][:32] for one in written])

    return {"step": step, "answers": answers}


def seconds(work: Callable[[], Outcome]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def apart(name: str, outcome: Outcome, expected: Outcome) -> str:
    if name == "step":
        return f"{((outcome - expected).norm() / expected.norm()).item():.0e}"
    return f"{(outcome != expected).any(1).sum()} of {len(expected)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--repeats", type=int, default=6)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    reuse_memory()
    print(f"{describe()['processor']['name']}, {options.threads} threads, {options.precision}")
    everything = KERNELS[0]
    for name, work in works(options.precision).items():
        expected, alone = work(), [seconds(work) for _ in range(3)]
        print(f"\n{name}: {statistics.median(alone):.2f} s with all kernels\n")
        print("| without | instead | gain | range | differs |\n|---|---|---|---|---|")
        for kernel in KERNELS:
            if name not in kernel.works:
                continue
            with without(kernel):
                differs = apart(name, work(), expected)  # also warms up
            ratios = []
            for repeat in range(options.repeats):
                times = {}
                for left_out in (True, False) if repeat % 2 else (False, True):
                    with without(kernel if left_out else everything):
                        times[left_out] = seconds(work)
                ratios.append(times[True] / times[False] - 1)
            gains = f"{statistics.median(ratios):.1%} | {min(ratios):.1%} to {max(ratios):.1%}"
            print(f"| {kernel.name} | {kernel.instead} | {gains} | {differs} |", flush=True)


if __name__ == "__main__":
    main()
