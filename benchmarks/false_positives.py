"""How often does `spintune compare` find a difference between equal models, and how often one that is there?

    python benchmarks/false_positives.py [--repeats 400] [--seed 1] [--report FILE] [--quick]

Two checkpoints of a tiny Llama, early and late in SFT on the world of self_play_grammar.py, answer prompts by sampling.
Their answers are saved as a run saves them (answers.jsonl), and the comparison reads the files. The pairs:

    same model  the early checkpoint twice, with two seeds: each finding is a false positive. The likelihoods are equal
                on every item, so only four measures can be mistaken.
    same coin   two systems that ask the early or the late checkpoint, by a fair coin for each prompt: equal again, but
                their likelihoods differ on half of the items
    different   the early checkpoint and the late one
    weighted    the early checkpoint, and a system that asks the late one as often as makes the true difference as large
                as the comparison says that it would find with 80 % power

Every repeat draws prompts, answers and coins anew. Fewer items are the first of the same items. Shares of comparisons
are given with Wilson's 95 % interval. "Any" counts comparisons that are wrong in at least one measure.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from self_play_grammar import SFT, Row, World, draw, write_model
from transformers.utils import logging as transformers_logging

from spintune.engine.logprobs import LogProbEngine
from spintune.evaluation.comparison import Comparison, Difference, compare
from spintune.evaluation.contenders import heldout_tables
from spintune.evaluation.heldout import HeldoutAnswer, score_heldout
from spintune.evaluation.statistics import wilson
from spintune.generation.build import build_generator
from spintune.generation.sampling import Sampling
from spintune.metrics import answer_metrics
from spintune.models.loading import load_model
from spintune.pipeline import run_recipe
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.records import write_records
from spintune.tokens.chat import ChatRenderer
from spintune.typed_json import to_json

TRAIN, PROMPTS = 500, 3000
EARLY, LATE = 0.25, 12
"""Epochs."""
LONGEST = 5
"""Tokens of an answer: a good part of the answers is cut, so that `finished` varies."""

ITEMS = (20, 50, 150)
LEVEL = 0.05
TARGETS = ("nll_per_token", "rouge_l", "finished")
"""A ratio, a score, and right or wrong: the measures whose power is measured."""
ROUNDS, PILOT = 4, 30
"""How the weighted pair is found: rounds, and repeats of each."""
ANY = "any"

# The models --------------------------------------------------------------------------------------------------------


class Checkpoint:
    """A model that answers prompts by sampling."""

    def __init__(self, folder: Path, epochs: float, rows: Sequence[Row]) -> None:
        values = {
            "out": str(folder / f"sft-{epochs}"),
            "model": str(folder / "model"),
            "seed": 1,
            "precision": "float32",
            "tokens_per_forward": 4096,
            "data": {"train": str(folder / "train.jsonl"), "eval_fraction": 0.0, "max_length": 64},
            "sft": {**SFT, "epochs": epochs},
            "eval": [],
        }
        results = run_recipe(parse_recipe(values, "false_positives"), folder, Silent())
        loaded = load_model(results.models["sft"], cache=folder, precision="float32")
        engine = LogProbEngine(loaded.model, loaded.autocast, tokens_per_forward=4096)
        renderer = ChatRenderer(loaded.tokenizer)
        rendered = renderer.rows([row.example for row in rows])
        self.rows = rows
        self.prompts = [row.prompt_ids for row in rendered]
        self.likelihoods = score_heldout(engine, [row.example for row in rows], rendered, Silent(), "references")
        self.generator = build_generator(engine, loaded.tokenizer, renderer.stop_ids)

    def answers(self, items: Sequence[int], seed: int) -> list[HeldoutAnswer]:
        written = self.generator.generate([self.prompts[item] for item in items], Sampling(LONGEST, seed=seed))
        judged = []
        for item, completion in zip(items, written, strict=True):
            row, likelihood = self.rows[item], self.likelihoods[item]
            reference = " ".join(row.words)
            judged.append(
                HeldoutAnswer(
                    id=str(item),
                    prompt=row.prompt,
                    reference=reference,
                    answer=completion.text,
                    finish_reason=completion.finish_reason,
                    answer_tokens=len(completion.ids),
                    reference_tokens=likelihood.tokens,
                    nll=likelihood.nll,
                    reference_bytes=likelihood.bytes,
                    scores={metric.name: metric.score(completion.text, [reference]) for metric in answer_metrics()},
                )
            )
        return judged


def checkpoints(folder: Path, seed: int) -> tuple[Checkpoint, Checkpoint]:
    rows = draw(World(), seed, TRAIN + PROMPTS)
    write_model(folder / "model", seed)
    lines = [json.dumps({"instruction": row.prompt, "output": " ".join(row.words)}) for row in rows[:TRAIN]]
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n")
    return Checkpoint(folder, EARLY, rows[TRAIN:]), Checkpoint(folder, LATE, rows[TRAIN:])


@dataclass(frozen=True)
class Repeat:
    """Answers of both checkpoints to the same prompts, for each of two systems, and coins that say whom it asks."""

    early: tuple[list[HeldoutAnswer], list[HeldoutAnswer]]
    late: tuple[list[HeldoutAnswer], list[HeldoutAnswer]]
    coins: list[list[float]]

    def system(self, side: int, late: float) -> list[HeldoutAnswer]:
        """What a system answers that asks the late checkpoint with this probability."""
        both = zip(self.early[side], self.late[side], self.coins[side], strict=True)
        return [second if coin < late else first for first, second, coin in both]


def repeats(early: Checkpoint, late: Checkpoint, count: int, most: int, seed: int) -> list[Repeat]:
    random = np.random.default_rng([seed, 2])
    drawn = []
    for number in range(count):
        items = random.choice(PROMPTS, most, replace=False).tolist()
        a, b, c, d = range(4 * number, 4 * number + 4)
        drawn.append(
            Repeat(
                (early.answers(items, a), early.answers(items, b)),
                (late.answers(items, c), late.answers(items, d)),
                random.random((2, most)).tolist(),
            )
        )
    return drawn


# The comparisons ---------------------------------------------------------------------------------------------------

Found = dict[str, Difference]
"""What one comparison says of each measure."""


def comparisons(
    folder: Path, pairs: Sequence[tuple[list[HeldoutAnswer], list[HeldoutAnswer]]], items: int
) -> list[Found]:
    """Each pair of saved answers, compared on the first items."""
    found = []
    for number, pair in enumerate(pairs):
        paths = {name: folder / f"{name}.jsonl" for name in ("first", "second")}
        for path, answers in zip(paths.values(), pair, strict=True):
            write_records(path, map(to_json, answers[:items]))
        comparison: Comparison = compare(heldout_tables(paths), level=LEVEL, seed=number)
        found.append({one.measure: one for one in comparison.differences})
    return found


@dataclass(frozen=True)
class Share:
    """Of many comparisons, those with a property; with Wilson's interval."""

    found: int
    of: int

    def __str__(self) -> str:
        share = wilson(self.found, self.of)
        return f"{100 * share.mean:.1f} ({100 * share.low:.1f} to {100 * share.high:.1f})"


