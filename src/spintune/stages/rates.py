"""Finds the learning rate of a training stage whose recipe says ``auto``, by a ladder of short runs.

::

    sft/rates, spin/iterate-t/rates, spin/baseline-sft/rates
        rates.json       every rung's rate, steps and loss; the chosen rate, and why
        shards/          the rungs that are done, while the ladder goes on
        checkpoints/     the weights and moments that every rung begins with, while the ladder goes on

The model is afterwards what it was before, to the bit. Rungs are judged by the held-out examples that choose: SFT's by
the loss per token, self-play's by :func:`spintune.selfplay.spin.rate_losses`. With too few of them the stage
takes the usual rate for the model's size, and says so.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import orjson

from spintune.errors import NonFiniteError, RunError
from spintune.evaluation.selection import MIN_SELECTION, too_few
from spintune.models.quantized import count_of
from spintune.progress import TRIAL_STEPS
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.storage import digest_json, remove_folder, write_json
from spintune.training.ladder import (
    MAX_RATE,
    Ladder,
    Losses,
    choose,
    climb,
    for_stage,
    gains,
    kept_gain,
    least,
    mean_loss,
    usual_rate,
)
from spintune.training.ladder_plan import BACKWARD, LadderPlan, plan_ladder
from spintune.training.loop import StepReport, Steps, TrainingHooks
from spintune.training.objectives import Objective
from spintune.training.optimization import Optimization
from spintune.training.rate_facts import RateFacts, RungFacts
from spintune.typed_json import JsonObject, from_json, to_json
from spintune.unfinished import check_shard, write_shard

log = logging.getLogger(__name__)

R = TypeVar("R")
H = TypeVar("H")


@dataclass(frozen=True)
class TrialSetting(Generic[R, H]):
    """What a ladder tries rates on.

    Attributes:
        batches: optimizer steps of the stage, as far as their rows are known.
        step_tokens: tokens of each step of the stage.
        rows_per_step: mean number of rows in one.
        optimization: of the stage, at any rate.
        heldout: rows that rungs are judged by, as many as the budget takes.
        heldout_tokens: of each of them.
        losses: of such rows, one each, and ``measure`` what their mean is called.
        passes: what the stage costs for each token, where scoring it costs 1.
    """

    batches: Steps[R]
    step_tokens: Sequence[int]
    rows_per_step: float
    objective: Objective[R]
    optimization: Optimization
    heldout: Sequence[H]
    heldout_tokens: Sequence[int]
    losses: Callable[[Sequence[H]], list[float]]
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

    @property
    def self_play(self) -> bool:
        return self.key == "spin.learning_rate"

    def kept(self, plan: LadderPlan, stage_steps: int) -> float:
        """How much of the best rung's gain the chosen one keeps."""
        return 1.0 if self.self_play else kept_gain(plan.steps, stage_steps)

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
        context.release_engines()
        player = context.load(self.start)
        setting = setting_of(player)
        middle = _middle(context, player, self.self_play)
        if reason := context.cannot_choose or too_few(len(setting.heldout), len(context.heldout)):
            return _usual(middle, setting.measure, reason)
        plan = plan_ladder(
            setting.step_tokens, setting.rows_per_step, setting.heldout_tokens, MIN_SELECTION, setting.passes
        )
        heldout = setting.heldout[: plan.heldout]
        tag, began = digest_json([self.inputs, setting.measure])[:12], time.monotonic()
        rungs = _Rungs(self.folder / "shards", tag)

        def losses_now() -> list[float]:  # a task of its own, so that its time is not that of the steps
            with context.progress.task(f"{self.title}: held-out loss", len(heldout), "rows") as task:
                found = setting.losses(heldout)
                task.advance(len(heldout))
                return found

        start = rungs.losses(0.0, losses_now)
        if start is None:
            raise NonFiniteError(
                f"{self.key}: the {setting.measure} of a held-out example is not a finite number before training; "
                "look at the held-out rows and the model, or give a rate"
            )
        with context.progress.task(f"{self.title}: learning rate", plan.steps_left(len(rungs)), TRIAL_STEPS) as task:

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

                def losses_of(rate: float) -> Sequence[float] | None:
                    return rungs.losses(rate, lambda: losses_now() if ladder.train(rate) else None)

                losses = climb(losses_of, start, middle, self.kept(plan, len(setting.step_tokens)))
            except NonFiniteError as error:  # of the steps before all rungs, which have rate 0
                raise NonFiniteError(
                    f"{self.key}: auto found no rate: training breaks before any is tried "
                    f"({str(error).partition(';')[0]}); look at the rows and the model"
                ) from error
            finally:
                ladder.restore()
        trained = ladder.moment_tokens + len(losses) * ladder.rung_tokens
        judged = len(losses) * sum(setting.heldout_tokens[: plan.heldout])
        share = (BACKWARD * trained + judged) / (setting.passes * sum(setting.step_tokens))
        told = _Told(self, setting.measure, start, losses, plan, len(setting.step_tokens), share)
        return told.facts(trained, time.monotonic() - began)


