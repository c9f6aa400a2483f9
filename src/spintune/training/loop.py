"""The training loop. It is the same for SFT and self-play, which differ in their objective and their batches."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import torch
from torch import Tensor

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import pack
from spintune.errors import NonFiniteError, RunError
from spintune.kernels.allocator import tune_malloc
from spintune.memory import is_out_of_memory, release_frames
from spintune.models.lora import dropout, has_dropout
from spintune.progress import StopRequest
from spintune.training.checkpoint import Checkpoints
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization, build_optimizer, clip_gradients, gradient_norm, rate_at
from spintune.training.routing import Routers, load_facts

R = TypeVar("R")


class Steps(Protocol[R]):
    """The rows of every optimizer step, such as :class:`spintune.training.batches.Batches`."""

    @property
    def opponent_resets(self) -> frozenset[int]:
        """Steps before which the player becomes its own opponent, so that the objective's start is known."""

    def __len__(self) -> int:
        """Number of steps."""

    def __getitem__(self, step: int) -> list[R]:
        """The rows of a step, counted from 0. A step without rows does not change the weights."""


@dataclass(frozen=True)
class StepReport:
    """What was measured at one optimizer step."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Mean over the step's weight: nats per token (SFT) or per pair (self-play)."""
    grad_norm: float
    """Before clipping."""
    learning_rate: float
    tokens: int
    """Tokens that the model read."""
    scored: int
    """Tokens whose log-probability was computed."""
    seconds: float
    facts: dict[str, float]
    """The objective's own numbers, as means over the step's weight."""


@dataclass(frozen=True)
class TrainingHooks:
    """Functions that training calls on the way, and who may stop it."""

    on_start: Callable[[int], None] = lambda step: None
    """Before the first step, with the number of steps that a checkpoint already holds."""
    on_step: Callable[[StepReport], None] = lambda report: None
    """After each step, before its checkpoint is written."""
    stop: StopRequest = field(default_factory=StopRequest)
    """Looked at before each step; a stop leaves a checkpoint."""
    is_done: Callable[[], bool] = lambda: False
    """Asked before each step: whether training ends there, before the last one."""


def train(
    engine: LogProbEngine,
    batches: Steps[R],
    objective: Objective[R],
    optimization: Optimization,
    checkpoints: Checkpoints,
    hooks: TrainingHooks | None = None,
) -> None:
    """Trains the engine's model in place, from the newest checkpoint if there is one.

    ``batches`` must be a pure function of the step: a resumed run then continues exactly where it stopped.

    Raises:
        NonFiniteError: the loss or a gradient is not finite. The weights keep their values of the step before.
        RunError: the first loss or ratio after an opponent reset is not the objective's known starting value.

    Whatever ends training between two updates of the weights leaves a checkpoint of the last complete step.
    """
    hooks = hooks or TrainingHooks()
    tune_malloc()
    model = engine.model
    routers = Routers(model, optimization.router_aux_loss)
    optimizer = build_optimizer(model, optimization)
    done = checkpoints.restore(model, optimizer)
    hooks.on_start(done)
    calls = _Calls(engine, objective, routers)
    for step in range(done, len(batches)):
        if hooks.is_done():
            break
        started = time.perf_counter()
        try:
            hooks.stop.check()
            batch = batches[step]
            if not batch:
                continue
            measured, norm = _finite_gradients(calls, batch, optimization, step, step in batches.opponent_resets)
        except BaseException as error:  # a stop or a failure: the weights are still those of the step before
            model.zero_grad()
            if is_out_of_memory(error):
                release_frames(error)  # else the activations are still there when the checkpoint is written
            checkpoints.rescue(step, model, optimizer, error)
            raise
        with hooks.stop.held():
            rate = rate_at(step, len(batches), optimization)
            clip_gradients(model, norm, optimization.max_grad_norm)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
            seconds = time.perf_counter() - started
            tokens, scored = measured.tokens, measured.scored
            hooks.on_step(
                StepReport(step + 1, measured.loss, norm.item(), rate, tokens, scored, seconds, measured.facts)
            )
        if checkpoints.due() and step + 1 < len(batches):
            checkpoints.save(step + 1, model, optimizer)


@dataclass(frozen=True)
class _Measured:
    """Means over a step's weight, and its token counts."""

    loss: float
    facts: dict[str, float]
    tokens: int = 0
    scored: int = 0


@dataclass(frozen=True)
class _Calls(Generic[R]):
    """What computes the loss of rows: the engine, the objective, and the routers of a mixture of experts."""

    engine: LogProbEngine
    objective: Objective[R]
    routers: Routers


