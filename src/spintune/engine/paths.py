"""Which way a model's scores and answers are computed, and why: what a run and ``doctor --model`` say first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

ScorePath = Literal["packed", "one row at a time"]
GenerationPath = Literal["batch", "plain", "plain without a cache"]


@dataclass(frozen=True)
class ModelPaths:
    """The paths of one model.

    Attributes:
        scores: packed rows, or one call of the model for each response.
        scores_why: the reason, a phrase.
        generation: sequences together in one cache, one prompt at a time, or even without a cache; another name where
            a user's generator writes.
        generation_why: the reason, a phrase.
    """

    scores: ScorePath
    scores_why: str
    generation: GenerationPath | str
    generation_why: str

    def lines(self) -> list[str]:
        """One line for each of the two."""
        return [
            f"scores: {self.scores} ({self.scores_why})",
            f"generation: {self.generation} ({self.generation_why})",
        ]
