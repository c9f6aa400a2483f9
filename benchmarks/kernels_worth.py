"""Is each kernel worth its keep? A step and a batch of answers, with all kernels and with each one left out.

    python benchmarks/kernels_worth.py [--precision float32|bfloat16] [--threads 2] [--repeats 5]      five minutes

The step is forward and backward of supervised rows of ``builtin:seeds`` (about 1,024 tokens), the answers are 32 of 32
tokens to its prompts, greedy, by SmolLM2-135M. What stands in for a kernel is the next best way that spintune has: that
which it takes where there is no compiler. Calls alternate. Times are processor seconds, the shortest of each, and the
gain is in percent of the time with all kernels. "none left out" is measured once more: what it gains is noise. Results
without a kernel are compared with those with all. A kernel that gains less than 5 % of both is not worth its lines.
"""

from __future__ import annotations

import argparse
import contextlib
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
from spintune.kernels.allocator import tune_malloc
from spintune.models.loading import load_model
from spintune.storage import cache_folder
from spintune.tokens.chat import ChatRenderer
from spintune.training.objectives import NegativeLogLikelihood

Outcome = Tensor
"""The gradient of a step, or the tokens of all answers."""


@dataclass(frozen=True)
class Kernel:
    """A kernel by the functions that decide for it, and what is taken when they decline."""

    name: str
    instead: str
    deciders: tuple[tuple[object, str], ...]


KERNELS = (
    Kernel("products of linear layers", "torch's", ((linear, "_can_train"), (linear, "_can_run"))),
    Kernel("the same, our own", "oneDNN's", ((linear, "can_multiply"),)),
    Kernel("attention of packed rows", "torch's fused", ((packing, "can_attend"),)),
    Kernel("attention of slots", "torch's products", ((kv_cache, "can_attend"),)),
    Kernel("norms", "the model's own", ((fused, "_rms_norm_parts"),)),
    Kernel("gates", "the model's own", ((fused, "_swiglu_parts"),)),
    Kernel("rotary embeddings", "the model's own", ((rotary, "can_rotate"),)),
    Kernel("sparse gradient of a tied embedding", "a dense one", ((linear, "tied_lookup"),)),
    Kernel("none left out", "", ()),
)


def declines(*_: object) -> dict[object, object]:
    """A function, for a Mock would remember, and so keep in memory, every tensor that it is asked about."""
    return {}


@contextlib.contextmanager
def without(kernel: Kernel | None) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for module, name in kernel.deciders if kernel else ():
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
    began = time.process_time()
    work()
    return time.process_time() - began


def apart(name: str, outcome: Outcome, expected: Outcome) -> str:
    if name == "step":
        return f"{((outcome - expected).norm() / expected.norm()).item():.0e}"
    return f"{(outcome != expected).any(1).sum()} of {len(expected)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    tune_malloc()
    print(f"{describe()['processor']['name']}, {options.threads} threads, {options.precision}")
    ways: list[Kernel | None] = [None, *KERNELS]
    for name, work in works(options.precision).items():
        times: dict[Kernel | None, list[float]] = {way: [] for way in ways}
        outcomes: dict[Kernel | None, Outcome] = {}
        for way in ways * options.repeats:
            with without(way):
                if way not in outcomes:
                    outcomes[way] = work()  # also warms up
                times[way].append(seconds(work))
        all_of_them = min(times[None])
        print(f"\n{name}: {all_of_them:.2f} s with all kernels\n")
        print("| without | instead | s | gain | differs |\n|---|---|---|---|---|")
        for kernel in KERNELS:
            found = min(times[kernel])
            differs = apart(name, outcomes[kernel], outcomes[None])
            print(f"| {kernel.name} | {kernel.instead} | {found:.2f} | {found / all_of_them - 1:.1%} | {differs} |")


if __name__ == "__main__":
    main()
