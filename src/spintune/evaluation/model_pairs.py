"""Which models of a run are compared with which."""

from __future__ import annotations

from collections.abc import Sequence

from spintune.run_folder import BASE, BASELINE, SFT


def start_of(names: Sequence[str]) -> str:
    """The model that self-play starts from, with which all others are compared."""
    return SFT if SFT in names else BASE


def simplest_first(names: Sequence[str]) -> list[str]:
    """Models in the order of how much they went through: base, SFT, more SFT, then the iterates by number."""
    plain = [name for name in (BASE, SFT, BASELINE) if name in names]
    return plain + sorted((name for name in names if name not in plain), key=lambda name: int(name.rpartition("-")[2]))


def compared_pairs(names: Sequence[str], best: str | None) -> list[tuple[str, str]]:
    """Each model with the one self-play starts from; the last and the best iterate also with a baseline."""
    start = start_of(names)
    pairs = [(name, start) for name in names if name != start]
    iterates = [name for name in names if name.startswith("iterate-")]
    if BASELINE in names and iterates:
        compared = (iterates[-1], best if best in iterates else iterates[-1])
        pairs += [(iterate, BASELINE) for iterate in dict.fromkeys(compared)]
    return pairs


def measured_pairs(names: Sequence[str], best: str | None) -> list[tuple[str, str]]:
    """The compared pairs, and the model to use with each other one."""
    pairs = compared_pairs(names, best)
    if best is not None and best in names:
        pairs += [(best, name) for name in names if name != best and not {(best, name), (name, best)} & {*pairs}]
    return pairs
