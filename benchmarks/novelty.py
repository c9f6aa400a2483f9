"""Builds pools of novel instructions, and says what that costs here and with the reference algorithm.

    python benchmarks/novelty.py [--data FILE ...] [--sizes 1000,52000,...] [--threshold 0.7] [--seed 0] [--json FILE]
    python benchmarks/novelty.py --report FILE      what an earlier --json FILE holds, measured nothing anew

Needs ``pip install "spintune[dev]"`` for the ``rouge_score`` package. One process on one core; seconds are processor
time, latencies are by the clock. The two sides:

* spintune: ``NoveltyIndex.admit``, one candidate after the other;
* reference: Self-Instruct's filter, ``RougeScorer.score`` of each candidate with every text of the pool; and Alpaca's,
  which tokenises each text once. Both are run in full on a small pool, where the texts that are kept, the most similar
  text of each rejected one, and its score must be the same as the index's, to the last bit (the exit code is 1 if
  not). For larger pools the time of a pair, measured on a sample of the largest pool, is multiplied by the number of
  pairs: an extrapolation, for a single core.

The candidates: the first clause of an instruction, then clauses of others, of inputs and of answers, up to a random
length, with one long word in seven replaced by another; three in ten candidates repeat an earlier one with none to a
third of its words changed, as a teacher does. Clauses come from the files given, or from the built-in seeds.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from machine import busy_seconds, describe, peak_memory
from report import DISTURBED

from spintune.data.novelty import NoveltyIndex
from spintune.data.sources import Source, read_source
from spintune.errors import DataError
from spintune.text.words import split_words

SIZES = (1_000, 5_000, 20_000, 52_000, 100_000, 200_000)
FULL = 500
"""Pool that the reference algorithm builds in full."""
SAMPLE = 40, 100
"""Candidates, and texts of the pool for each, whose pairs the reference is timed on."""
QUERIES = 500
BLOCK = 1_000
"""Candidates that are written between two timed stretches."""
REPEATED, REPLACED = 0.3, 0.15
WORDS = (6, 8, 10, 12, 14, 16, 20, 26)
"""Lengths that a candidate grows to."""

PLAIN = re.compile(r"[A-Za-z',.?!;:\s-]+")
"""What a clause may consist of: code, tables and sums are left out."""
CLAUSE = re.compile(
    r"(?<=[.?!;:,])\s+|\s+(?=(?:and|or|that|which|with|for|in|from|about|so|who|where|when|if|because)\b)"
)


def clauses(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """First clauses of the instructions; and all others, those of inputs and answers included."""
    first, others = [], []
    for path in paths:
        for example in read_source(Source(path)).examples:
            instruction, _, context = example.prompt[-1].content.partition("\n\n")
            begin, *rest = [clause for clause in CLAUSE.split(instruction.strip()) if clause]
            first.append(begin)
            others += rest
            for line in (context + "\n" + example.answer).splitlines():
                others += [clause for clause in CLAUSE.split(line) if 2 <= len(clause.split()) <= 12]
    return [clause for clause in first if PLAIN.fullmatch(clause)], [c for c in others if PLAIN.fullmatch(c)]


def candidates(first: Sequence[str], others: Sequence[str], seed: int) -> Iterator[str]:
    """Endless instructions as a teacher might write them."""
    vocabulary = sorted({word for clause in (*first, *others) for word in clause.split() if len(word) > 3})
    draw = random.Random(seed)
    written: list[str] = []
    while True:
        if written and draw.random() < REPEATED:
            words = draw.choice(written).split()
            for _ in range(draw.randint(0, max(1, len(words) // 3))):
                place = draw.randrange(len(words))
                if draw.random() < 0.3 and len(words) > 4:
                    del words[place]
                else:
                    words[place] = draw.choice(vocabulary)
            yield " ".join(words)
        else:
            length = draw.choice(WORDS)
            words = draw.choice(first).split()
            while len(words) < length:
                words += draw.choice(others).split()
            words = [draw.choice(vocabulary) if len(w) > 3 and draw.random() < REPLACED else w for w in words]
            written.append(" ".join(words))
            yield written[-1]


def agreement(stream: Iterator[str], threshold: float) -> dict[str, Any]:
    """Builds one small pool with the reference algorithm in full and with the index, and compares the verdicts."""
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"], use_stemmer=False)
    seen: list[str] = []
    pool: list[str] = []
    theirs: list[tuple[int, float] | None] = []
    started = time.process_time()
    while len(pool) < FULL:
        text = next(stream)
        scores = [scorer.score(text, other)["rougeL"].fmeasure for other in pool]
        best = max(scores, default=0.0)
        seen.append(text)
        theirs.append((scores.index(best), best) if best > threshold else None)
        if best <= threshold:
            pool.append(text)
    reference_seconds = time.process_time() - started
    index = NoveltyIndex(threshold, ties="float")
    started = time.process_time()
    verdicts = index.extend(seen)
    seconds = time.process_time() - started
    ours = [None if v.novel else (v.nearest, v.score) for v in verdicts]
    exact = NoveltyIndex(threshold).extend(seen)
    return {
        "pool": len(pool),
        "candidates": len(seen),
        "identical": ours == theirs,
        "decided_otherwise_by_exact_ties": sum(a.novel != b.novel for a, b in zip(exact, verdicts, strict=True)),
        "reference_seconds": reference_seconds,
        "seconds": seconds,
    }


def growth(
    stream: Iterator[str], queries: Sequence[str], sizes: Sequence[int], threshold: float
) -> tuple[list[dict[str, Any]], list[str]]:
    """Builds one pool up to the largest size, with a row at each; and the pool's texts."""
    index = NoveltyIndex(threshold)
    pool: list[str] = []
    seen = pairs = computed = 0
    seconds = 0.0
    rows: list[dict[str, Any]] = []
    before = peak_memory()
    while len(rows) < len(sizes):
        for text in itertools.islice(stream, BLOCK):
            pairs += len(index)
            seen += 1
            computed -= index.compared
            started = time.process_time()
            novel = index.admit(text).novel
            seconds += time.process_time() - started
            computed += index.compared
            if novel:
                pool.append(text)
            if novel and len(index) == sizes[len(rows)]:
                memory = peak_memory() - before
                rows.append(_row(index, seen, pairs, computed, seconds, memory, queries))
                print(f"{len(index):,} texts in {seconds:.1f} s", file=sys.stderr, flush=True)
                if len(rows) == len(sizes):
                    break
    return rows, pool


