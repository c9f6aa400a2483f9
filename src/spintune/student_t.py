"""Quantiles of Student's t: how many standard errors a mean of few values may be off."""

from __future__ import annotations

import functools
import math


@functools.cache
def t_quantile(degrees: int, level: float = 0.95) -> float:
    """The t with P[|T| <= t] = ``level`` for Student's T with so many degrees of freedom, 12.706 for 1.

    P is a finite sum in the angle atan(t/√ν) (Abramowitz and Stegun 26.7.3 and 26.7.4), which is solved by bisection.
    """
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        angle = (low + high) / 2
        low, high = (angle, high) if _within(angle, degrees) < level else (low, angle)
    return math.sqrt(degrees) * math.tan(low)


def _within(angle: float, degrees: int) -> float:
    """P[|T| <= √ν·tan(angle)]."""
    odd = degrees % 2
    total, term = 0.0, math.cos(angle) if odd else 1.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (power + 1) / (power + 2)
    total *= math.sin(angle)
    return 2 / math.pi * (angle + total) if odd else total
