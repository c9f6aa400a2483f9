"""Which pairs can be trained on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from spintune.errors import DataError
from spintune.record_files import Spool
from spintune.records import Answer, Pair

IDENTICAL = "identical"
EMPTY = "empty"


@dataclass(frozen=True)
class FilteredPairs:
    """Pairs to train on, and the number of pairs dropped, by reason. Kept + dropped = read."""

    kept: Sequence[Pair]
    dropped: Counter[str]


def without_degenerate(pairs: Iterable[Pair], keep_identical: bool = False) -> FilteredPairs:
    """Drops pairs from which nothing can be learned: all generated answers equal the real one, or one has no token.

    An answer without text is an end token, whose likelihood can be lowered. Only given answers have no token, and only
    where a template ends none.

    The margin of an answer that equals the real one is always 0. Such an answer stays beside others: without it, those
    would weigh more than where none is equal, and p_data would not be a fixed point. Losses that read more than the
    margin keep pairs of equal answers too, since they hold single ratios at 0.
    """
    kept, dropped = Spool(Pair), Counter[str]()
    for pair in pairs:
        if reason := drop_reason(pair, keep_identical):
            dropped[reason] += 1
        else:
            kept.add(pair)
    return FilteredPairs(kept.records(), dropped)


def drop_reason(pair: Pair, keep_identical: bool) -> str | None:
    """Why :func:`without_degenerate` drops a pair; None where it does not."""
    if not all(answer.ids for answer in pair.generated):
        return EMPTY
    if not keep_identical and all(answer.ids == pair.real.ids for answer in pair.generated):
        return IDENTICAL
    return None


def with_first_answers(pairs: Sequence[Pair], first: Mapping[str, Answer]) -> Sequence[Pair]:
    """Adds iterate 0's answers, given by example id. Raises DataError when one is missing."""
    if missing := [pair.example_id for pair in pairs if pair.example_id not in first]:
        raise DataError(
            f"spin.loss reads iterate 0's answers, and {len(missing)} of {len(pairs)} prompts have none "
            f"(example {missing[0]}); run iteration 1 again, or choose another spin.loss"
        )
    found = Spool(Pair)
    for pair in pairs:
        found.add(replace(pair, first=first[pair.example_id]))
    return found.records()
