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
    """Pairs to train on, and the number of generated answers dropped, by reason. Answers kept + dropped = read."""

    kept: Sequence[Pair]
    dropped: Counter[str]


def without_degenerate(pairs: Iterable[Pair], keep_identical: bool = False) -> FilteredPairs:
    """Drops generated answers from which nothing can be learned, and pairs that have no other.

    These are empty answers, and answers equal to the real one, whose margin is always 0. Losses that read more than
    the margin keep identical answers: they hold single ratios at 0, and without them p_data is not a fixed point.
    """
    kept, dropped = Spool(Pair), Counter[str]()
    for pair in pairs:
        if found := useful(pair, keep_identical, dropped):
            kept.add(found)
    return FilteredPairs(kept.records(), dropped)


def useful(pair: Pair, keep_identical: bool, dropped: Counter[str]) -> Pair | None:
    """The pair with those of its answers that :func:`without_degenerate` keeps; counts the others in ``dropped``."""
    kept = []
    for answer in pair.generated:
        if answer.ids == pair.real.ids and not keep_identical:
            dropped[IDENTICAL] += 1
        elif not answer.text.strip():
            dropped[EMPTY] += 1
        else:
            kept.append(answer)
    return replace(pair, generated=tuple(kept)) if kept else None


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
