"""Means over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from spintune.evaluation import statistics


@dataclass(frozen=True)
class Interval(statistics.Interval):
    """A mean over seeds with its 95 % t-interval, which is without end for one seed."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        if len(values) < 2:
            return cls(fmean(values), -math.inf, math.inf)
        return cls(**vars(statistics.over_seeds(values)))

    def __str__(self) -> str:
        spread = f" ({self.low:+.4f} to {self.high:+.4f})" if math.isfinite(self.low) else ""  # one seed has none
        return f"{self.mean:+.4f}{spread}"

    def told(self, sign: str = "") -> str:
        spread = f" ({self.low:{sign}.2f} to {self.high:{sign}.2f})" if math.isfinite(self.low) else ""
        return f"{self.mean:{sign}.2f}{spread}"
