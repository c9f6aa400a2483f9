"""One optimizer step: gradients of its rows, on one process or on all ranks, and the update.

On many ranks, each computes its share of a step's rows and divides by the weight of the whole step. The sums over ranks
are then those of one process, to rounding, and every rank makes the same update.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Generic, TypeVar, cast

import torch
from torch import Tensor

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.query import Query, pack
from spintune.engine.sharing import ENGINE, team_of, whole
from spintune.errors import NonFiniteError, RunError
from spintune.kernels.allocator import reuse_memory
from spintune.models.lora import dropout, has_dropout
from spintune.ranks.dealing import deal, waiting_share
from spintune.ranks.team import Team, shared
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization, build_optimizer, clip_gradients, gradient_norm
from spintune.training.replicas import OPTIMIZER, add_gradients, take_optimizer
from spintune.training.routing import Routers, load_facts

R = TypeVar("R")

_STEPPER = "stepper"


def stepper_of(engine: LogProbEngine, objective: Objective[R], optimization: Optimization) -> Stepper[R]:
    """What makes the steps of one training: on all ranks, where they hold the engine's model."""
    team = team_of(engine)
    if team is None:
        return Stepper(engine, objective, optimization)
    team.call(_begin, objective, optimization)
    return _TeamStepper(team)


@dataclass(frozen=True)
class Measured:
    """Means over a step's weight, and its token counts."""

    loss: float
    facts: dict[str, float]
    tokens: int = 0
    scored: int = 0


class Stepper(Generic[R]):
    """Makes the steps of one training in this process, with the other ranks where they do the same.

    Attributes:
        optimizer: of the trained weights.
    """

    def __init__(self, engine: LogProbEngine, objective: Objective[R], optimization: Optimization) -> None:
        reuse_memory()
        if engine.is_sharded:  # shares are where they are updated
            optimization = replace(optimization, offload=False)
        self._engine, self._objective, self._optimization = engine, objective, optimization
        with whole(engine) if shared() else contextlib.nullcontext():
            self._routers = Routers(engine.model, optimization.router_aux_loss)
        self.optimizer = build_optimizer(engine.model, optimization)
        self._norm = torch.zeros(())

    def take_state(self, done: int) -> None:
        """The other ranks begin where this one does, after ``done`` steps."""

    def finite_gradients(self, batch: Sequence[R], step: int, opponent_reset: bool) -> tuple[Measured, float]:
        """Accumulates the gradients of a step, and measures their norm. Raises NonFiniteError.

        After an opponent reset, its loss and ratios must be the known ones.
        """
        measured = self._gradients(batch, step, opponent_reset)
        self._norm = gradient_norm(self._engine.model)
        norm: float = self._norm.item()
        if not (math.isfinite(measured.loss) and math.isfinite(norm)):
            raise NonFiniteError(
                f"step {step + 1}: loss {measured.loss}, gradient norm {norm}; the weights were not touched; "
                f"lower learning_rate or look at this step's {len(batch)} rows"
            )
        return measured, norm

    def update(self, rate: float) -> None:
        """Moves the weights along the gradients."""
        clip_gradients(self._engine.model, self._norm, self._optimization.max_grad_norm)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def end(self) -> None:
        """No step follows: ranks that keep the moments of this training let go of them."""

    def _gradients(self, batch: Sequence[R], step: int, opponent_reset: bool) -> Measured:
        engine, optimization = self._engine, self._optimization
        known = _known_start(batch, self._objective) if opponent_reset else None
        if known and has_dropout(engine.model):  # dropout was off when the opponent was scored
            with torch.no_grad():
                _check_start(self._accumulate(batch), known, engine)
            known = None
        team = shared()
        stream = f"dropout/{optimization.seed}/{step}" + (f"/{team.rank}" if team and team.rank else "")
        with dropout(engine.model, stream, optimization.dropout):
            measured = self._accumulate(batch)
        if known:
            _check_start(measured, known, engine)
        return measured

    def _accumulate(self, batch: Sequence[R]) -> Measured:
        """Gradients of the step's mean loss, in as many forward and backward passes as its tokens need.

        The load-balancing loss of experts is a mean over calls, weighted by their tokens. It is no part of the loss
        that is reported, but a fact of its own.
        """
        engine, objective, routers, team = self._engine, self._objective, self._routers, shared()
        weight = sum(map(objective.weight, batch))
        queries = [(row, objective.query(row)) for row in batch]
        tokens = sum(query.tokens for _, query in queries)
        scored = sum(sum(response) for _, query in queries for response in query.counted)
        hands = self._hands(queries, team.size if team else 1)
        runs = hands[team.rank if team else 0]
        sums, began = _Sums(), time.perf_counter()
        if team and engine.is_sharded:
            calls = max(map(len, hands))
            self._fill(calls - len(runs), min((query for _, query in queries), key=lambda query: query.tokens))
        for run in runs:
            with routers.watch() as routing:
                result = objective([row for row, _ in run], engine([query for _, query in run]))
            loss = result.total / weight
            if (uneven := routing.loss()) is not None:
                share = sum(query.tokens for _, query in run) / tokens
                sums.balance += share * uneven.item()
                sums.count(routing.counts)
                if routers.coefficient:
                    loss = loss + routers.coefficient * share * uneven
            if torch.is_grad_enabled():
                loss.backward()
            sums.total += result.total.item()
            sums.facts.update(result.facts)
        sums.seconds.append(time.perf_counter() - began)
        if team:
            sums = _Sums.of_all(team.gather(sums))
            if torch.is_grad_enabled() and not engine.is_sharded:
                add_gradients(engine.model, team)
        means = {name: value / weight for name, value in sums.facts.items()}
        if sums.counts:
            means |= {"router_aux_loss": sums.balance, **load_facts(sums.counts)}
        if team:
            loads = [sum(query.tokens for run in hand for _, query in run) for hand in hands]
            means |= {"imbalance": waiting_share(loads), "waiting": waiting_share(sums.seconds)}
        return Measured(sums.total / weight, means, tokens, scored)

    def _hands(self, queries: Sequence[tuple[R, Query]], ranks: int) -> list[list[list[tuple[R, Query]]]]:
        """The calls of each rank. The loss of routers depends on calls, so that those of one process are dealt then."""

        def runs_of(mine: Sequence[tuple[R, Query]]) -> list[list[tuple[R, Query]]]:
            return pack(mine, lambda item: item[1].tokens, self._engine.tokens_per_forward)

        if ranks == 1:
            return [runs_of(queries)]
        if self._routers.coefficient:
            runs = runs_of(queries)
            hands = deal([sum(query.tokens for _, query in run) for run in runs], ranks)
            return [[runs[index] for index in hand] for hand in hands]
        hands = deal([query.tokens for _, query in queries], ranks)
        return [runs_of([queries[index] for index in hand]) for hand in hands]

    def _fill(self, calls: int, query: Query) -> None:
        """Calls that change nothing, so that this rank gathers and adds as often as the others."""
        for _ in range(calls):
            nothing = 0 * self._engine([query]).sum_N.sum()
            if torch.is_grad_enabled():
                nothing.backward()


