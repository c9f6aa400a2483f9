"""How much faster held-out answers are written with the answers of the model before as drafts.

    python benchmarks/drafts.py RUN [--repeats 3]      some minutes; RUN is a finished run with self-play

Each model of the run answers the held-out prompts at temperature 0 and 1, with and without drafts in turn. "Right" is
the share of the drafts' tokens up to the first that the model does not write itself. Answers that differ are counted.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from machine import describe, threads

from spintune.engine.logprobs import LogProbEngine
from spintune.generation.build import build_generator
from spintune.generation.protocol import Prompt
from spintune.generation.sampling import Sampling, stream_keys
from spintune.models.loading import load_model
from spintune.records import Completion, Pair, read_records
from spintune.run_folder import BASE
from spintune.run_models import final_model, trained_models
from spintune.storage import cache_folder

Written = dict[float, list[Completion]]


def heldout_prompts(run: Path) -> list[Prompt]:
    """The prompts that the base model, or SFT's, answered in self-play."""
    file = next(iter(sorted(run.glob("spin/heldout/*/answers.jsonl"))), None)
    if file is None:
        raise SystemExit(f"{run}: has no answers to held-out prompts (spin/heldout); give a run with self-play")
    return [pair.prompt_ids for pair in read_records(file, Pair)]


def seconds(write: Callable[[], list[Completion]]) -> float:
    began = time.perf_counter()
    write()
    return time.perf_counter() - began


def same(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Number of tokens that two answers begin with."""
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


def measure(name: str, before: str, location: str, prompts: list[Prompt], drafts: Written, repeats: int) -> Written:
    """Prints a model's rows, and gives what it writes."""
    loaded = load_model(location, cache=cache_folder())
    engine, stop_ids = LogProbEngine(loaded.model, loaded.autocast), loaded.renderer("tokenizer").stop_ids
    generator = build_generator(engine, loaded.tokenizer, stop_ids)
    written: Written = {}
    for temperature in (0.0, 1.0):
        plain = Sampling(256, temperature)
        written[temperature] = generator.generate(prompts, plain)
        if temperature not in drafts:
            continue
        answers = [one.ids for one in drafts[temperature]]
        drafted = replace(plain, drafts=dict(zip(stream_keys(prompts, plain.seed), answers, strict=True)))
        found = generator.generate(prompts, drafted)
        pairs = list(zip(found, answers, strict=True))
        right = sum(same(one.ids, draft) for one, draft in pairs) / sum(len(draft) for _, draft in pairs)
        differ = sum(one.ids != other.ids for one, other in zip(found, written[temperature], strict=True))
        ratios = []
        for repeat in range(repeats):
            order = (plain, drafted) if repeat % 2 else (drafted, plain)
            times = {id(one): seconds(lambda one=one: generator.generate(prompts, one)) for one in order}
            ratios.append(times[id(plain)] / times[id(drafted)])
        gain = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        print(f"| {name} | {before} | {temperature:g} | {right:.0%} | {gain} | {differ} of {len(found)} |", flush=True)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--threads", type=int, default=threads())
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    prompts = heldout_prompts(options.run)
    print(f"{describe()['processor']['name']}, {options.threads} threads, {len(prompts)} prompts\n")
    print("| model | drafts by | temperature | right | times as fast | differ |\n|---|---|---|---|---|---|")
    drafts: Written = {}
    before = ""
    for name in [BASE, *trained_models(options.run)]:
        location = final_model(options.run, name)
        drafts, before = measure(name, before, location, prompts, drafts, options.repeats), name


if __name__ == "__main__":
    main()