def share(of: Sequence[Found], measure: str, holds: Callable[[Difference], bool]) -> Share:
    """How often something holds of a measure, or of any."""
    chosen = [list(found.values()) if measure == ANY else [found[measure]] for found in of]
    return Share(sum(any(map(holds, ones)) for ones in chosen), len(of))


def called_different(one: Difference) -> bool:
    return one.finding is not None


def significant_alone(one: Difference) -> bool:
    return one.p <= LEVEL


def off_zero(one: Difference) -> bool:
    return not one.difference.low <= 0 <= one.difference.high


@dataclass(frozen=True)
class Rate:
    """How often a pair of systems was told apart by a measure: by its p alone, after Holm, and by the interval."""

    pair: str
    items: int
    measure: str
    alone: Share
    holm: Share
    interval: Share


def rates(pair: str, items: int, found: Sequence[Found]) -> list[Rate]:
    return [
        Rate(
            pair, items, name, *(share(found, name, holds) for holds in (significant_alone, called_different, off_zero))
        )
        for name in (*found[0], ANY)
    ]


# Power -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Power:
    """How often a difference of the stated size was found.

    Attributes:
        detectable: what the comparisons said they would find, on average.
        difference: the true difference of the weighted pair.
        late: how often its second system asks the late checkpoint.
        found: None where the late checkpoint is not different enough.
    """

    measure: str
    items: int
    detectable: float
    difference: float
    late: float
    found: Share | None


