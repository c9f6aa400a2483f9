"""A real model that was not trained on the rows: what self-play or SFT on them gains elsewhere, and what it forgets.

Iterate 0 is the model itself. Each trial is an ordinary run of spintune on a sample of the rows; its model is measured
and its weights are deleted. Gains: IFEval's prompts (strict), ROUGE-L on another instruction set, and likelihood of the
references of rows that no trial trains on. Forgetting: likelihood of general text.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from seeds import Interval

import spintune
from self_play.figure import Panel, figure
from self_play.ledger import Facts, Ledger, Unit
from spintune.evaluation.answers import read_answers
from spintune.evaluation.ifeval.prompts import read_prompts
from spintune.evaluation.ifeval.scoring import check
from spintune.recipe.measured import LOSS
from spintune.records import Example
from spintune.text.rouge import rouge_l

METHODS: Mapping[str, Mapping[str, Any]] = {
    "SFT": {"sft": {"schedule": "linear", "tokens_per_step": 1024, "samples": 0}},
    "SPIN λ=0.1": {"spin": {"pairs_per_step": 16}},
    "SPIN λ=1, γ=3": {"spin": {"pairs_per_step": 16, **LOSS}},
}
"""SFT, SPIN as in the paper, and what spintune writes into recipes."""

RATES = {"SFT": (3e-5, 1e-4, 3e-4), "SPIN λ=0.1": (1e-5, 3e-5, 1e-4), "SPIN λ=1, γ=3": (1e-5, 3e-5, 1e-4)}
"""Half a decade to each side of the best of a finer grid on these rows (docs/lab/learning-rates.md)."""

BASE = "base"
MEASURES = {
    "ifeval": "IFEval, strict",
    "rouge_l": "ROUGE-L, other instructions",
    "own": "own held-out rows, nats/token",
    "text": "general text, nats/token",
}


def add_transfer_arguments(parser: argparse.ArgumentParser) -> None:
    """The data, and how much of it."""
    parser.add_argument("--data", type=Path, required=True, help="instructions with answers, such as 1,100 rows")
    parser.add_argument("--ifeval", type=Path, required=True, help="IFEval's prompts")
    parser.add_argument("--questions", type=Path, required=True, help="another instruction set with references")
    parser.add_argument("--text", type=Path, required=True, help="JSON lines whose longest strings are general text")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rows", type=int, default=256, help="that a trial trains on, drawn by the seed")
    parser.add_argument("--heldout", type=int, default=100, help="rows that no trial trains on")
    parser.add_argument("--prompts", type=int, default=100, help="of IFEval and of the questions, each")
    parser.add_argument("--texts", type=int, default=60)
    parser.add_argument("--max-new-tokens", type=int, default=192, help="of measured answers")
    parser.add_argument("--precision", default="float32", help="of training; all is measured in float32")


class Transfer:
    """The study. Of the held-out rows every other one chooses rates, and the rest report."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        self.out: Path = arguments.out
        self.seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
        examples = list(spintune.read(arguments.data))
        order = np.random.default_rng(0).permutation(len(examples))
        shuffled = [examples[index] for index in order]
        self.heldout, self.pool = shuffled[: arguments.heldout], shuffled[arguments.heldout :]
        if len(self.pool) < arguments.rows:
            raise SystemExit(f"{arguments.data}: {len(self.pool)} rows are left to train on; lower --rows or --heldout")
        self.prompts = _spread(read_prompts(arguments.ifeval), arguments.prompts)
        self.questions = _spread(read_answers(arguments.questions), arguments.prompts)
        self.texts = _spread(_texts(arguments.text), arguments.texts)

    def run(self) -> None:
        """Everything that is missing, then the tables and the figure."""
        given = vars(self.arguments)
        keys = ("model", "rows", "heldout", "prompts", "texts", "max_new_tokens", "precision")
        settings = {name: str(given[name]) for name in keys} | {"methods": METHODS}
        ledger = Ledger(self.out / "transfer.jsonl", settings)
        units = [Unit(BASE, partial(self.measure, self.arguments.model))]
        for seed in self.seeds:
            for name, rates in RATES.items():
                units += [Unit(_key(seed, name, rate), partial(self.trial, seed, name, rate)) for rate in rates]
        found = ledger.run(units)
        print("\n".join(self.tables(found)))
        path = self.out / "transfer.svg"
        path.write_text(figure(self.panels(found)))
        print(f"\nfigure: {path}")

    def trial(self, seed: int, name: str, rate: float) -> Facts:
        """Trains by one method at one rate, measures, and deletes the weights."""
        folder = self.out / "transfer" / _key(seed, name, rate).replace(" ", "-").replace(",", "")
        folder.parent.mkdir(parents=True, exist_ok=True)
        rows = folder.parent / f"{folder.name}.jsonl"
        picked = np.random.default_rng([seed, 2]).permutation(len(self.pool))[: self.arguments.rows]
        rows.write_text("".join(_row(self.pool[index]) for index in picked))
        (section, values), *_ = METHODS[name].items()
        tokens = {"max_new_tokens": 128} if section == "spin" else {"epochs": 2.0}  # a pair holds two answers
        results = spintune.run(
            {
                "model": self.arguments.model,
                "out": str(folder),
                "seed": seed,
                "precision": self.arguments.precision,
                "data": {"train": [str(rows)], "eval_fraction": 0.0, "max_length": 512},
                "eval": [],
                section: {**values, **tokens, "learning_rate": rate},
            }
        )
        facts = self.measure(results.models["sft" if section == "sft" else "iterate-1"])
        training = results.sft if section == "sft" else results.spin[0]
        cost = {"steps": training.steps, "train seconds": sum(training.seconds.values())} if training else {}
        shutil.rmtree(folder)
        rows.unlink()
        return {**facts, **cost}

    def measure(self, name: str) -> Facts:
        """All measures of a model; answers are greedy."""
        model = spintune.load(name, precision="float32")
        longest = self.arguments.max_new_tokens
        answers = model.generate([prompt.text for prompt in self.prompts], max_new_tokens=longest)
        followed = [
            float(all(check(prompt, answer.text).strict)) for prompt, answer in zip(self.prompts, answers, strict=True)
        ]
        written = model.generate([question.prompt for question in self.questions], max_new_tokens=longest)
        likeness = [
            rouge_l(answer.text, question.answer) for question, answer in zip(self.questions, written, strict=True)
        ]
        own = [model.score(_prompt(example), [example.answer])[0] for example in self.heldout]
        chooses, reports = own[::2], own[1::2]
        general = [_score_text(model, text) for text in self.texts]
        return {
            "ifeval": statistics.fmean(followed),
            "rouge_l": statistics.fmean(likeness),
            "selection": _loss(chooses),
            "own": _loss(reports),
            "text": _loss(general),
        }

    def tables(self, found: Mapping[str, Facts]) -> list[str]:
        """Each method at each rate, minus the base model; then each at its chosen rate, minus SFT at its own."""
        seeds = f"{len(self.seeds)} seeds, with 95 % t-intervals over them" if len(self.seeds) > 1 else "one seed"
        lines = [f"\nDifferences from the base model; {seeds}\n"]
        lines.append(f"| method | rate | {' | '.join(MEASURES.values())} |")
        lines.append("|---" * (2 + len(MEASURES)) + "|")
        lines.append(f"| {BASE} | | {' | '.join(f'{found[BASE][measure]:.4f}' for measure in MEASURES)} |")
        for name, rates in RATES.items():
            for rate in rates:
                cells = [str(self.gain(found, name, rate, measure)) for measure in MEASURES]
                lines.append(f"| {name} | {rate:g} | {' | '.join(cells)} |")
        first, *others = METHODS
        lines.append(
            f"\nEach at the rate that the selection rows choose, minus {first} at the rate that they choose for it\n"
        )
        lines.append(f"| method | rates | {' | '.join(MEASURES.values())} |")
        lines.append("|---" * (2 + len(MEASURES)) + "|")
        for name in others:
            picks = Counter(f"{self.chosen(found, seed, name)[0]:g}" for seed in self.seeds)
            cells = [str(self.beside(found, name, first, measure)) for measure in MEASURES]
            picked = "; ".join(f"{rate} ({count})" for rate, count in picks.most_common())
            lines.append(f"| {name} | {picked} | {' | '.join(cells)} |")
        return lines

    def chosen(self, found: Mapping[str, Facts], seed: int, name: str) -> tuple[float, Facts]:
        """The rate at which the half of the held-out rows that chooses is likeliest, and what it led to."""
        trials = {rate: found[_key(seed, name, rate)] for rate in RATES[name]}
        return min(trials.items(), key=lambda trial: trial[1]["selection"])

    def beside(self, found: Mapping[str, Facts], name: str, other: str, measure: str) -> Interval:
        """A method minus another, each at its chosen rate, paired by seed."""
        values = [[self.chosen(found, seed, one)[1][measure] for seed in self.seeds] for one in (name, other)]
        return Interval.of([one - two for one, two in zip(*values, strict=True)])

    def gain(self, found: Mapping[str, Facts], name: str, rate: float, measure: str) -> Interval:
        """Over the base model."""
        return Interval.of([found[_key(seed, name, rate)][measure] - found[BASE][measure] for seed in self.seeds])

    def panels(self, found: Mapping[str, Facts]) -> list[Panel]:
        """One panel a measure: a curve a method over its rates, the lowest first."""
        names = ["low", "middle", "high"]
        shown = []
        for measure, title in MEASURES.items():
            lines = {
                name: [found[BASE][measure] + self.gain(found, name, rate, measure).mean for rate in rates]
                for name, rates in RATES.items()
            }
            shown.append(Panel(title, lines, names, found[BASE][measure], unit=""))
        return shown


def _key(seed: int, name: str, rate: float) -> str:
    return f"seed {seed}, {name}, {rate:g}"


def _spread(items: Sequence[Any], count: int) -> list[Any]:
    """``count`` items from all over a file."""
    step = max(1, len(items) // count)
    return list(items[::step][:count])


def _loss(scores: Sequence[Any]) -> float:
    """Nats a token."""
    return -sum(score.logprob for score in scores) / sum(score.tokens for score in scores)


def _texts(path: Path) -> list[str]:
    """The longest string of each row."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [max((value for value in row.values() if isinstance(value, str)), key=len) for row in rows]


def _row(example: Example) -> str:
    return json.dumps({"messages": [asdict(message) for message in example.messages]}) + "\n"


def _prompt(example: Example) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in example.prompt]


def _score_text(model: spintune.Model, text: str) -> Any:
    ids = model.tokenizer.encode(text, add_special_tokens=False)
    return model.score(ids[:1], [ids[1:]])[0]
