"""Which models of a run are compared with which."""

from __future__ import annotations

from collections.abc import Sequence

from spintune.run_folder import BASE, BASELINE, SFT


def start_of(names: Sequence[str]) -> str:
    """The model that self-play starts from, with which all others are compared."""
    return SFT if SFT in names else BASE


def compared_pairs(names: Sequence[str], best: str | None) -> list[tuple[str, str]]:
    """Each model with the one self-play starts from; the last and the best iterate also with a baseline."""
    start = start_of(names)
    pairs = [(name, start) for name in names if name != start]
    iterates = [name for name in names if name.startswith("iterate-")]
    if BASELINE in names and iterates:
        pairs += [(rival, BASELINE) for rival in dict.fromkeys((iterates[-1], best or iterates[-1]))]
    return pairs
