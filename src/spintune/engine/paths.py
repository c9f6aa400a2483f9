"""Which way a model's scores and answers are computed, and why: what a run and ``doctor --model`` say first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.rotary import LengthDependentRotary

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
        lengths: what is different for rows or answers beyond some length, a phrase each.
    """

    scores: ScorePath
    scores_why: str
    generation: GenerationPath | str
    generation_why: str
    lengths: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """One line for scores, one for generation, and one for each length."""
        return [
            f"scores: {self.scores} ({self.scores_why})",
            f"generation: {self.generation} ({self.generation_why})",
            *(f"lengths: {length}" for length in self.lengths),
        ]


def length_phrases(engine: LogProbEngine) -> tuple[str, ...]:
    """What is different beyond some length in a model of the engine."""
    rotary, limit, found = LengthDependentRotary(engine.model), engine.row_limit, list[str]()
    if rotary:
        kind = "with every token beyond" if rotary.grows() else "at"
        lengths = ", ".join(map(str, rotary.thresholds()))
        found.append(
            f"rotary frequencies change {kind} {lengths} tokens; answers that may cross that are written one at a time"
        )
    if limit is not None:
        found.append(
            f"beyond {limit} tokens the rest of a row changes, in transformers itself, the scores of its beginning; "
            f"SFT trains such rows as they are, self-play takes up to {limit} tokens, and longer texts are read again "
            "for every token"
        )
    return tuple(found)
