"""Do the contestants compute the same thing? A time counts only where they do."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

REFERENCE = "spintune"
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 2e-2}
"""Nats a token (SFT) or a pair (SPIN). bfloat16 keeps 8 bits: a log-probability of -3 moves by up to 1e-2."""
NORM_TOLERANCE = {"float32": 1e-2, "bfloat16": 1e-1}
"""Share of the gradient's norm."""
LOGPROB_TOLERANCE = {"float32": 1e-2, "bfloat16": 5.0}
"""Nats an answer of up to 128 tokens; in bfloat16 the rounding of single tokens adds up."""


@dataclass
class Check:
    """One comparison: what differs by how much, and how much it may."""

    task: str
    contestant: str
    what: str
    value: float
    expected: float
    difference: float
    tolerance: float
    passed: bool


def check_all(task: str, runs: list[tuple[str, str, list[dict[str, Any]]]]) -> list[Check]:
    """Compares each contestant with spintune in float32, and all first SPIN losses with ln 2.

    The loss after a step is compared with spintune's in the same precision. 8 % of the alias's weights, which come from
    4-bit blocks, lie exactly between two bfloat16 numbers, so that there the smallest step moves each of them by half
    a unit: in bfloat16 the first SPIN step lowers the loss to 0.24 for everybody, in float32 to 0.67.

    ``runs`` holds name, precision and runs of each. The first run of each is compared, for the others repeat it.
    """
    reference = next(run[0] for name, _, run in runs if name == REFERENCE)
    twins = {precision: run[0] for name, precision, run in runs if name.startswith(REFERENCE)}
    checks: list[Check] = []
    for name, precision, measured in runs:
        run = measured[0]

        def add(what: str, value: float, expected: float, difference: float, tolerance: float) -> None:
            passed = difference <= tolerance  # not a number passes nothing
            checks.append(Check(task, name, what, value, expected, difference, tolerance, passed))  # noqa: B023

        def near(what: str, value: float, expected: float, tolerance: float, scale: float = 1.0) -> None:
            add(what, value, expected, abs(value - expected) / scale, tolerance)

        if task == "spin":
            near("loss before training is ln 2", run["losses"][0], math.log(2), LOSS_TOLERANCE[precision])
        if name == REFERENCE:
            continue
        near("loss before training", run["losses"][0], reference["losses"][0], LOSS_TOLERANCE[precision])
        norm = reference["grad_norms"][0]
        near("gradient norm, relative", run["grad_norms"][0], norm, NORM_TOLERANCE[precision], norm)
        twin = twins.get(precision, reference)
        if twin is not run:
            near("loss after one step", run["losses"][1], twin["losses"][1], LOSS_TOLERANCE[precision])
        if task != "spin":
            continue
        means = [_mean(column) for column in zip(*reference["logprobs"], strict=True)]
        if "logprobs" in run:
            pairs = zip(_flat(run["logprobs"]), _flat(reference["logprobs"]), strict=True)
            worst = max(pairs, key=lambda pair: abs(pair[0] - pair[1]))
            what = f"log-probability, worst of {len(_flat(run['logprobs']))} answers"
            near(what, *worst, LOGPROB_TOLERANCE[precision])
        else:
            for side, value, expected in zip(("real", "generated"), run["mean_logprobs"], means, strict=True):
                near(f"mean log-probability of {side} answers", value, expected, LOGPROB_TOLERANCE[precision])
    return checks


def _flat(rows: list[list[float]]) -> list[float]:
    return [value for row in rows for value in row]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
