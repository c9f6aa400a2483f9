"""The data card: counts, lengths, variety, similarity to the seeds, cost and a sample, for people to judge the data."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from spintune.data.novelty import NoveltyIndex
from spintune.synthesis.decoding import stream
from spintune.synthesis.examples import SeedTask
from spintune.synthesis.filters import FilterCounts
from spintune.synthesis.pipeline import RemovedExample, SynthesisResult
from spintune.teachers.budget import Budget, Cost, replies_in_words
from spintune.text.markdown import block, code, plain, table
from spintune.text.words import WordRule
from spintune.typed_json import JsonObject

SAMPLE = 20
FIRST_WORDS = 20
NEXT_WORDS = 4
_SIMILARITY_BOUNDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 1.0)

_FUNCTION_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an the this that these those my your his her its our their i you he she it we they me us them some any each "
        "every of in on at to for from by with about into as is are was were be do does did can could would should "
        "will and or not following given two three four five",
    )
)


@dataclass(frozen=True)
class WordCount:
    """How many instructions continue with a word."""

    word: str
    count: int


@dataclass(frozen=True)
class Opening:
    """A first word, how many instructions begin with it, and the words that follow it most often."""

    word: str
    count: int
    next: list[WordCount]


@dataclass(frozen=True)
class SimilarityBin:
    """How many instructions have a ROUGE-L above the bound before and up to this one."""

    up_to: float
    count: int


@dataclass(frozen=True)
class SeedSimilarity:
    """ROUGE-L of the instructions with the seed most similar to each."""

    mean: float
    histogram: list[SimilarityBin]


@dataclass(frozen=True)
class SynthesisCard:
    """What card.json holds.

    Attributes:
        stopped: why it stopped before the target, or None.
        decontaminated: examples that were removed for their overlap with evaluation data.
        classification: examples of classification tasks.
        without_input: examples without an input.
        thoughts: replies before which the teacher reasoned.
        left_out: replies to requests without a parameter that the server refuses, by parameter.
        funnel: what each step read, kept and dropped.
        words: lengths of instructions, inputs and outputs. [words]
        sample: rows of some examples.
    """

    teacher: str
    method: str
    seeds: str
    examples: int
    instructions: int
    stopped: str | None
    cost: Cost
    decontaminated: list[RemovedExample]
    classification: int
    without_input: int
    funnel: list[FilterCounts]
    words: dict[str, dict[str, int | float]]
    openings: list[Opening]
    nearest_seed: SeedSimilarity
    sample: list[JsonObject]
    thoughts: int = 0
    left_out: dict[str, int] = field(default_factory=dict)


def describe(
    result: SynthesisResult,
    seeds: Sequence[SeedTask],
    seeds_name: str,
    budget: Budget = Budget(),  # noqa: B008 -- frozen
    word_rule: WordRule = "reference",
    seed: int = 0,
) -> SynthesisCard:
    """The card of what was generated.

    Args:
        seeds_name: file of the seeds, or "builtin:seeds".
        budget: has the prices of the teacher.
        word_rule: the words of ROUGE-L.
        seed: of the sample that the card shows.
    """
    tasks = [one.task for one in result.examples]
    chosen = sorted(stream(seed, "card").sample(range(len(tasks)), min(SAMPLE, len(tasks))))
    return SynthesisCard(
        teacher=result.teacher,
        method=result.method,
        seeds=seeds_name,
        examples=len(tasks),
        instructions=len(result.instructions),
        stopped=result.stopped,
        cost=budget.cost(result.cost),
        decontaminated=result.removed,
        classification=sum(task.classification is True for task in tasks),
        without_input=sum(not task.input for task in tasks),
        funnel=result.counts,
        words={
            "instruction": _lengths(result.instructions),
            "input": _lengths([task.input for task in tasks if task.input]),
            "output": _lengths([task.output or "" for task in tasks]),
        },
        openings=openings(result.instructions),
        nearest_seed=nearest_seed(result.instructions, seeds, word_rule),
        sample=[result.examples[place].to_json() for place in chosen],
        thoughts=result.thoughts,
        left_out=dict(result.left_out),
    )


def _lengths(texts: Sequence[str]) -> dict[str, int | float]:
    """Count, mean, extremes and quantiles of the texts' lengths. [words]"""
    counts = sorted(len(text.split()) for text in texts)
    if not counts:
        return {"count": 0}
    deciles = {f"p{tenth}0": counts[min(len(counts) - 1, len(counts) * tenth // 10)] for tenth in (1, 5, 9)}
    return {"count": len(counts), "mean": statistics.fmean(counts), "min": counts[0], **deciles, "max": counts[-1]}


def openings(instructions: Sequence[str]) -> list[Opening]:
    """The most frequent first words of instructions, each with the words that follow it most often.

    The paper's figure shows verbs and their objects, which takes a parser. Here the following word is the next one that
    is no article, pronoun or preposition.
    """
    following: dict[str, Counter[str]] = {}
    for instruction in instructions:
        first, *rest = re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)?", instruction.lower()) or [""]
        content_word = next((word for word in rest if word not in _FUNCTION_WORDS), "")
        following.setdefault(first, Counter())[content_word] += 1
    firsts = Counter({first: words.total() for first, words in following.items()})
    return [
        Opening(first, count, [WordCount(*pair) for pair in following[first].most_common(NEXT_WORDS)])
        for first, count in firsts.most_common(FIRST_WORDS)
    ]


def nearest_seed(instructions: Sequence[str], seeds: Sequence[SeedTask], word_rule: WordRule) -> SeedSimilarity:
    """ROUGE-L of each instruction with the seed most similar to it."""
    index = NoveltyIndex(1.0, word_rule)
    index.extend([seed.instruction for seed in seeds])
    scores = [near[0][1] if (near := index.nearest(text, 1)) else 0.0 for text in instructions]
    bins = Counter(next(bound for bound in _SIMILARITY_BOUNDS if score <= bound) for score in scores)
    return SeedSimilarity(statistics.fmean(scores), [SimilarityBin(bound, bins[bound]) for bound in _SIMILARITY_BOUNDS])


# Markdown -------------------------------------------------------------------------------------------------------------


def as_markdown(card: SynthesisCard) -> str:
    """The card as a page for readers."""
    steps = [(step.step, f"{step.read:,} {step.unit}", f"{step.kept:,}", _listed(step.dropped)) for step in card.funnel]
    measures = ("count", "mean", "min", "p10", "p50", "p90", "max")
    lengths = [(name, *(f"{row.get(key, 0):.4g}" for key in measures)) for name, row in card.words.items()]
    firsts = [(row.word, str(row.count), ", ".join(map(_next_word, row.next))) for row in card.openings]
    similarities = [(f"{row.up_to:.1f}", str(row.count)) for row in card.nearest_seed.histogram]
    parts = [
        *_introduction(card),
        "## What was dropped",
        table([("step", "read", "kept", "dropped"), *steps]),
        "## Lengths in words",
        table([("", "count", "mean", "min", "10 %", "median", "90 %", "max"), *lengths]),
        "## How instructions begin",
        "![first words and the words that follow them](openings.svg)",
        table([("first word", "instructions", "next words"), *firsts]),
        "## ROUGE-L with the nearest seed",
        f"Mean {card.nearest_seed.mean:.2f}.",
        table([("up to", "instructions"), *similarities]),
    ]
    if card.decontaminated:
        removed = [(one.source or f"{one.evaluation}: item {one.item}", one.ngram) for one in card.decontaminated]
        parts += ["## Removed for their overlap with evaluation data"]
        parts += [table([("evaluation item", "shared words"), *removed])]
    parts += ["## A sample", *map(_shown, card.sample)]
    return "\n\n".join(parts) + "\n"


def _introduction(card: SynthesisCard) -> list[str]:
    cost = card.cost
    stopped = f" Stopped early: {plain(card.stopped)}." if card.stopped else ""
    asked = f"Asked {cost.requests:,} times: {cost.prompt_tokens:,} tokens read, {cost.completion_tokens:,} written"
    dollars = f", ${cost.dollars:,.2f} at the recipe's prices" if cost.dollars else ""
    return [
        f"# {card.examples:,} examples written by {plain(card.teacher)}",
        f"{card.instructions:,} instructions ({plain(card.method)}, seeds: {plain(card.seeds)}); "
        f"{card.classification:,} examples of classification, {card.without_input:,} without input.{stopped}",
        " ".join([f"{asked}{dollars}.", *map(plain, replies_in_words(card.thoughts, card.left_out))]),
        "Nobody has checked these examples. Read the sample before you train on them, and mind the terms of the "
        "teacher's provider.",
    ]


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{reason} {count:,}" for reason, count in sorted(counts.items())) or "none"


def _next_word(following: WordCount) -> str:
    return f"{following.word or '-'} {following.count}"


def _shown(row: JsonObject) -> str:
    """An example as a block of code."""
    fields = [(name, row[name]) for name in ("instruction", "input", "output") if row[name]]
    return f"{code(str(row['id']))}\n\n" + block("\n".join(f"{name}: {content}" for name, content in fields))
