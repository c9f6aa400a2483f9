"""Means over seeds."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

T_QUANTILES = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""0.975 quantiles of Student's t with 1, 2, ... degrees of freedom; the last serves, a little wide, for all beyond."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its 95 % t-interval."""

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        mean = statistics.fmean(values)
        if len(values) < 2:
            return cls(mean, -math.inf, math.inf)
        quantile = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1]
        half = quantile * statistics.stdev(values) / math.sqrt(len(values))
        return cls(mean, mean - half, mean + half)

    def __str__(self) -> str:
        return f"{self.mean:+.4f} ({self.low:+.4f} to {self.high:+.4f})"

    def told(self, sign: str = "") -> str:
        spread = f" ({self.low:{sign}.2f} to {self.high:{sign}.2f})" if math.isfinite(self.low) else ""
        return f"{self.mean:{sign}.2f}{spread}"
