"""The speed probe of a plan beside a direct measurement in the same process."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query
from spintune.models.loading import load_model
from spintune.plan.speed import PROBE_STEPS, measured_rates
from spintune.progress import Silent
from spintune.recipe import load_recipe

FACTOR = 30
"""What other work on the machine may change between two measurements."""


def rate(tokens: int, work: Callable[[], object]) -> float:
    """Tokens per second of the second of two calls."""
    work()
    began = time.perf_counter()
    work()
    return tokens / (time.perf_counter() - began)


def test_a_probe_finds_the_speed_of_the_machine(tiny_model: Path, cache: Path) -> None:
    values = {"out": "x", "model": str(tiny_model), "data": {"train": "x.jsonl"}, "spin": {"iterations": 1}}
    queries = [Query((5,) * 40, ((7,) * 40,)) for _ in range(8)]
    tokens = 8 * 80
    found = measured_rates(load_recipe(None, [], values), queries, cache, Silent())
    engine = LogProbEngine(load_model(str(tiny_model), cache=cache).model, None)
    training = rate(tokens, lambda: (-engine(queries).sum_N.sum()).backward())  # type: ignore[no-untyped-call]
    scoring = rate(tokens, lambda: engine.score(queries))
    assert training / FACTOR < found.training < training * FACTOR
    assert scoring / FACTOR < found.scoring < scoring * FACTOR
    assert 0 < found.writing < found.scoring * FACTOR  # a token at a time is no faster than all at once
    assert f"median of {PROBE_STEPS} calls of {tokens} tokens, and 32 answers" in found.how


def test_without_self_play_no_answers_are_timed(tiny_model: Path, cache: Path) -> None:
    values = {"out": "x", "model": str(tiny_model), "data": {"train": "x.jsonl"}, "sft": {}}
    found = measured_rates(load_recipe(None, [], values), [Query((5,) * 8, ((7,) * 8,))], cache, Silent())
    assert found.writing == 0
    assert found.scoring / (10 * FACTOR) < found.training < found.scoring * 10 * FACTOR
    assert "answers" not in found.how
