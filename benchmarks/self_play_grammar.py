"""Does self-play bring a model closer to the truth? The whole pipeline in a world whose true distribution is known.

    python benchmarks/self_play_grammar.py [--seeds 5] [--first-seed 1] [--iterations 3] [--out FOLDER]
        [--learning-rate RATE]

A prompt names one of 16 states, and a number that means nothing and keeps prompts distinct. The state starts a small
Markov chain over 12 words, which is the answer; so p_data(answer | prompt) is known exactly. A tiny Llama learns it
from a finite sample, by recipes like anybody's:

    start a    SFT that more SFT no longer improves: of several lengths, the one with the least held-out loss
    start b    SFT that ended too early, after 5 epochs
    rivals     more SFT: the pipeline's own baseline, at the recipe's rate and schedule, and the same at a rate and
               schedule of self-play; each with as many steps and tokens as self-play
    self-play  SPIN (logistic) at its λ of 0.1 and at 1, and SPACE; defaults but for rate and length of answers

Every model is held against the truth on fresh prompts: KL(p_data || p_model) with the engine, and answers that the
model writes. Seeds decide the initial weights, the sample and the run; differences are paired within a seed. Of each
self-play the last iterate is reported, and the model that the run itself keeps as the best on its held-out examples.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from seeds import Interval
from transformers.utils import logging as transformers_logging
from word_models import write_word_model

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.models.loading import load_model
from spintune.pipeline import run_recipe
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.records import Example, Message
from spintune.tokens.chat import ChatRenderer
from spintune.typed_json import to_json

WORDS = ("ash", "bay", "cork", "dew", "elm", "fog", "gum", "hay", "ivy", "jade", "kelp", "lark")
STATES = 16
KINDS = 2
LONGEST = 9
END = ""

TRAIN, FRESH = 1000, 1500
EARLY = 5
LENGTHS = (8, 10, 12, 14, 16)
"""Epochs of start b, and those that start a chooses from."""

SFT = {"learning_rate": 3e-3, "tokens_per_step": 512, "samples": 0}
SELF_PLAY: dict[str, dict[str, Any]] = {
    "SPIN λ=0.1": {"loss": "logistic"},
    "SPIN λ=1": {"loss": "logistic", "lambda": 1.0},
    "SPACE": {"loss": "space"},
}
RATES = {
    "a": {"SPIN λ=0.1": 3e-5, "SPIN λ=1": 3e-5, "SPACE": 3e-5, "more SFT": 3e-5},
    "b": {"SPIN λ=0.1": 3e-5, "SPIN λ=1": 1e-3, "SPACE": 1e-3, "more SFT": 1e-3},
}
"""Peak learning rates, chosen on seed 100, which is not reported: docs/lab/spin-experiments.md."""


# The world ---------------------------------------------------------------------------------------------------------


class World:
    """Answers are walks of a Markov chain: the state chooses the first word, its kind the successors of each word.

    A word has three or four of the 12 as successors, or the answer ends, which it must after 9 words. All else has
    probability 0.
    """

    def __init__(self, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.first = [_sparse(random, WORDS, 4) for _ in range(STATES)]
        self.later = [{word: _sparse(random, WORDS, 3, end=0.25) for word in WORDS} for _ in range(KINDS)]

    def next(self, state: int, words: Sequence[str]) -> Mapping[str, float]:
        """The probability of each word, or of the END, after ``words``."""
        if not words:
            return self.first[state]
        return {END: 1.0} if len(words) == LONGEST else self.later[state % KINDS][words[-1]]

    def log_probability(self, state: int, words: Sequence[str]) -> float:
        """Of a whole answer, in nats; minus infinity for one that the world never gives."""
        total = 0.0
        for place, word in enumerate([*words, END]):
            probability = self.next(state, words[:place]).get(word, 0.0)
            if probability == 0:
                return -math.inf
            total += math.log(probability)
        return total

    def sample(self, state: int, random: np.random.Generator) -> list[str]:
        words: list[str] = []
        while True:
            following = self.next(state, words)
            word = str(random.choice(list(following), p=list(following.values())))
            if word == END:
                return words
            words.append(word)

    def answers(self, state: int, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
        """Every answer that begins with ``words``."""
        for word in self.next(state, words):
            yield from [words] if word == END else self.answers(state, (*words, word))


def _sparse(random: np.random.Generator, words: Sequence[str], count: int, end: float = 0.0) -> dict[str, float]:
    chosen = random.choice(len(words), count, replace=False)
    shares = random.dirichlet([1.0] * count) * (1 - end)
    following = {words[index]: float(share) for index, share in zip(chosen, shares, strict=True)}
    return following | {END: end} if end else following


@dataclass(frozen=True)
class Row:
    state: int
    number: int
    words: tuple[str, ...]

    @property
    def prompt(self) -> str:
        return f"state s{self.state} case {' '.join(f'{self.number:04d}')}"

    @property
    def example(self) -> Example:
        return Example((Message("user", self.prompt), Message("assistant", " ".join(self.words))))


def draw(world: World, seed: int, count: int) -> list[Row]:
    """Rows with distinct numbers, which are all that tells two prompts of a state apart."""
    random = np.random.default_rng([seed, 1])
    numbers = random.permutation(10_000)[:count].tolist()
    states = random.integers(STATES, size=count).tolist()
    return [Row(s, n, tuple(world.sample(s, random))) for s, n in zip(states, numbers, strict=True)]


# The model ---------------------------------------------------------------------------------------------------------


def write_model(folder: Path, seed: int) -> None:
    """A random model whose tokens are the words of this world."""
    words = ["state", "case", *map(str, range(10)), *(f"s{s}" for s in range(STATES)), *WORDS]
    write_word_model(folder, seed, words)


# Measures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """A model against the truth. Log-probabilities are of the whole answer with its end, in nats."""

    kl: float
    """KL(p_data || p_model), nats an answer: mean log p_data - log p_model over fresh answers of the world."""
    token_loss: float
    """Cross-entropy, nats a token, of the same answers."""
    ungrammatical: float
    """Share of the model's own answers that the world never gives; one of them makes KL(p_model || p_data) infinite."""
    reverse_kl: float
    """KL(p_model, given a grammatical answer || p_data), nats an answer."""
    tokens: float
    """Mean length of the model's own answers."""