def _row(
    index: NoveltyIndex, seen: int, pairs: int, computed: int, seconds: float, memory: float, queries: Sequence[str]
) -> dict[str, Any]:
    return {
        "pool": len(index),
        "candidates": seen,
        "seconds": seconds,
        "pairs": pairs,
        "lcs": computed,
        "peak_memory_gb": memory,
        "verdict_microseconds": latencies(index.verdict, queries),
        "nearest_10_microseconds": latencies(lambda text: index.nearest(text, 10), queries),
    }


def latencies(call: Callable[[str], object], queries: Sequence[str]) -> dict[str, float]:
    """Median and 99th percentile [µs]."""
    taken = []
    for text in queries:
        started = time.perf_counter()
        call(text)
        taken.append((time.perf_counter() - started) * 1e6)
    return {"median": statistics.median(taken), "p99": statistics.quantiles(taken, n=100)[98]}


def reference_pair(pool: Sequence[str], queries: Sequence[str], seed: int) -> dict[str, float]:
    """Seconds a pair of the two reference algorithms, on a sample of the pool."""
    from rouge_score import rouge_scorer

    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=False)
    draw = random.Random(seed)
    count, others = SAMPLE
    sample = [(text, draw.choices(pool, k=others)) for text in queries[:count]]
    started = time.process_time()
    for text, texts in sample:
        for other in texts:
            scorer.score(text, other)
    self_instruct = time.process_time() - started
    tokens = [
        (split_words(text, "reference"), [split_words(other, "reference") for other in texts]) for text, texts in sample
    ]
    started = time.process_time()
    for words, others_words in tokens:
        for other_words in others_words:
            rouge_scorer._score_lcs(words, other_words)
    alpaca = time.process_time() - started
    pairs = count * others
    return {"self_instruct": self_instruct / pairs, "alpaca": alpaca / pairs}


def measure(paths: Sequence[str], sizes: Sequence[int], threshold: float, seed: int) -> dict[str, Any]:
    facts = {"machine": describe(), "versions": {name: version(name) for name in ("numpy", "rapidfuzz", "rouge-score")}}
    first, others = clauses(paths)
    texts = list(itertools.islice(candidates(first, others, seed), 10_000))
    words = [split_words(text, "reference") for text in texts]
    busy, own, began = busy_seconds(), time.process_time(), time.monotonic()
    agreed = agreement(candidates(first, others, seed), threshold)
    queries = list(itertools.islice(candidates(first, others, seed + 1), QUERIES))
    rows, pool = growth(candidates(first, others, seed), queries, sizes, threshold)
    pair = reference_pair(pool, queries, seed)
    minutes = (time.monotonic() - began) / 60
    foreign = (busy_seconds() - busy) - (time.process_time() - own)
    return {
        **facts,
        "data": list(paths),
        "threshold": threshold,
        "seed": seed,
        "clauses": {"first": len(first), "others": len(others)},
        "examples": texts[1:6],
        "mean_words": statistics.mean(map(len, words)),
        "vocabulary": len({word for text in words for word in text}),
        "agreement": agreed,
        "reference_seconds_per_pair": pair,
        "rows": rows,
        "minutes": minutes,
        "foreign_cores": max(0.0, foreign) / (60 * minutes),
    }