def power(folder: Path, drawn: Sequence[Repeat], measure: str, items: int, whole: float) -> Power:
    """``whole`` is the true difference between the checkpoints.

    What is said to be detectable depends on the pair, so the pair that differs by as much is approached in rounds.
    """
    late = 0.5
    for _ in range(ROUNDS):
        late = min(1.0, _detectable(_weighted(folder, drawn[:PILOT], items, late), measure) / whole)
    found = _weighted(folder, drawn, items, late)
    detectable = _detectable(found, measure)
    hits = share(found, measure, called_different) if late < 1 else None
    return Power(measure, items, detectable, late * whole, late, hits)


def _weighted(folder: Path, drawn: Sequence[Repeat], items: int, late: float) -> list[Found]:
    return comparisons(folder, [(one.early[0], one.system(1, late)) for one in drawn], items)


def _detectable(found: Sequence[Found], measure: str) -> float:
    return statistics.fmean(d for one in found if (d := one[measure].detectable) is not None)


# Report ------------------------------------------------------------------------------------------------------------


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    for line in (header, ["-" * width for width in widths], *rows):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")


TITLES = {
    "same model": "Equal models: one model, two seeds (nominal: 5 %)",
    "same coin": "Equal systems: two checkpoints by a fair coin, two seeds (nominal: 5 %)",
    "different": "The early and the late checkpoint",
}
COLUMNS = ("items", "measure", "p alone, %", "found after Holm, %", "interval without 0, %")


def report(found: Sequence[Rate], powers: Sequence[Power]) -> None:
    for pair, title in TITLES.items():
        print(f"\n{title}\n")
        lines = [one for one in found if one.pair == pair]
        table(COLUMNS, [[str(o.items), o.measure, str(o.alone), str(o.holm), str(o.interval)] for o in lines])
    print("\nA true difference as large as the comparison says it finds in 80 % (level of the strictest measure)\n")
    table(
        ("items", "measure", "stated as detectable", "true difference", "found, %"),
        [
            [str(o.items), o.measure, f"{o.detectable:.3g}", f"{o.difference:.3g}", str(o.found or "too small")]
            for o in powers
        ],
    )


def main() -> None:
    arguments = parse()
    torch.set_num_threads(1)
    transformers_logging.disable_progress_bar()
    began = time.monotonic()
    items = ITEMS[:2] if arguments.quick else ITEMS
    count = 24 if arguments.quick else arguments.repeats
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        early, late = checkpoints(folder, arguments.seed)
        drawn = repeats(early, late, count, max(items), arguments.seed)
        pairs: Mapping[str, list[tuple[list[HeldoutAnswer], list[HeldoutAnswer]]]] = {
            "same model": [one.early for one in drawn],
            "same coin": [(one.system(0, 0.5), one.system(1, 0.5)) for one in drawn],
            "different": [(one.early[0], one.late[1]) for one in drawn[: count // 2]],
        }
        found: list[Rate] = []
        whole: dict[str, float] = {}
        for number in items:
            for pair, answers in pairs.items():
                results = comparisons(folder, answers, number)
                found += rates(pair, number, results)
                if pair == "different":
                    whole = {name: abs(statistics.fmean(r[name].difference.mean for r in results)) for name in TARGETS}
        some = drawn[: count // 2]
        powers = [power(folder, some, name, number, whole[name]) for number in items for name in TARGETS]
    print(f"{count} repeats; {count // 2} for different systems; {time.monotonic() - began:.0f} s")
    report(found, powers)
    if arguments.report:
        write_report(arguments.report, count, found, powers)


def write_report(path: Path, count: int, found: Sequence[Rate], powers: Sequence[Power]) -> None:
    content: dict[str, Any] = {
        "repeats": count,
        "level": LEVEL,
        "rates": [asdict(one) for one in found],
        "power": [asdict(one) for one in powers],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=400, help="comparisons of equal systems; half as many of others")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--report", type=Path, help="where to write the numbers as JSON")
    parser.add_argument("--quick", action="store_true", help="24 repeats with 20 and 50 items")
    return parser.parse_args()


if __name__ == "__main__":
    main()