def measure(location: str, world: World, fresh: Sequence[Row]) -> Measured:
    loaded = load_model(location, cache=Path(location), precision="float32")
    engine = LogProbEngine(loaded.model, loaded.autocast, tokens_per_forward=4096)
    renderer = ChatRenderer(loaded.tokenizer)
    rows = renderer.rows([row.example for row in fresh])
    scores = engine.score([Query(row.prompt_ids, (row.response_ids,)) for row in rows])
    model = [score for (score,) in scores]
    truth = [world.log_probability(row.state, row.words) for row in fresh]
    generator = build_generator(engine, loaded.tokenizer, renderer.stop_ids)
    written = generator.generate([row.prompt_ids for row in rows], Sampling(4 * LONGEST, seed=1))
    excess = []
    for row, answer in zip(fresh, written, strict=True):
        words = loaded.tokenizer.convert_ids_to_tokens(answer.ids[:-1])
        true = world.log_probability(row.state, words) if answer.finish_reason == "stop" else -math.inf
        if true > -math.inf:
            excess.append(answer.logprob - true)
    grammatical = len(excess) / len(written)
    return Measured(
        kl=statistics.fmean(t - m for t, m in zip(truth, model, strict=True)),
        token_loss=-sum(model) / sum(len(row.response_ids) for row in rows),
        ungrammatical=1 - grammatical,
        reverse_kl=statistics.fmean(excess) - math.log(grammatical) if excess else math.inf,
        tokens=statistics.fmean(len(answer.ids) for answer in written),
    )


MORE, MORE_LOW = "more SFT", "more SFT, low rate"
REFERENCES = ("start", MORE, MORE_LOW)

# Runs --------------------------------------------------------------------------------------------------------------