@dataclass
class _Sums:
    """Sums over the rows of a step, or of a rank's share of them, and the seconds of each rank."""

    total: float = 0.0
    facts: Counter[str] = field(default_factory=Counter)
    balance: float = 0.0
    counts: list[Tensor] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def count(self, counts: list[Tensor]) -> None:
        """Adds how often each expert of each layer was chosen."""
        self.counts = [a + b for a, b in zip(self.counts, counts, strict=True)] if self.counts else counts

    @classmethod
    def of_all(cls, ranks: Sequence[_Sums]) -> _Sums:
        """The sums over all ranks."""
        every = cls()
        for one in ranks:
            every.total += one.total
            every.facts.update(one.facts)
            every.balance += one.balance
            if one.counts:
                every.count([count.cpu() for count in one.counts])
            every.seconds += one.seconds
        return every


class _TeamStepper(Stepper[R]):
    """The writer's view of steps that all ranks make."""

    def __init__(self, team: Team) -> None:
        self._team = team
        self.optimizer = _own(team).optimizer

    def take_state(self, done: int) -> None:
        self._team.call(_take_state, done)

    def finite_gradients(self, batch: Sequence[R], step: int, opponent_reset: bool) -> tuple[Measured, float]:
        return self._team.call(_finite_gradients, batch, step, opponent_reset)

    def update(self, rate: float) -> None:
        self._team.call(_update, rate)

    def end(self) -> None:
        self._team.call(end_steps)


def _own(team: Team) -> Stepper[R]:
    """The stepper of this rank."""
    return cast("Stepper[R]", team.objects[_STEPPER])


def _begin(team: Team, objective: Objective[R], optimization: Optimization) -> None:
    engine = cast(LogProbEngine, team.objects[ENGINE])
    engine.model.zero_grad()
    stepper = Stepper(engine, objective, optimization)
    team.objects[_STEPPER], team.objects[OPTIMIZER] = stepper, stepper.optimizer


def _take_state(team: Team, done: int) -> None:
    if done and not cast(LogProbEngine, team.objects[ENGINE]).is_sharded:  # the weights were taken when they were read
        take_optimizer(_own(team).optimizer, team)


def _finite_gradients(team: Team, batch: Sequence[R], step: int, opponent_reset: bool) -> tuple[Measured, float]:
    stepper: Stepper[R] = _own(team)
    try:
        return stepper.finite_gradients(batch, step, opponent_reset)
    except (NonFiniteError, RunError):
        if not team.rank:  # every rank sees the same numbers, and the writer tells what is wrong with them
            raise
        stepper.optimizer.zero_grad()
        return Measured(math.nan, {}), math.nan


def _update(team: Team, rate: float) -> None:
    own: Stepper[object] = _own(team)
    own.update(rate)


def end_steps(team: Team) -> None:
    """On every rank: forgets the training that was, and with it its model and moments."""
    team.objects.pop(_STEPPER, None)
    team.objects.pop(OPTIMIZER, None)


def _known_start(batch: Sequence[R], objective: Objective[R]) -> Measured | None:
    """Loss and facts of a step before the first update, where they are known."""
    logprobs = objective.initial_logprobs(batch)
    if logprobs is None:
        return None
    result, weight = objective(batch, logprobs), sum(map(objective.weight, batch))
    return Measured(result.total.item() / weight, {name: value / weight for name, value in result.facts.items()})


def _check_start(measured: Measured, known: Measured, engine: LogProbEngine) -> None:
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
