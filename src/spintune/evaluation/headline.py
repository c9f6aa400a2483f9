"""What a comparison found, in one sentence."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from spintune.evaluation.comparison import Comparison, Difference, listed

_LISTED = 3
"""Measures or pairs of models up to which a sentence names them."""


def headline(comparison: Comparison) -> str:
    """What a comparison found, in one sentence: about two models all of it, about more the findings alone."""
    if len(comparison.conclusions) == 1:
        return comparison.conclusions[0]
    found = [one for one in comparison.differences if one.finding]
    compared = dict.fromkeys((one.first, one.second) for one in comparison.differences)
    if not found:
        counts = sorted({one.items for one in comparison.differences})
        items = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        return f"{_all_alike(list(compared))} with {items} items"
    won = _who_is_better(found)
    unlike = dict.fromkeys((one.first, one.second) for one in found)
    level = [pair for pair in compared if pair not in unlike]
    said = [*_sentences(won, len(comparison.items))]
    others = [pair for pair in unlike if not {pair, pair[::-1]} & won.keys()]
    if others and (not won or len(others) <= _LISTED):
        said.append(listed([f"{one} is different from {other}" for one, other in others]))
    if won and level and len(level) <= _LISTED:
        said.append(f"{listed([f'{one} and {other}' for one, other in level])} cannot be told apart")
    return "; ".join(said)


def _all_alike(pairs: Sequence[tuple[str, str]]) -> str:
    """That no pair differs; the models of the pairs may all be compared with one of them."""
    names = list(dict.fromkeys(name for pair in pairs for name in pair))
    common = [name for name in names if all(name in pair for pair in pairs)]
    if len(common) != 1:
        return f"{listed(names)} cannot be told apart"
    return f"{listed([name for name in names if name != common[0]])} cannot be told apart from {common[0]}"


def _who_is_better(found: Sequence[Difference]) -> dict[tuple[str, str], tuple[str, ...]]:
    """By (better, worse) model: the measures that say so. Those of which neither direction is better are left out."""
    won: dict[tuple[str, str], tuple[str, ...]] = {}
    for one in found:
        names = (one.first, one.second) if one.finding == "better" else (one.second, one.first)
        if one.finding != "different":
            won[names] = (*won.get(names, ()), one.measure)
    return won


def _sentences(won: Mapping[tuple[str, str], tuple[str, ...]], total: int) -> Iterator[str]:
    """Models that are better than the same ones on as many measures share a phrase."""
    by_winner: dict[tuple[str, str], list[str]] = {}
    for (better, worse), measures in won.items():
        on = listed(list(measures)) if len(measures) <= _LISTED else f"{len(measures)} of {total} measures"
        by_winner.setdefault((better, on), []).append(worse)
    together: dict[tuple[str, str], list[str]] = {}
    for (better, on), worse_ones in by_winner.items():
        together.setdefault((listed(worse_ones), on), []).append(better)
    for (worse, on), winners in together.items():
        yield f"{listed(winners)} {'are' if len(winners) > 1 else 'is'} better than {worse} on {on}"