def report(results: dict[str, Any]) -> int:
    """Prints what was measured; the exit code."""
    machine, agreed, pair = results["machine"], results["agreement"], results["reference_seconds_per_pair"]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    print(f"{machine['processor']['name']}, one core, Python {machine['python']}, {versions}")
    print(
        f"Candidates from {', '.join(Path(path).name for path in results['data'])}: "
        f"{results['clauses']['first']} first clauses, {results['clauses']['others']} others; in 10,000 candidates "
        f"{results['mean_words']:.1f} words each and {results['vocabulary']:,} different ones. Some:"
    )
    for text in results["examples"]:
        print(f"* {text}")
    if results["foreign_cores"] > DISTURBED:
        print(f"\nWarning: other work kept {results['foreign_cores']:.1f} cores busy; latencies are too long.")
    print(
        f"\nIn full, {agreed['candidates']} candidates for a pool of {agreed['pool']}: reference "
        f"{agreed['reference_seconds']:.1f} s, spintune {1000 * agreed['seconds']:.1f} ms, "
        f"{agreed['reference_seconds'] / agreed['seconds']:,.0f} x; verdicts, most similar texts and scores "
        f"{'identical' if agreed['identical'] else 'DIFFERENT'}. Exact arithmetic at the threshold decides "
        f"{agreed['decided_otherwise_by_exact_ties']} otherwise."
    )
    print(
        f"A pair of the largest pool: {1e6 * pair['self_instruct']:.0f} µs in RougeScorer.score (Self-Instruct), "
        f"{1e6 * pair['alpaca']:.0f} µs between tokens (Alpaca).\n"
    )
    header = [
        "pool", "candidates", "build, s", "µs a candidate", "verdict, µs", "p99", "nearest 10, µs", "p99",
        "pairs", "with an LCS", "peak MB", "Self-Instruct, h", "Alpaca, h", "speed-up",
    ]  # fmt: skip
    table = []
    for row, before in zip(results["rows"], [{"candidates": 0, "seconds": 0.0}, *results["rows"]], strict=False):
        hours = {name: row["pairs"] * seconds / 3600 for name, seconds in pair.items()}
        marginal = (row["seconds"] - before["seconds"]) / (row["candidates"] - before["candidates"])
        verdict, nearest = row["verdict_microseconds"], row["nearest_10_microseconds"]
        table.append(
            [
                f"{row['pool']:,}",
                f"{row['candidates']:,}",
                f"{row['seconds']:.2f}",
                f"{1e6 * marginal:.0f}",
                f"{verdict['median']:.0f}",
                f"{verdict['p99']:.0f}",
                f"{nearest['median']:.0f}",
                f"{nearest['p99']:.0f}",
                f"{row['pairs']:.2e}",
                f"{row['lcs']:.2e} ({100 * row['lcs'] / row['pairs']:.3f} %)",
                f"{1000 * row['peak_memory_gb']:.0f}",
                f"{hours['self_instruct']:.3g}",
                f"{hours['alpaca']:.3g}",
                f"{3600 * hours['alpaca'] / row['seconds']:,.0f} x",
            ]
        )
    widths = [max(len(line[column]) for line in [header, *table]) for column in range(len(header))]
    for line in [header, ["-" * width for width in widths], *table]:
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |")
    print(
        "\nbuild: processor time of the whole pool, tokenising included; µs a candidate: since the row above;\n"
        "h: processor hours, extrapolated; speed-up: over Alpaca's, the faster one;\n"
        "peak MB: growth of the process, the list of its texts included"
    )
    return 0 if agreed["identical"] else 1


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", nargs="+", default=["builtin:seeds"], help="builtin:NAME or files that spintune reads"
    )
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), type=_sizes, help="of the pool, rising")
    parser.add_argument("--threshold", type=float, default=0.7, help="ROUGE-L above which a candidate is rejected")
    parser.add_argument("--seed", type=int, default=0, help="of the candidates")
    parser.add_argument("--json", type=Path, help="file for everything that was measured")
    parser.add_argument("--report", type=Path, help="print an earlier --json file instead of measuring")
    arguments = parser.parse_args()
    if sorted(set(arguments.sizes)) != arguments.sizes or arguments.sizes[0] < 1:
        parser.error("--sizes are numbers above 0, rising")
    return arguments


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def main() -> int:
    arguments = parse()
    if arguments.report:
        return report(json.loads(arguments.report.read_text()))
    if os.getloadavg()[0] > 0.5:
        print(f"warning: load {os.getloadavg()[0]:.1f}; other work disturbs the times", file=sys.stderr)
    results = measure(arguments.data, arguments.sizes, arguments.threshold, arguments.seed)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    return report(results)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except DataError as error:
        sys.exit(str(error))
