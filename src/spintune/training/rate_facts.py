"""What the search for a learning rate found, as typed records; without torch, so that a report can read them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RungFacts:
    """One short run of a ladder.

    Attributes:
        learning_rate: at its peak.
        steps: optimizer steps.
        loss: on the rows that rungs are judged by; None where training broke off with a number that is not finite.
    """

    learning_rate: float
    steps: int
    loss: float | None


@dataclass(frozen=True)
class RateFacts:
    """Facts of the stages ``sft/rates``, ``spin/iterate-t/rates`` and ``spin/baseline-sft/rates``.

    Attributes:
        rate: the peak learning rate that was chosen; in self-play a rung's, less for the longer run.
        why: the reason, as a sentence.
        improved: whether the best rung ended below ``start_loss`` by more than a standard error.
        at_end: whether the least loss is at the lowest or the highest rate that was tried.
        measure: what the losses are.
        start_loss: before training; None where too few rows are held out to try rates, as of ``rungs`` there are none.
        rows: held-out rows that the rungs were judged by.
        moment_steps: steps at rate 0 before all rungs.
        parts: the stage's steps were divided into so many.
        tokens: that the ladder trained on.
        share: what the ladder cost over what the stage costs, counted in tokens.
        seconds: by kind of work.
    """

    rate: float
    why: str
    improved: bool
    at_end: bool
    measure: str
    start_loss: float | None
    rungs: list[RungFacts]
    rows: int
    moment_steps: int
    parts: int
    tokens: int
    share: float
    seconds: dict[str, float]
