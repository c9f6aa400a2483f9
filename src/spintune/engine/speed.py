"""How fast an engine scores on this machine, and what it costs that rows of a model cannot be computed together."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query

_PROMPTS, _RESPONSES, _LENGTH = 2, 3, 32
_TRIES = 3

_ROWS, _ROW = 4, 16
_STEPS = 16
_OPERATIONS = {"cpu": 2e11}
_OPERATIONS_ELSEWHERE = 2e13
"""Spent on asking, a few seconds at most."""


@dataclass(frozen=True)
class ScoringSpeed:
    """Speed of scoring without gradients, in tokens that differ (a prompt counts once). [tokens/s]

    Attributes:
        plain: one call for each response.
        packed: None for a model that cannot be packed.
    """

    tokens: int
    plain: float
    packed: float | None


@dataclass(frozen=True)
class Price:
    """How many times as long one row after the other takes as a single call on as many tokens.

    Attributes:
        scores: on rows of 16 tokens.
        answers: on rows of one token, as answers are written.
    """

    scores: float
    answers: float

    def __str__(self) -> str:
        return (
            f"one at a time takes about {self.scores:.1f} times as long for scores and {self.answers:.1f} times for "
            "answers as together, on this machine"
        )


def scoring_speed(engine: LogProbEngine, positions: int | None) -> ScoringSpeed | None:
    """Seconds of one call on 256 tokens, packed and plain; None for a model with hardly any positions."""
    length = min(_LENGTH, (positions or 2 * _LENGTH) // 2)
    if length < 1:
        return None
    draw = _drawing(engine)
    queries = [Query(draw(length), tuple(draw(length) for _ in range(_RESPONSES))) for _ in range(_PROMPTS)]
    tokens = sum(query.tokens for query in queries)
    packs, rates = engine.packed, []
    try:
        for engine.packed in (False, True) if packs else (False,):
            rates.append(tokens / _seconds(lambda: engine.score(queries)))
    finally:
        engine.packed = packs
    return ScoringSpeed(tokens, rates[0], rates[1] if packs else None)


def price(engine: LogProbEngine, positions: int | None) -> Price | None:
    """What a model pays that is computed one row at a time; None for one that is packed, and where asking is dear."""
    operations = _OPERATIONS.get(engine.model.device.type, _OPERATIONS_ELSEWHERE)
    dear = 2 * engine.model.num_parameters() * 2 * _ROWS * _ROW * (1 + _TRIES) > operations
    if engine.packed or dear or (positions is not None and positions < _ROWS * _ROW):
        return None
    draw = _drawing(engine)

    def ratio(rows: int, length: int) -> float:
        apart = [Query(draw(1), (draw(length),)) for _ in range(rows)]
        together = [Query(draw(1), (draw(rows * length),))]
        seconds = _seconds(lambda: engine.score(apart))
        return max(1.0, seconds / _seconds(lambda: engine.score(together)))

    return Price(ratio(_ROWS, _ROW), ratio(_STEPS, 1))


def _drawing(engine: LogProbEngine) -> Callable[[int], tuple[int, ...]]:
    vocabulary, ids = engine.model.config.get_text_config().vocab_size, itertools.count(1)
    return lambda length: tuple(next(ids) * 7 % vocabulary for _ in range(length))


def _seconds(work: Callable[[], object]) -> float:
    """Seconds that the work takes at best, after a first time that warms up; three tries, or one that is long."""
    work()
    best = math.inf
    for _ in range(_TRIES):
        began = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - began)
        if best > 1:
            break
    return best
