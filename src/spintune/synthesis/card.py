"""What a teacher wrote, for a person to judge: counts, lengths, variety, nearness to the seeds, cost, and a sample."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from spintune.data.novelty import NoveltyIndex
from spintune.data.rouge import Tokeniser
from spintune.synthesis.decoding import stream
from spintune.synthesis.examples import GeneratedExample, SeedTask
from spintune.synthesis.filters import FilterCounts

SAMPLE = 20
FIRST_WORDS = 20
NEXT_WORDS = 4
_NEAR = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)


def describe(
    written: Sequence[GeneratedExample],
    seeds: Sequence[SeedTask],
    funnels: Sequence[FilterCounts],
    tokeniser: Tokeniser,
    seed: int,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """The card as plain values. ``facts`` say who wrote it, with what settings, and what it cost."""
    tasks = [one.task for one in written]
    instructions = list({task.instruction: None for task in tasks})
    chosen = sorted(stream(seed, "card").sample(range(len(written)), min(SAMPLE, len(written))))
    return {
        **facts,
        "examples": len(tasks),
        "instructions": len(instructions),
        "classification": sum(task.classification is True for task in tasks),
        "without_input": sum(not task.input for task in tasks),
        "funnel": [funnel.to_json() for funnel in funnels],
        "words": {
            "instruction": _lengths(instructions),
            "input": _lengths([task.input for task in tasks if task.input]),
            "output": _lengths([task.output or "" for task in tasks]),
        },
        "openings": openings(instructions),
        "nearest_seed": nearest_seed(instructions, seeds, tokeniser),
        "sample": [written[place].to_json() for place in chosen],
    }


def _lengths(texts: Sequence[str]) -> dict[str, float]:
    """Of texts, in words. [words]"""
    counts = sorted(len(text.split()) for text in texts)
    if not counts:
        return {"count": 0}
    deciles = {f"p{tenth}0": counts[min(len(counts) - 1, len(counts) * tenth // 10)] for tenth in (1, 5, 9)}
    return {"count": len(counts), "mean": statistics.fmean(counts), "min": counts[0], **deciles, "max": counts[-1]}


def openings(instructions: Sequence[str]) -> list[dict[str, Any]]:
    """How instructions begin: the most frequent first words, each with the words that follow it most often.

    A plain stand-in for the paper's figure of verbs and their objects, which needs a parser: the second word is the
    next one that is no article, pronoun or preposition.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for instruction in instructions:
        first, *rest = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", instruction.lower()) or [""]
        pairs[first, next((word for word in rest if word not in _SMALL), "")] += 1
    firsts: Counter[str] = Counter()
    for (first, _), count in pairs.items():
        firsts[first] += count
    return [
        {
            "word": first,
            "count": count,
            "next": [
                {"word": word, "count": times}
                for (_, word), times in Counter({p: n for p, n in pairs.items() if p[0] == first}).most_common(
                    NEXT_WORDS
                )
            ],
        }
        for first, count in firsts.most_common(FIRST_WORDS)
    ]


_SMALL = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those my your his her its our their i you he she it we they me us them some any each "
        "every of in on at to for from by with about into as is are was were be do does did can could would should "
        "will and or not following given two three four five",
    )
)


def nearest_seed(instructions: Sequence[str], seeds: Sequence[SeedTask], tokeniser: Tokeniser) -> dict[str, Any]:
    """ROUGE-L of each instruction with the seed that it is nearest to: mean, and how many up to each bound."""
    index = NoveltyIndex(1.0, tokeniser)
    index.extend([seed.instruction for seed in seeds])
    scores = [near[0][1] if (near := index.nearest(text, 1)) else 0.0 for text in instructions]
    bounds = [{"up_to": bound, "count": 0} for bound in _NEAR]
    for score in scores:
        next(bound for bound in bounds if score <= bound["up_to"])["count"] += 1
    return {"mean": statistics.fmean(scores), "histogram": bounds}


def as_markdown(card: dict[str, Any]) -> str:
    """The card for readers."""
    cost = card["cost"]
    parts = [
        f"# {card['examples']:,} examples written by {card['teacher']}",
        f"{card['instructions']:,} instructions ({card['method']}, seeds: {card['seeds']}); "
        f"{card['classification']:,} examples of classification, {card['without_input']:,} without input."
        + (f" Stopped early: {card['stopped']}." if card["stopped"] else ""),
        f"Asked {cost['requests']:,} times: {cost['prompt_tokens']:,} tokens read, "
        f"{cost['completion_tokens']:,} written"
        + (f", ${cost['dollars']:,.2f} at the recipe's prices." if cost["dollars"] else "."),
        "Nobody has checked these examples. Read the sample before you train on them, and mind the terms of the "
        "teacher's provider.",
        "## What was dropped",
        _table(
            ("step", "read", "kept", "dropped"),
            [
                (f"{f['step']}", f"{f['read']:,} {f['unit']}", f"{f['kept']:,}", _listed(f["dropped"]))
                for f in card["funnel"]
            ],
        ),
        "## Lengths in words",
        _table(
            ("", "count", "mean", "min", "10 %", "median", "90 %", "max"),
            [
                (name, *(f"{row.get(key, 0):.4g}" for key in ("count", "mean", "min", "p10", "p50", "p90", "max")))
                for name, row in card["words"].items()
            ],
        ),
        "## How instructions begin",
        "![first words and the words that follow them](openings.svg)",
        _table(
            ("first word", "instructions", "next words"),
            [
                (row["word"], str(row["count"]), ", ".join(f"{n['word'] or '-'} {n['count']}" for n in row["next"]))
                for row in card["openings"]
            ],
        ),
        "## ROUGE-L with the nearest seed",
        f"Mean {card['nearest_seed']['mean']:.2f}.",
        _table(
            ("up to", "instructions"),
            [(f"{row['up_to']:.1f}", str(row["count"])) for row in card["nearest_seed"]["histogram"]],
        ),
    ]
    if card["decontaminated"]:
        parts += [
            "## Removed for their overlap with evaluation data",
            _table(
                ("evaluation", "item", "shared words"),
                [(r["evaluation"], str(r["item"]), r["ngram"]) for r in card["decontaminated"]],
            ),
        ]
    parts += ["## A sample", *map(_shown, card["sample"])]
    return "\n\n".join(parts) + "\n"


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heading, ["---"] * len(heading), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "none"


def _shown(row: dict[str, Any]) -> str:
    """An example as quoted text: what a teacher wrote is shown, not rendered."""
    fields = [(name, row[name]) for name in ("instruction", "input", "output") if row[name]]
    text = "\n".join(f"{name}: {content}" for name, content in fields)
    return f"`{row['id']}`\n\n" + "\n".join(f"    {line}" for line in text.split("\n"))