class Seed:
    """Everything of one seed, in its own folder."""

    def __init__(self, folder: Path, seed: int, world: World, iterations: int, rate: float | None = None) -> None:
        self.folder, self.seed, self.iterations, self.rate = folder, seed, iterations, rate
        rows = draw(world, seed, TRAIN + FRESH)
        self.train, self.fresh = rows[:TRAIN], rows[TRAIN:]
        write_model(folder / "model", seed)
        lines = [json.dumps({"instruction": row.prompt, "output": " ".join(row.words)}) for row in self.train]
        (folder / "train.jsonl").write_text("\n".join(lines) + "\n")

    def epochs(self, start: str) -> int:
        """Of SFT behind a start."""
        losses = {length: self._sft(f"sft-{length}", length)["sft"]["heldout_loss"] for length in LENGTHS}
        return EARLY if start == "b" else min(losses, key=losses.__getitem__)

    def models(self, start: str, epochs: int) -> dict[str, str]:
        """Where each model is, by name: the start, its rivals, and self-play's iterates."""
        rates = {name: self.rate or rate for name, rate in RATES[start].items()}
        first, *others = SELF_PLAY
        runs = {first: self._sft(f"{start}-{first}", epochs, self._spin(first, rates) | {"baseline": "sft"})}
        begin = runs[first]["models"]["sft"]
        for name in others:
            runs[name] = self._run(f"{start}-{name}", model=begin, spin=self._spin(name, rates))
        steps, tokens = (sum(iteration[key] for iteration in runs[first]["spin"]) for key in ("steps", "tokens"))
        budget = {"tokens_per_step": tokens // steps, "max_steps": steps, "epochs": 3.0 * self.iterations}
        low = {"learning_rate": rates["more SFT"], "schedule": "linear", "samples": 0}
        more = self._run(f"{start}-more", model=begin, sft=low | budget)
        models = {"start": begin, MORE: runs[first]["models"]["sft-more"], MORE_LOW: more["models"]["sft"]}
        for name, results in runs.items():
            for iteration in range(1, 1 + self.iterations):
                models[f"{name}, iterate {iteration}"] = results["models"][f"iterate-{iteration}"]
            kept = results["best"]["name"]
            models[f"{name}, kept"] = results["models"][kept] if kept.startswith("iterate") else begin
        return models

    def _spin(self, name: str, rates: Mapping[str, float]) -> dict[str, Any]:
        common = {"iterations": self.iterations, "max_new_tokens": 2 * LONGEST, "learning_rate": rates[name]}
        return common | SELF_PLAY[name]

    def _sft(self, name: str, epochs: int, spin: Mapping[str, Any] | None = None) -> dict[str, Any]:
        further = {"spin": spin} if spin else {}
        return self._run(name, sft={**SFT, "epochs": float(epochs)}, **further)

    def _run(self, name: str, **sections: Any) -> dict[str, Any]:
        values = {
            "out": str(self.folder / name),
            "model": str(self.folder / "model"),
            "seed": self.seed,
            "precision": "float32",
            "tokens_per_forward": 4096,
            "data": {"train": str(self.folder / "train.jsonl"), "eval_fraction": 0.2, "max_length": 64},
            "eval": [],
            **sections,
        }
        return to_json(run_recipe(parse_recipe(values, name), self.folder, Silent()))


# Report ------------------------------------------------------------------------------------------------------------


def verdict(gap: Interval) -> str:
    """What a difference in KL says: less is closer to the truth."""
    if gap.low == gap.high == 0:
        return "the same"
    return "closer" if gap.high < 0 else "farther" if gap.low > 0 else "cannot be told"


TITLES = {"a": "Start a: SFT at its least held-out loss", "b": "Start b: SFT that ended too early"}


def report(start: str, epochs: Sequence[int], results: Sequence[Mapping[str, Measured]], truth: float) -> None:
    """``results`` has one seed's models each, by name."""
    print(f"\n{TITLES[start]} (epochs by seed: {', '.join(map(str, epochs))})\n")
    print(
        "| model | KL(p_data ‖ p_model) | loss, nats/token | ungrammatical | KL(p_model ‖ p_data) in grammar | tokens |"
    )
    print("|---|---|---|---|---|---|")
    print(f"| truth | 0 | {truth:.4f} | 0.0% | 0 | |")
    for name in results[0]:
        mean = {f.name: statistics.fmean(getattr(seed[name], f.name) for seed in results) for f in fields(Measured)}
        print(
            f"| {name} | {mean['kl']:.3f} | {mean['token_loss']:.4f} | {mean['ungrammatical']:.1%} "
            f"| {mean['reverse_kl']:.3f} | {mean['tokens']:.2f} |"
        )
    for title, quantity in (("KL(p_data ‖ p_model)", "kl"), ("share of ungrammatical answers", "ungrammatical")):
        print(f"\nDifference in {title}, mean and 95 % t-interval over seeds\n")
        print(f"| model | minus {' | minus '.join(REFERENCES)} |")
        print("|---" * (1 + len(REFERENCES)) + "|")
        for name in [*REFERENCES[1:], *finals(results[0])]:
            cells = [
                "" if name == reference else str(difference(results, name, reference, quantity))
                for reference in REFERENCES
            ]
            print(f"| {name} | {' | '.join(cells)} |")


def finals(names: Iterable[str]) -> list[str]:
    """Of each self-play the last iterate and the one that was kept."""
    return [name for pair in pairwise(names) if pair[1].endswith(", kept") for name in pair]


def difference(results: Sequence[Mapping[str, Measured]], name: str, reference: str, quantity: str) -> Interval:
    return Interval.of([getattr(seed[name], quantity) - getattr(seed[reference], quantity) for seed in results])


def conclude(start: str, results: Sequence[Mapping[str, Measured]]) -> None:
    """Words that follow from the intervals of KL(p_data || p_model) alone."""
    for name in finals(results[0]):
        found = {other: verdict(difference(results, name, other, "kl")) for other in REFERENCES}
        details = "; ".join(f"against {other}: {told}" for other, told in found.items())
        print(f"- start {start}, {name}: **{overall(found)}** ({details})")


def overall(found: Mapping[str, str]) -> str:
    """One word for what was found against each reference."""
    if found["start"] == "the same":
        return "changes nothing"
    if found["start"] == "farther":
        return "hurts"
    if "farther" in found.values():
        return "loses to more SFT"
    return "helps" if set(found.values()) == {"closer"} else "cannot be told"


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    began = time.monotonic()
    world = World()
    results: dict[str, list[dict[str, Measured]]] = {start: [] for start in TITLES}
    epochs: dict[str, list[int]] = {start: [] for start in TITLES}
    truths: list[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        out = arguments.out or Path(temporary)
        for number in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
            seed = Seed(out / f"seed-{number}", number, world, arguments.iterations, arguments.learning_rate)
            answered = [(world.log_probability(row.state, row.words), len(row.words) + 1) for row in seed.fresh]
            truths.append(-sum(p for p, _ in answered) / sum(n for _, n in answered))
            for start in TITLES:
                length = seed.epochs(start)
                models = seed.models(start, length)
                results[start].append({name: measure(path, world, seed.fresh) for name, path in models.items()})
                epochs[start].append(length)
    print(
        f"{arguments.seeds} seeds; {TRAIN} rows, 80 % to train on; {FRESH} fresh answers a model; KL in nats an answer"
    )
    for start in TITLES:
        report(start, epochs[start], results[start], statistics.fmean(truths))
    print(
        "\nVerdict by the intervals of KL(p_data ‖ p_model). To help is to be closer than the start and both rivals:\n"
    )
    for start in TITLES:
        conclude(start, results[start])
    print(f"\n{time.monotonic() - began:.0f} s")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first-seed", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, help="of all self-play, in place of each one's own")
    parser.add_argument("--out", type=Path, help="keep the run folders here; a stopped benchmark goes on from them")
    return parser.parse_args()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
