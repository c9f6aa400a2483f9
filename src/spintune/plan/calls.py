"""Which rows a recipe computes at once: the steps of a stage, and the call of the model that needs the most memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from spintune.engine.query import Query, pack
from spintune.plan.rows import RowSizes
from spintune.recipe import Recipe, SftSection, SpinSection
from spintune.training.batches import steps_by_rows, steps_by_tokens

_LOOKED_AT = 200
"""Steps among which the largest call is looked for."""


@dataclass(frozen=True)
class Calls:
    """The optimizer steps of a stage.

    Attributes:
        steps: optimizer steps.
        rows: rows, or pairs, over all of them.
        tokens: that the model reads in them.
        scored: tokens whose probability is trained.
        largest: the call that needs the most memory.
        several: whether a step takes more than one call, whose gradients are added.
    """

    steps: int
    rows: int
    tokens: int
    scored: int
    largest: tuple[Query, ...]
    several: bool


@dataclass(frozen=True)
class Sharing:
    """How a step is cut into calls.

    Attributes:
        ranks: processes that share each step.
        squares: whether memory grows with the square of lengths, as where T5 keeps every weight of its attention.
    """

    ranks: int = 1
    squares: bool = False

    def weight(self, call: Sequence[Query]) -> float:
        """How much memory a call takes beside others: its tokens, and of T5 the squares of its lengths as well."""
        tokens = sum(query.tokens for query in call)
        if not self.squares:
            return tokens + sum(len(answer) for query in call for answer in query.responses) / 2**20
        return tokens + sum(len(query.prompt) ** 2 + sum(len(a) ** 2 for a in query.responses) for query in call) / 400


def sft_calls(recipe: Recipe, section: SftSection, rows: RowSizes, sharing: Sharing) -> Calls:
    """The calls of SFT."""
    lengths, seed = rows.lengths, recipe.seed
    if rows.each == 1:
        steps = steps_by_tokens(lengths, section.tokens_per_step, section.epochs, seed)[: section.max_steps]
        count, seen = len(steps), [index for step in steps for index in step]
        read = sum(lengths[index] for index in seen)
        scored = sum(rows.answers[index] for index in seen)
        total = len(seen)
    else:
        steps = steps_by_tokens(lengths, section.tokens_per_step, 1.0, seed)
        whole = max(1, round(len(steps) * rows.each * section.epochs))
        count = min(whole, section.max_steps or whole)
        factor = rows.each * section.epochs * count / whole
        read, scored = round(sum(lengths) * factor), round(sum(rows.answers) * factor)
        total = round(len(lengths) * factor)
    return Calls(
        count, total, read, scored, *_largest(recipe, [_sft_queries(rows, s) for s in steps[:_LOOKED_AT]], sharing)
    )


def spin_calls(recipe: Recipe, section: SpinSection, iteration: int, rows: RowSizes, sharing: Sharing) -> Calls:
    """The calls of an iteration's training. Generated answers are taken to be as long as real ones."""
    epochs, replayed = section.in_iteration(iteration).epochs, min(section.replay, iteration - 1)
    pairs = rows.rows * (1 + replayed)
    steps = steps_by_rows(min(pairs, len(rows.prompts)), section.pairs_per_step, 1.0, recipe.seed)
    first = section.loss_in(iteration).needs_first_answers and iteration > 1
    answers = 1 + section.negatives + first
    of_pair = sum(rows.prompts) + answers * sum(rows.answers)
    seen = epochs * pairs / max(1, len(rows.prompts))
    count = math.ceil(pairs / section.pairs_per_step) * math.ceil(epochs) if epochs == int(epochs) else 0
    count = count or max(1, round(math.ceil(pairs / section.pairs_per_step) * epochs))
    queries = [_pair_queries(rows, step, answers) for step in steps[:_LOOKED_AT]]
    scored = round(seen * answers * sum(rows.answers))
    return Calls(count, round(pairs * epochs), round(seen * of_pair), scored, *_largest(recipe, queries, sharing))


def _sft_queries(rows: RowSizes, step: Sequence[int]) -> list[Query]:
    return [Query(_ids(rows.prompts[index]), (_ids(rows.answers[index]),)) for index in step]


def _pair_queries(rows: RowSizes, step: Sequence[int], answers: int) -> list[Query]:
    return [Query(_ids(rows.prompts[index]), (_ids(rows.answers[index]),) * answers) for index in step]


def _ids(count: int) -> tuple[int, ...]:
    return (0,) * count


def _largest(recipe: Recipe, steps: Sequence[Sequence[Query]], sharing: Sharing) -> tuple[tuple[Query, ...], bool]:
    """The largest call of some steps, and whether a step takes several."""
    largest: list[Query] = []
    several, ranks = False, sharing.ranks
    for step in steps:
        ordered = sorted(step, key=lambda query: query.tokens) if ranks > 1 else step
        for rank in range(min(ranks, len(ordered))):
            calls = pack(ordered[rank::ranks], lambda query: query.tokens, recipe.tokens_per_forward)
            several = several or len(calls) > 1
            largest = max([largest, *calls], key=sharing.weight)
    return tuple(largest), several
