"""Supervised fine-tuning of the recipe's model, and the baseline that self-play has to beat."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from spintune.errors import DataError
from spintune.evaluation.selection import too_few
from spintune.number_files import NumberFile
from spintune.recipe import AUTO_RATE, SftSection, SpinSection
from spintune.records import Example
from spintune.results import SftFacts
from spintune.run_folder import BASELINE, SFT
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.stages.metering import Meter, step_logger
from spintune.stages.rates import RateSearch, TrialSetting
from spintune.step_log import StepLog
from spintune.storage import remove_folder
from spintune.tokens.rows import RowRenderer, TokenRow, row_lengths
from spintune.training.batches import Batches, steps_of_equal_tokens
from spintune.training.objectives import NegativeLogLikelihood
from spintune.training.optimization import Optimization, optimization_of
from spintune.training.sft import (
    HeldoutRule,
    SftHooks,
    SftOutcome,
    SftRows,
    evaluation_steps,
    row_losses,
    run_sft,
    steps_of_epochs,
)
from spintune.typed_json import JsonObject


@dataclass(frozen=True)
class _Budget:
    """Optimizer steps and tokens of the baseline; ``first_epoch`` follows the epochs that SFT has trained on."""

    steps: int
    tokens: int
    first_epoch: int


@dataclass(frozen=True)
class _Training:
    """One training by SFT: of the iterate ``start`` on examples, as the iterate ``name``, for epochs or a budget."""

    name: str
    stage: str
    start: Iterate
    examples: Sequence[Example]
    section: SftSection
    inputs: JsonObject
    budget: _Budget | None = None

    @property
    def title(self) -> str:
        return "SFT" if self.name == SFT else "SFT baseline"


def sft_stage(context: RunContext, section: SftSection, base: Iterate) -> tuple[Iterate, SftFacts]:
    """Trains the base model on the training examples."""
    inputs = context.training_inputs(base, sft=deciding_settings(context.settings["sft"]))
    return _run(context, _with_rate(context, _Training(SFT, "sft", base, context.seen, section, inputs)))


def baseline_stage(
    context: RunContext, spin: SpinSection, start: Iterate, steps: int, tokens: int
) -> tuple[Iterate, SftFacts]:
    """Trains iterate 0 further by SFT, for as many steps and tokens as self-play took.

    The computation that changes weights is then equal; self-play also generates and scores answers. The baseline trains
    as the recipe's sft section says, at spin.baseline_learning_rate if that is given, and continues the order of rows
    after the epochs of SFT. It takes all steps and, so that it is as strong as it can be, keeps its best one where SFT
    does. It trains on the examples that self-play plays on.
    """
    section = (context.recipe.sft or SftSection()).model_copy(update={"patience": None})
    if spin.baseline_learning_rate is not None:
        section = section.model_copy(update={"learning_rate": spin.baseline_learning_rate})
    known = context.recipe.sft and spin.prompts != "unseen"
    budget = _Budget(steps, tokens, math.ceil(section.epochs) if known else 0)
    inputs = context.training_inputs(
        start,
        sft=deciding_settings(section.model_dump(mode="json")),
        budget=vars(budget),
        **({"prompts": spin.prompts} if spin.prompts else {}),
    )
    training = _Training(BASELINE, "spin/baseline-sft", start, context.played, section, inputs, budget)
    return _run(context, _with_rate(context, training))


def _with_rate(context: RunContext, training: _Training) -> _Training:
    """The training at the rate that a ladder finds, if the recipe says auto."""
    if training.section.learning_rate != AUTO_RATE:
        return training
    key = "spin.baseline_learning_rate" if training.name == BASELINE else "sft.learning_rate"
    search = RateSearch(context, key, training.title, training.stage, training.start, training.inputs)
    rate = search.find(lambda player: _trial(context, training, player)).rate
    section = training.section.model_copy(update={"learning_rate": rate})
    return replace(training, section=section, inputs={**training.inputs, "rate": rate})


def _trial(context: RunContext, training: _Training, player: LoadedIterate) -> TrialSetting[TokenRow, TokenRow]:
    """What rates of SFT are tried on."""
    renderer = player.renderer(context.recipe.data.turns)
    train = context.render(training.examples, renderer).rows
    heldout = context.render_heldout(context.selection, renderer)
    lengths = row_lengths(train, context.progress)
    steps = _steps(context, training, lengths)
    length_N = lengths.read(0, len(lengths))
    return TrialSetting(
        Batches(train, steps),
        array("q", (int(length_N[step].sum()) for step in steps)),
        sum(map(len, steps)) / len(steps),
        NegativeLogLikelihood(),
        _optimization(context, training.section),
        heldout,
        [row.tokens for row in heldout],
        lambda rows: row_losses(player.engine, rows),
        "loss",
    )


def _steps(context: RunContext, training: _Training, lengths: NumberFile) -> Sequence[list[int]]:
    """The rows of each optimizer step, by index."""
    seed, budget = context.recipe.seed, training.budget
    if budget is None:
        return steps_of_epochs(lengths, training.section, seed)
    return steps_of_equal_tokens(lengths, budget.steps, budget.tokens, seed, budget.first_epoch)


def _optimization(context: RunContext, section: SftSection) -> Optimization:
    rate = 0.0 if section.learning_rate == AUTO_RATE else section.learning_rate
    found = optimization_of(section, rate, context.recipe.seed)
    recipe = context.recipe
    return replace(found, router_aux_loss=recipe.router_aux_loss, offload=recipe.offload in ("optimizer", "both"))


def deciding_settings(settings: JsonObject) -> JsonObject:
    """Settings for the inputs of a stage. Those that do not change the weights count as by default.

    Keys that the first version did not have are left out where they are not set or do not matter, so that what it
    finished stays so.
    """
    neutral = ("samples", "checkpoint_minutes")
    others: JsonObject = {key: SftSection.model_fields[key].default for key in neutral if key in settings}
    known = {key: value for key, value in {**settings, **others}.items() if key != "checkpoint_write"}
    return {key: value for key, value in known.items() if value is not None or key == "max_steps"}


def _run(context: RunContext, training: _Training) -> tuple[Iterate, SftFacts]:
    facts = context.run.finished(training.stage, training.inputs, SftFacts)
    if facts is None:
        iterate, facts = _train(context, training)
    else:
        iterate = context.published(training.name, training.stage)
        StepLog(_samples(context, training)).mend()
    remove_folder(context.run.folder / training.stage / "checkpoints")
    return iterate, facts


def _train(context: RunContext, training: _Training) -> tuple[Iterate, SftFacts]:
    recipe, section, stage = context.recipe, training.section, training.stage
    player = context.load(training.start)
    renderer = player.renderer(recipe.data.turns)
    train = context.render(training.examples, renderer)
    heldout = _Heldout(context, training, renderer)
    steps = _steps(context, training, row_lengths(train.rows, context.progress))
    optimization = _optimization(context, section)
    if len(evaluation_steps(steps, len(train.rows), heldout.rule.every)) > 1:
        heldout.tell_unless_chosen()
    meter = Meter(player.engine)
    log_step = step_logger(context.metrics, stage, meter)
    started = time.monotonic()
    with (
        closing(StepLog(_samples(context, training))) as samples,
        context.progress.task(training.title, len(steps), "steps") as task,
    ):
        evaluations = _Evaluations(context, training, heldout, samples)
        outcome = run_sft(
            player.engine,
            player.generator,
            SftRows(train.rows, steps, heldout.measured, [row for row, _ in heldout.sampled]),
            heldout.rule,
            optimization,
            context.checkpoints(stage, training.inputs, section, samples),
            task,
            SftHooks(evaluations.begin, log_step, context.stop, on_evaluation=evaluations.add),
        )
    with context.stop.held():  # no checkpoint has the last step
        for line in (*_told(training, outcome, len(steps), heldout.rule), *meter.notes(training.title)):
            context.progress.note(line)
        facts = SftFacts(
            rows=len(train.rows),
            dropped=dict(train.dropped),
            truncated=train.truncated,
            unknown=train.unknown,
            steps=outcome.steps,
            heldout_loss=outcome.loss,
            learning_rate=optimization.learning_rate,
            seconds={"train": time.monotonic() - started},
            hardware=meter.facts(),
            planned_steps=len(steps),
            kept_step=outcome.kept,
            chosen_by=heldout.examples if heldout.rule.keep_best else 0,
            start_loss=outcome.losses.start if outcome.losses else None,
        )
        return context.publish(player, training.name, stage, training.inputs, facts), facts


def _samples(context: RunContext, training: _Training) -> Path:
    return context.run.folder / training.stage / "samples.jsonl"


class _Heldout:
    """The held-out rows of SFT.

    Those that choose are measured, so that what reports on the models of the run has chosen nothing. All are measured
    where those that choose are too few, and SFT then ends with its last step.

    Attributes:
        rows: all.
        measured: those whose loss is measured.
        examples: how many can choose.
        rule: what is done with their losses.

    Raises DataError when the recipe asks for a choice and there are too few to choose by.
    """

    def __init__(self, context: RunContext, training: _Training, renderer: RowRenderer) -> None:
        self._context, self._training = context, training
        section, selection = training.section, {example.id for example in context.selection}
        self.rows = context.render_heldout(context.heldout, renderer)
        self._units = {unit.id: (unit, whole) for whole in context.heldout for unit in renderer.units(whole)}
        choosing = [row for row in self.rows if self._whole(row) in selection]
        self.examples = len(set(map(self._whole, choosing)))
        self._too_few = too_few(self.examples, len(set(map(self._whole, self.rows))))
        if self._too_few and (section.keep == "best" or section.patience):
            raise DataError(f"sft.{'keep' if section.keep == 'best' else 'patience'}: {self._too_few}")
        self.measured = self.rows if self._too_few else choosing
        keep_best = section.keep != "last" and not self._too_few
        self.rule = HeldoutRule(section.eval_every or 1.0, keep_best, section.patience)

    def _whole(self, row: TokenRow) -> str:
        """The id of the held-out example that a row, or one of its answers, belongs to."""
        return self._units[row.example_id][1].id

    @property
    def sampled(self) -> list[tuple[TokenRow, Example]]:
        """The rows whose prompts are answered at each evaluation, with the examples that they are made of."""
        return [(row, self._units[row.example_id][0]) for row in self.rows[: self._training.section.samples]]

    def tell_unless_chosen(self) -> None:
        """Says why the last step is kept where the recipe does not ask for that."""
        if self.rows and self._too_few and self._training.section.keep is None:
            self._context.progress.note(f"{self._training.title} keeps its last step: {self._too_few}")


def _told(training: _Training, outcome: SftOutcome, planned: int, rule: HeldoutRule) -> Iterator[str]:
    """Which step was kept, and whether training ended early."""
    title, losses = training.title, outcome.losses
    if losses is None or losses.best is None:
        return
    if outcome.steps < planned:
        yield (
            f"{title} stops after step {outcome.steps} of {planned}: {_times(losses.later)} without a lower held-out "
            "loss (sft.patience)"
        )
    if outcome.kept < outcome.steps:
        end = "" if losses.last is None else f", {losses.last:.4f} at step {outcome.steps}"
        yield (
            f"{title} keeps step {outcome.kept} of {outcome.steps}, with the least held-out loss: {losses.best:.4f} "
            f"nats per token there{end}"
        )
    if rule.keep_best and losses.start is not None and losses.best >= losses.start:
        yield (
            f"warning, {title}: no step has a lower held-out loss ({losses.best:.4f}) than the model before "
            f"({losses.start:.4f}); lower the learning rate or give more data"
        )


def _times(evaluations: int) -> str:
    return f"{evaluations} evaluations" if evaluations > 1 else "an evaluation"


class _Evaluations:
    """Logs the held-out loss, and answers to a few held-out prompts, while SFT trains."""

    def __init__(self, context: RunContext, training: _Training, heldout: _Heldout, samples: StepLog) -> None:
        self._context, self._training, self._samples = context, training, samples
        self._examples = [example for _, example in heldout.sampled]

    def begin(self, step: int) -> None:
        """Training starts, or resumes after ``step`` steps."""
        stage, metrics = self._training.stage, self._context.metrics
        metrics.begin_steps(stage, step)
        # the evaluation after the checkpoint's own step stays; the one before step 1 runs again
        evaluated_until = step or -1
        metrics.begin(f"{stage}/heldout", evaluated_until)
        self._samples.rewind(stage, evaluated_until)

    def add(self, step: int, loss: float, answers: Sequence[str]) -> None:
        """Logs one evaluation."""
        stage, context = self._training.stage, self._context
        context.metrics.add(f"{stage}/heldout", step, loss=loss)
        for example, answer in zip(self._examples, answers, strict=True):
            prompt = example.prompt[-1].content
            self._samples.append(stage, step, prompt=prompt, reference=example.answer, answer=answer)
