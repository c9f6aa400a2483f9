"""Deals work to ranks, so that they wait little for each other."""

from __future__ import annotations

import heapq
from collections.abc import Sequence


def deal(costs: Sequence[float], ranks: int) -> list[list[int]]:
    """Indices of the items of each rank: the costliest first, each to the rank that has the least so far.

    No rank gets more than 4/3 of the best possible maximum (Graham 1969). Indices of a rank are in order.
    """
    hands: list[list[int]] = [[] for _ in range(ranks)]
    loads = [(0.0, rank) for rank in range(ranks)]
    for index in sorted(range(len(costs)), key=lambda index: (-costs[index], index)):
        load, rank = loads[0]
        hands[rank].append(index)
        heapq.heapreplace(loads, (load + costs[index], rank))
    return [sorted(hand) for hand in hands]


def waiting_share(loads: Sequence[float]) -> float:
    """The share of all ranks' time in which they wait for the slowest, whose load is the greatest."""
    greatest = max(loads)
    return 1 - sum(loads) / (len(loads) * greatest) if greatest else 0.0
