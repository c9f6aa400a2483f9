"""Which metric tells models apart, and which data have answers short enough to be met exactly:

    python benchmarks/metric_choice.py --data FILE...             # the share of short references in each file
    python benchmarks/metric_choice.py --models RUN:MODEL RUN:MODEL   # how many prompts each metric needs
    python benchmarks/metric_choice.py --models FILE FILE --references FILE   # the same of stored answers

The models were measured on the same held-out examples, with evaluation.samples for answers at temperature 1. Of each
measure the second table gives the paired difference, its standard error, their ratio, and the prompts after which a
difference of that size is found in four of five cases: ((1.96 + 0.84) · sd / difference)².
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sacrebleu import sentence_chrf

from spintune.data.sources import Source, read_sources
from spintune.errors import SpintuneError
from spintune.evaluation.answers import file_rows, item_ids, pair_answers, read_answers
from spintune.evaluation.comparison import MeasuredItems
from spintune.evaluation.contenders import tables
from spintune.evaluation.metric_choice import SHORT_SHARE, SHORT_WORDS
from spintune.text.words import split_words

END = "<|endoftext|>"
"""Ends the completions of some public files."""


def shares(files: Sequence[Path]) -> list[tuple[str, int, float]]:
    """Name, references and share of short ones of each file, the largest share first. Unreadable files are named."""
    found = []
    for path in files:
        try:
            examples = read_sources([Source(str(path))], 0).examples
        except SpintuneError as error:
            print(f"left out: {error}")
            continue
        lengths = [len(split_words(example.answer.removesuffix(END))) for example in examples]
        found.append((path.name, len(lengths), sum(length <= SHORT_WORDS for length in lengths) / len(lengths)))
    return sorted(found, key=lambda one: -one[2])


def print_shares(files: Sequence[Path]) -> None:
    found = shares(files)
    for name, count, share in found:
        print(f"{share:6.3f}  {count:6,}  {name}")
    sides = [[share for _, _, share in found if (share >= SHORT_SHARE) is short] for short in (True, False)]
    for side, word in zip(sides, ("short", "long"), strict=True):
        if side:
            print(f"{len(side)} files of {word} answers: share from {min(side):.3f} to {max(side):.3f}")


def chrf(name: str, references: Path | None) -> MeasuredItems:
    """chrF of greedy answers, those of RUN:MODEL or of a file; not a metric of spintune's."""
    if references:
        pairs = pair_answers(read_answers(Path(name)), read_answers(references)).pairs
        texts = [(one.answer, other.reference or other.answer) for one, other in pairs]
        return MeasuredItems(dict(zip(item_ids([one for one, _ in pairs]), map(_chrf, texts), strict=True)))
    folder, _, model = name.partition(":")
    rows = [row.values for row in file_rows(Path(folder) / "eval/heldout" / model / "answers.jsonl")]
    return MeasuredItems({row["id"]: _chrf((row["answer"], row["reference"])) for row in rows})


def _chrf(texts: tuple[str, str]) -> float:
    answer, reference = texts
    return float(sentence_chrf(answer, [reference]).score / 100)


def print_power(first: str, second: str, references: Path | None) -> None:
    measured = list(tables([first, second], references).values())
    both = [{**table, "chrf": chrf(name, references)} for table, name in zip(measured, (first, second), strict=True)]
    print(f"{'measure':<18}{'first':>9}{'second':>9}{'difference':>12}{'error':>9}{'ratio':>8}{'prompts':>9}")
    for name, one in both[0].items():
        other = both[1].get(name)
        if other is None or one.better is None:
            continue
        ids = [id for id in one.values if id in other.values]
        scale = sum(one.weights[id] for id in ids) / len(ids) if one.weights else 1.0
        values = [np.array([table.values[id] / scale for id in ids]) for table in (one, other)]
        gap = values[1] - values[0]
        error = gap.std(ddof=1) / math.sqrt(len(gap))
        ratio = abs(gap.mean()) / error if error else 0.0
        prompts = f"{math.ceil(len(gap) * (2.8 / ratio) ** 2):,}" if ratio > 0.05 else "-"
        print(
            f"{name:<18}{values[0].mean():9.4f}{values[1].mean():9.4f}{gap.mean():12.4f}{error:9.4f}"
            f"{ratio:8.1f}{prompts:>9}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[])
    parser.add_argument("--models", nargs=2, metavar="RUN:MODEL")
    parser.add_argument("--references", type=Path)
    options = parser.parse_args()
    if options.data:
        print_shares(options.data)
    if options.models:
        print_power(*options.models, options.references)


if __name__ == "__main__":
    main()
