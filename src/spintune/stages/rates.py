"""Finds the learning rate of a training stage whose recipe says ``auto``, by a ladder of short runs.

::

    sft/rates, spin/iterate-t/rates, spin/baseline-sft/rates
        rates.json       every rung's rate, steps and loss; the chosen rate, and why
        shards/          the rungs that are done, while the ladder goes on
        checkpoints/     the weights and moments that every rung begins with, while the ladder goes on

The model is afterwards what it was before, to the bit. Rungs are judged by the held-out examples that choose: SFT's by
the loss per token, self-play's by :func:`spintune.selfplay.spin.plain_pair_loss`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import orjson

from spintune.errors import DataError, NonFiniteError
from spintune.evaluation.selection import MIN_SELECTION, too_few
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.storage import digest_json, remove_folder, write_json
from spintune.training.ladder import BACKWARD, Ladder, LadderPlan, climb, plan_ladder, usual_rate
from spintune.training.loop import StepReport, Steps, TrainingHooks
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization
from spintune.training.rate_facts import RateFacts, RungFacts
from spintune.typed_json import JsonObject, from_json, to_json
from spintune.unfinished import check_shard, write_shard

R = TypeVar("R")
H = TypeVar("H")


@dataclass(frozen=True)
class TrialSetting(Generic[R, H]):
    """What a ladder tries rates on.

    Attributes:
        batches: the optimizer steps of the stage.
        step_tokens: tokens of each of them.
        rows_per_step: mean number of rows in one.
        optimization: of the stage, at any rate.
        heldout: rows that rungs are judged by, as many as the budget takes.
        heldout_tokens: of each of them.
        loss: of such rows, and ``measure`` what it is called.
        passes: what the stage costs for each token, where scoring it costs 1.
    """

    batches: Steps[R]
    step_tokens: Sequence[int]
    rows_per_step: float
    objective: Objective[R]
    optimization: Optimization
    heldout: Sequence[H]
    heldout_tokens: Sequence[int]
    loss: Callable[[Sequence[H]], float]
    measure: str
    passes: int = BACKWARD


@dataclass(frozen=True)
class RateSearch:
    """The ladder of one training stage.

    Attributes:
        key: of the recipe: sft.learning_rate, ...
        stage: the training stage.
        start: the iterate that it trains.
        inputs: of the training stage, which decide the ladder too.
    """

    context: RunContext
    key: str
    title: str
    stage: str
    start: Iterate
    inputs: JsonObject

    @property
    def folder(self) -> Path:
        return self.context.run.folder / self.stage / "rates"

    def find(self, setting_of: Callable[[LoadedIterate], TrialSetting[R, H]]) -> RateFacts:
        """The facts of the ladder, which runs unless it is finished. ``setting_of`` says what rates are tried on."""
        run, stage = self.context.run, f"{self.stage}/rates"
        facts = run.finished(stage, self.inputs, RateFacts)
        if facts is None:
            facts = self._climb(setting_of)
            write_json(self.folder / "rates.json", to_json(facts))
            self.context.finish(stage, self.inputs, [self.folder / "rates.json"], facts)
            self.context.progress.note(f"{self.title}: {facts.why}")
        remove_folder(self.folder / "shards")
        remove_folder(self.folder / "checkpoints")
        return facts

    def _climb(self, setting_of: Callable[[LoadedIterate], TrialSetting[R, H]]) -> RateFacts:
        context = self.context
        player = context.load(self.start)
        setting = setting_of(player)
        if reason := too_few(len(setting.heldout), len(context.heldout)):
            raise DataError(f"{self.key}: auto chooses by held-out examples, but {reason}, or give a rate")
        plan = plan_ladder(
            setting.step_tokens, setting.rows_per_step, setting.heldout_tokens, MIN_SELECTION, setting.passes
        )
        heldout = setting.heldout[: plan.heldout]
        tag, began = digest_json(self.inputs)[:12], time.monotonic()
        rungs = _Rungs(self.folder / "shards", tag)
        with context.progress.task(f"{self.title}: learning rate", _steps(plan, len(rungs)), "steps") as task:

            def advance(report: StepReport) -> None:
                task.advance(1, loss=report.loss, rate=report.learning_rate)

            ladder = Ladder(
                player.engine,
                setting.batches,
                setting.objective,
                setting.optimization,
                plan,
                self.folder / "checkpoints" / tag,
                TrainingHooks(on_step=advance, stop=context.stop),
            )
            try:
                start_loss = rungs.loss(0.0, lambda: setting.loss(heldout))

                def loss_of(rate: float) -> float:
                    return rungs.loss(rate, lambda: setting.loss(heldout) if ladder.train(rate) else math.inf)

                losses = climb(loss_of, _middle(context, player, self.key == "spin.learning_rate"))
            finally:
                ladder.restore()
        trained = ladder.moment_tokens + len(losses) * ladder.rung_tokens
        judged = len(losses) * sum(setting.heldout_tokens[: plan.heldout])
        share = (BACKWARD * trained + judged) / (setting.passes * sum(setting.step_tokens))
        seconds = {"rates": time.monotonic() - began}
        return self._facts(plan, start_loss, losses, setting.measure, trained, share, seconds)

    def _facts(
        self,
        plan: LadderPlan,
        start_loss: float,
        losses: dict[float, float],
        measure: str,
        trained: int,
        share: float,
        seconds: dict[str, float],
    ) -> RateFacts:
        rate = min(sorted(losses), key=losses.__getitem__)
        span = f"{min(losses):g} to {max(losses):g}"
        if not math.isfinite(losses[rate]):
            raise NonFiniteError(
                f"{self.key}: auto found no rate: training broke at every one of {span} with a loss or "
                f"gradient that is not finite; look at the rows, or give {self.key} below {min(losses):g}"
            )
        improved, at_end = losses[rate] < start_loss, rate in (min(losses), max(losses))
        return RateFacts(
            rate=rate,
            why=" ".join(self._why(rate, losses, start_loss, measure, plan, share)),
            improved=improved,
            at_end=at_end,
            measure=measure,
            start_loss=start_loss,
            rungs=[RungFacts(r, plan.steps, loss if math.isfinite(loss) else None) for r, loss in losses.items()],
            rows=plan.heldout,
            moment_steps=plan.moments,
            parts=plan.parts,
            tokens=trained,
            share=share,
            seconds=seconds,
        )

    def _why(
        self,
        rate: float,
        losses: dict[float, float],
        start_loss: float,
        measure: str,
        plan: LadderPlan,
        share: float,
    ) -> Iterator[str]:
        span = f"{min(losses):g} to {max(losses):g}"
        yield (
            f"of {len(losses)} learning rates from {span}, each tried for {plan.steps} steps, {rate:g} has the least "
            f"{measure} on {plan.heldout} examples ({start_loss:.4f} before, {losses[rate]:.4f} after); this cost "
            f"{100 * share:.0f} % of what the stage costs."
        )
        if losses[rate] >= start_loss:
            yield (
                f"No rate lowered it, so there may be nothing to learn here: give more rows or another model, or set "
                f"{self.key} to train anyway."
            )
        elif rate in (min(losses), max(losses)):
            side = "lowest" if rate == min(losses) else "highest"
            beyond = rate / 10 if rate == min(losses) else rate * 10
            yield f"It is the {side} that was tried; {self.key}={beyond:g} may be better."


class _Rungs:
    """The losses of the rungs that are done, on disk, so that a ladder that was stopped goes on with the next one."""

    def __init__(self, folder: Path, tag: str) -> None:
        self._folder, self._tag = folder, tag

    def __len__(self) -> int:
        return len(list(self._folder.glob(f"{self._tag}-*.jsonl")))

    def loss(self, rate: float, compute: Callable[[], float]) -> float:
        """The loss at a rate, read or computed; rate 0 is the start."""
        path = self._folder / f"{self._tag}-{rate:.1e}.jsonl"
        if path.is_file():
            loss = from_json(_Loss, orjson.loads(check_shard(path, 1)), path).loss
        else:
            value = compute()
            loss = value if math.isfinite(value) else None
            self._folder.mkdir(parents=True, exist_ok=True)
            write_shard(path, [_Loss(loss)])
        return math.inf if loss is None else loss


@dataclass(frozen=True)
class _Loss:
    loss: float | None


def _steps(plan: LadderPlan, done: int) -> int:
    """Optimizer steps that a ladder of the usual five rungs still takes."""
    return plan.moments + max(1, 5 - max(0, done - 1)) * plan.steps


def _middle(context: RunContext, player: LoadedIterate, self_play: bool) -> float:
    weights = sum(parameter.numel() for parameter in player.loaded.model.parameters())
    return usual_rate(weights, context.recipe.lora is not None, self_play)