def _finite_gradients(
    calls: _Calls[R], batch: Sequence[R], optimization: Optimization, step: int, opponent_reset: bool
) -> tuple[_Measured, Tensor]:
    """Accumulates the gradients of a step, and measures their norm. Raises NonFiniteError."""
    measured = _gradients(calls, batch, optimization, step, opponent_reset)
    norm = gradient_norm(calls.engine.model)
    if not (math.isfinite(measured.loss) and norm.isfinite()):
        raise NonFiniteError(
            f"step {step + 1}: loss {measured.loss}, gradient norm {norm.item()}; the weights were not touched; "
            f"lower learning_rate or look at this step's {len(batch)} rows"
        )
    return measured, norm


def _gradients(
    calls: _Calls[R], batch: Sequence[R], optimization: Optimization, step: int, opponent_reset: bool
) -> _Measured:
    """Accumulates the gradients of a step. After an opponent reset, its loss and ratios must be the known ones."""
    engine = calls.engine
    known = _known_start(batch, calls.objective) if opponent_reset else None
    if known and has_dropout(engine.model):  # dropout was off when the opponent was scored
        with torch.no_grad():
            _check_start(_accumulate(calls, batch), known, engine)
        known = None
    with dropout(engine.model, f"dropout/{optimization.seed}/{step}", optimization.dropout):
        measured = _accumulate(calls, batch)
    if known:
        _check_start(measured, known, engine)
    return measured


def _accumulate(calls: _Calls[R], batch: Sequence[R]) -> _Measured:
    """Gradients of the step's mean loss, in as many forward and backward passes as its tokens need.

    The load-balancing loss of experts is a mean over calls, weighted by their tokens. It is no part of the loss that is
    reported, but a fact of its own.
    """
    engine, objective, routers = calls.engine, calls.objective, calls.routers
    weight = sum(map(objective.weight, batch))
    queries = [(row, objective.query(row)) for row in batch]
    tokens = sum(query.tokens for _, query in queries)
    total, facts, balance = 0.0, Counter[str](), 0.0
    counts: list[Tensor] = []
    for run in pack(queries, lambda item: item[1].tokens, engine.tokens_per_forward):
        with routers.watch() as routing:
            result = objective([row for row, _ in run], engine([query for _, query in run]))
        loss = result.total / weight
        if (uneven := routing.loss()) is not None:
            share = sum(query.tokens for _, query in run) / tokens
            balance += share * uneven.item()
            counts = [a + b for a, b in zip(counts, routing.counts, strict=True)] if counts else routing.counts
            if routers.coefficient:
                loss = loss + routers.coefficient * share * uneven
        if torch.is_grad_enabled():
            loss.backward()
        total += result.total.item()
        facts.update(result.facts)
    scored = sum(sum(response) for _, query in queries for response in query.counted)
    means = {name: value / weight for name, value in facts.items()}
    if counts:
        means |= {"router_aux_loss": balance, **load_facts(counts)}
    return _Measured(total / weight, means, tokens, scored)


def _known_start(batch: Sequence[R], objective: Objective[R]) -> _Measured | None:
    """Loss and facts of a step before the first update, where they are known."""
    logprobs = objective.initial_logprobs(batch)
    if logprobs is None:
        return None
    result, weight = objective(batch, logprobs), sum(map(objective.weight, batch))
    return _Measured(result.total.item() / weight, {name: value / weight for name, value in result.facts.items()})


def _check_start(measured: _Measured, known: _Measured, engine: LogProbEngine) -> None:
    """A player that is its own opponent has a known loss and known ratios; other values mean that inputs differ.

    The ratios are checked as well because an error common to both answers, or a small λ, does not show in the loss.
    """
    exact = engine.autocast is None
    # in bfloat16, margins have noise of a few tenths of a nat, and its effect on the loss depends on λ
    numbers = [("loss", measured.loss, known.loss, 1e-3 * max(1.0, abs(known.loss)))] if exact else []
    for name in known.facts:
        if name.endswith("_ratio"):  # nats per answer
            numbers.append((name, measured.facts[name], known.facts[name], 0.05 if exact else 1.0))
    for name, value, expected, tolerance in numbers:
        if math.isfinite(value) and not abs(value - expected) <= tolerance:
            raise RunError(
                f"a player's first {name.replace('_', ' ')} is {value:.6f} and must be {expected:.6f}: the cached "
                "opponent scores are not this player's; delete the iteration's folder and run again"
            )