@dataclass(frozen=True)
class _Told:
    """What a ladder found, in words. Raises NonFiniteError where training broke at every rate."""

    search: RateSearch
    measure: str
    start: Sequence[float]
    losses: Losses
    plan: LadderPlan
    stage_steps: int
    share: float

    def facts(self, tokens: int, seconds: float) -> RateFacts:
        """All of it; ``tokens`` were trained on."""
        rungs = self.losses.items()
        return RateFacts(
            rate=self.rate,
            why=" ".join(self.lines()),
            improved=self.improved,
            at_end=self.at_end,
            measure=self.measure,
            start_loss=mean_loss(self.start),
            rungs=[RungFacts(rate, self.plan.steps, None if rows is None else mean_loss(rows)) for rate, rows in rungs],
            rows=self.plan.heldout,
            moment_steps=self.plan.moments,
            parts=self.plan.parts,
            tokens=tokens,
            share=self.share,
            seconds={"rates": seconds},
        )

    @property
    def rate(self) -> float:
        """The chosen one."""
        if all(rows is None for rows in self.losses.values()):
            raise NonFiniteError(
                f"{self.search.key}: auto found no rate: at every one of {self._span} a loss or gradient became "
                f"infinite or undefined; look at the rows and the model, or give a rate below {min(self.losses):g}"
            )
        return self._for_stage(self.rung)

    def _for_stage(self, rate: float) -> float:
        return for_stage(rate, self.plan.steps, self.stage_steps) if self.search.self_play else rate

    @property
    def rung(self) -> float:
        """The rate of the rung that it comes from."""
        return choose(self.losses, self.start, self.search.kept(self.plan, self.stage_steps))

    @property
    def improved(self) -> bool:
        return gains(self.losses[least(self.losses)], self.start)

    @property
    def at_end(self) -> bool:
        best = least(self.losses)
        return best == min(self.losses) or (best == max(self.losses) and best < MAX_RATE)

    @property
    def _span(self) -> str:
        return f"{min(self.losses):g} to {max(self.losses):g}"

    def lines(self) -> Iterator[str]:
        rate, best, rows = self.rung, least(self.losses), self.plan.heldout
        why = "has the least" if rate == best else f"is the highest that does about as well as {best:g}, by the"
        yield (
            f"of {len(self.losses)} learning rates from {self._span}, each tried for {self.plan.steps} steps, {rate:g} "
            f"{why} {self.measure} on {rows} held-out examples ({mean_loss(self.start):.4f} before, "
            f"{mean_loss(self.losses[rate]):.4f} after); this cost {100 * self.share:.0f} % of what the stage costs."
        )
        if self.rate != rate:
            yield f"For {self.stage_steps} steps that is {self.rate:g}, which is rate · √steps of the short run."
        if not self.improved:
            yield (
                "No rate lowered it by more than its error, so there may be nothing to learn here: give more rows or "
                f"another model, or set {self.search.key} yourself."
            )
        elif self.at_end:
            side, beyond = ("lowest", best / 10) if best == min(self.losses) else ("highest", best * 10)
            beyond = self._for_stage(beyond)
            yield f"The best is the {side} that was tried; {self.search.key}={beyond:g} may be better still."


class _Rungs:
    """The losses of the rungs that are done, on disk, so that a ladder that was stopped goes on with the next one."""

    def __init__(self, folder: Path, tag: str) -> None:
        self._folder, self._tag = folder, tag

    def __len__(self) -> int:
        return len(list(self._folder.glob(f"{self._tag}-*.jsonl")))

    def losses(self, rate: float, compute: Callable[[], list[float] | None]) -> list[float] | None:
        """The losses at a rate, read or computed; None where they are not finite. Rate 0 is the start."""
        path = self._folder / f"{self._tag}-{rate:.1e}.jsonl"
        if path.is_file():
            try:
                return from_json(_RungLosses, orjson.loads(check_shard(path, 1)), path).losses
            except (RunError, OSError) as error:
                log.warning("%s; this rate is tried again", error)
        found = compute()
        if found is not None and not all(map(math.isfinite, found)):
            found = None
        self._folder.mkdir(parents=True, exist_ok=True)
        write_shard(path, [_RungLosses(found)])
        return found


@dataclass(frozen=True)
class _RungLosses:
    losses: list[float] | None


def _usual(rate: float, measure: str, reason: str) -> RateFacts:
    """What a stage without enough held-out examples takes: the rate that a ladder would begin with."""
    return RateFacts(
        rate=rate,
        why=f"learning rate {rate:g} is the usual one for a model of this size and was not tried: {reason}",
        improved=False,
        at_end=False,
        measure=measure,
        start_loss=None,
        rungs=[],
        rows=0,
        moment_steps=0,
        parts=1,
        tokens=0,
        share=0.0,
        seconds={"rates": 0.0},
    )


def _middle(context: RunContext, player: LoadedIterate, self_play: bool) -> float:
    weights = sum(map(count_of, player.loaded.model.parameters()))
    return usual_rate(weights, context.recipe.lora is not None, self_play)
