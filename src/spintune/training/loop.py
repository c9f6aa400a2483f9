"""The one training loop. What is trained, and on what, are an objective and its batches."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import pack
from spintune.errors import NonFiniteError, RunError
from spintune.kernels.allocator import tune_malloc
from spintune.models.lora import dropout, has_dropout
from spintune.training.checkpoint import Checkpoints
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization, build_optimizer, clip_gradients, gradient_norm, rate_at

R = TypeVar("R")


class Steps(Protocol[R]):
    """The rows of every optimizer step; :class:`spintune.training.batches.Batches` and rounds of self-play are such."""

    @property
    def opponent_resets(self) -> frozenset[int]:
        """Steps before which the player is its own opponent."""

    def __len__(self) -> int:
        """How many steps there are."""

    def __getitem__(self, step: int) -> list[R]:
        """Rows of a step, from 0. May be empty; the step then leaves the weights alone."""


@dataclass(frozen=True)
class StepReport:
    """One optimizer step, as it was measured."""

    step: int
    """Steps done, this one included."""
    loss: float
    """Mean over the step's weight: nats a token (SFT), or a pair (SPIN)."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens the model read."""
    scored: int
    """Those whose log-probability was needed."""
    seconds: float
    facts: dict[str, float]
    """The objective's own numbers, mean over the step's weight."""


@dataclass(frozen=True)
class TrainingHooks:
    """Functions that training calls on the way."""

    on_start: Callable[[int], None] = lambda step: None
    """Before the first step, with the number of steps that a checkpoint already holds."""
    on_step: Callable[[StepReport], None] = lambda report: None
    """After each step, before its checkpoint is written."""


def train(
    engine: LogProbEngine,
    batches: Steps[R],
    objective: Objective[R],
    optimization: Optimization,
    checkpoints: Checkpoints,
    hooks: TrainingHooks | None = None,
) -> None:
    """Trains the engine's model in place, from the newest checkpoint if there is one.

    Args:
        batches: the rows of every step, a pure function of the step, so that the same call goes on exactly where a
            stopped one was.

    Raises:
        NonFiniteError: the loss or a gradient is not a number; weights are as after the step before.
        RunError: a first loss is not the objective's known starting value, or a ratio not its.
    """
    hooks = hooks or TrainingHooks()
    tune_malloc()
    model = engine.model
    optimizer = build_optimizer(model, optimization)
    first = checkpoints.restore(model, optimizer)
    hooks.on_start(first)
    for step in range(first, len(batches)):
        batch = batches[step]
        if not batch:
            continue
        started = time.perf_counter()
        known = _known_start(batch, objective) if step in batches.opponent_resets else None
        if known and has_dropout(model):  # which is off where the opponent was scored
            with torch.no_grad():
                _check_start(_accumulate(engine, batch, objective), known, engine)
            known = None
        with dropout(model, f"dropout/{optimization.seed}/{step}", optimization.dropout):
            measured = _accumulate(engine, batch, objective)
        if known:
            _check_start(measured, known, engine)
        loss, facts = measured.loss, measured.facts
        norm = gradient_norm(model)
        if not (math.isfinite(loss) and norm.isfinite()):
            model.zero_grad()
            raise NonFiniteError(
                f"step {step + 1}: loss {loss}, gradient norm {norm.item()}; the weights were not touched; "
                f"lower learning_rate or look at this step's {len(batch)} rows"
            )
        rate = rate_at(step, len(batches), optimization)
        clip_gradients(model, norm, optimization.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - started
        hooks.on_step(StepReport(step + 1, loss, norm.item(), rate, measured.tokens, measured.scored, seconds, facts))
        if checkpoints.due() and step + 1 < len(batches):
            checkpoints.save(step + 1, model, optimizer)


class _Measured(NamedTuple):
    """Means over a step's weight, and how many tokens were read and scored."""

    loss: float
    facts: dict[str, float]
    tokens: int = 0
    scored: int = 0


def _accumulate(engine: LogProbEngine, batch: Sequence[R], objective: Objective[R]) -> _Measured:
    """Gradients of the step's mean loss, in as many passes as it takes."""
    weight = sum(map(objective.weight, batch))
    queries = [(row, objective.query(row)) for row in batch]
    total, facts = 0.0, Counter[str]()
    for run in pack(queries, lambda item: item[1].tokens, engine.tokens_per_forward):
        result = objective([row for row, _ in run], engine([query for _, query in run]))
        if torch.is_grad_enabled():
            (result.total / weight).backward()
        total += result.total.item()
        facts.update(result.facts)
    tokens = sum(query.tokens for _, query in queries)
    scored = sum(sum(response) for _, query in queries for response in query.counted)
    return _Measured(total / weight, {name: value / weight for name, value in facts.items()}, tokens, scored)


def _known_start(batch: Sequence[R], objective: Objective[R]) -> _Measured | None:
    """What a step measures before the first update, where that is known."""
    logprobs = objective.initial_logprobs(batch)
    if logprobs is None:
        return None
    result, weight = objective(batch, logprobs), sum(map(objective.weight, batch))
    return _Measured(result.total.item() / weight, {name: value / weight for name, value in result.facts.items()})


def _check_start(measured: _Measured, known: _Measured, engine: LogProbEngine) -> None:
    """The player starts as its own opponent, so its first loss and ratios are known. Else its inputs do not match.

    Ratios are looked at besides, since an error common to both sides, or a small λ, hides in the loss.
    """
    exact = engine.autocast is None
    # in bfloat16 noise of a few tenths of a nat in each margin moves the mean loss by an amount that hangs on λ
    numbers = [("loss", measured.loss, known.loss, 1e-3 * max(1.0, abs(known.loss)))] if exact else []
    for name in known.facts:
        if name.endswith("_ratio"):  # nats an answer
            numbers.append((name, measured.facts[name], known.facts[name], 0.05 if exact else 1.0))
    for name, value, expected, tolerance in numbers:
        if math.isfinite(value) and not abs(value - expected) <= tolerance:
            raise RunError(
                f"a player's first {name.replace('_', ' ')} is {value:.6f} and must be {expected:.6f}: the cached "
                "opponent scores are not this player's; delete the iteration's folder and run again"
            )
