"""Counts answers that are written at once, and the tokens of those that are not done."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

Counted = Callable[[int, int], None]
"""Is told how many answers have ended since the last call, and how many tokens there are of those under way."""


class AnswerCounter:
    """Counts answers at the token that ends them, or at their longest length. An :data:`OnToken` that ends none."""

    def __init__(self, stop_ids: frozenset[int], longest: int, counted: Counted) -> None:
        self._stop_ids, self._longest, self._counted = stop_ids, longest, counted
        self._lengths = Counter[int]()

    def __call__(self, index: int, token: int) -> bool:
        self._lengths[index] += 1
        ended = token in self._stop_ids or self._lengths[index] == self._longest
        if ended:
            del self._lengths[index]
        self._counted(int(ended), self._lengths.total())
        return False
