"""Supervised fine-tuning of the recipe's model, and the baseline that self-play has to beat."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from spintune.recipe import SftSection, SpinSection
from spintune.results import SftFacts
from spintune.run_folder import BASELINE, SFT
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate
from spintune.stages.metering import Meter
from spintune.step_log import StepLog
from spintune.storage import remove_folder
from spintune.tokens.rows import TokenRow
from spintune.training.batches import steps_of_equal_tokens
from spintune.training.optimization import optimization_of
from spintune.training.sft import SftHooks, SftRows, run_sft, steps_of_epochs
from spintune.typed_json import JsonObject


@dataclass(frozen=True)
class _Budget:
    """Optimizer steps and tokens of the baseline; ``first_epoch`` follows the epochs that SFT has trained on."""

    steps: int
    tokens: int
    first_epoch: int


@dataclass(frozen=True)
class _Training:
    """One training by SFT: of the iterate ``start``, as the iterate ``name``, for the epochs or a budget."""

    name: str
    stage: str
    start: Iterate
    section: SftSection
    inputs: JsonObject
    budget: _Budget | None = None

    @property
    def title(self) -> str:
        return "SFT" if self.name == SFT else "SFT baseline"


def sft_stage(context: RunContext, section: SftSection, base: Iterate) -> tuple[Iterate, SftFacts]:
    """Trains the base model on the training examples."""
    inputs = context.training_inputs(base, sft=deciding_settings(context.settings["sft"]))
    return _run(context, _Training(SFT, "sft", base, section, inputs))


def baseline_stage(
    context: RunContext, spin: SpinSection, start: Iterate, steps: int, tokens: int
) -> tuple[Iterate, SftFacts]:
    """Trains iterate 0 further by SFT, for as many steps and tokens as self-play took.

    The computation that changes weights is then equal; self-play also generates and scores answers. The baseline trains
    as the recipe's sft section says, at spin.baseline_learning_rate if that is given, and continues the order of rows
    after the epochs of SFT.
    """
    section = context.recipe.sft or SftSection()
    if spin.baseline_learning_rate is not None:
        section = section.model_copy(update={"learning_rate": spin.baseline_learning_rate})
    budget = _Budget(steps, tokens, math.ceil(section.epochs) if context.recipe.sft else 0)
    inputs = context.training_inputs(start, sft=deciding_settings(section.model_dump(mode="json")), budget=vars(budget))
    return _run(context, _Training(BASELINE, "spin/baseline-sft", start, section, inputs, budget))


def deciding_settings(settings: JsonObject) -> JsonObject:
    """Settings for the inputs of a stage. Those that do not change the weights count as by default.

    Keys that are not set and that the first version did not have are left out, so that what it finished stays so.
    """
    neutral = ("samples", "checkpoint_minutes")
    others: JsonObject = {key: SftSection.model_fields[key].default for key in neutral if key in settings}
    return {key: value for key, value in {**settings, **others}.items() if value is not None or key == "max_steps"}


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
    train = context.render(context.train, renderer)
    heldout = context.render_heldout(context.heldout, renderer)
    if training.budget is None:
        steps = steps_of_epochs(train.rows, section, recipe.seed)
    else:
        budget, tokens = training.budget, [row.tokens for row in train.rows]
        steps = steps_of_equal_tokens(tokens, budget.steps, budget.tokens, recipe.seed, budget.first_epoch)
    meter = Meter(player.engine)
    started = time.monotonic()
    with (
        closing(StepLog(_samples(context, training))) as samples,
        context.progress.task(training.title, len(steps), "steps") as task,
    ):
        evaluations = _Evaluations(context, training, heldout, samples)
        run_sft(
            player.engine,
            player.generator,
            SftRows(train.rows, steps, heldout, heldout[: section.samples]),
            replace(
                optimization_of(section, section.learning_rate, recipe.seed), router_aux_loss=recipe.router_aux_loss
            ),
            context.checkpoints(stage, training.inputs, section, samples),
            task,
            SftHooks(evaluations.begin, context.step_logger(stage, meter), context.stop, evaluations.add),
        )
    facts = SftFacts(
        rows=len(train.rows),
        dropped=dict(train.dropped),
        truncated=train.truncated,
        unknown=train.unknown,
        steps=len(steps),
        heldout_loss=evaluations.loss,
        learning_rate=section.learning_rate,
        seconds={"train": time.monotonic() - started},
        hardware=meter.facts(),
    )
    return context.publish(player, training.name, stage, training.inputs, facts), facts


def _samples(context: RunContext, training: _Training) -> Path:
    return context.run.folder / training.stage / "samples.jsonl"


class _Evaluations:
    """Logs the held-out loss, and answers to a few held-out prompts, while SFT trains.

    Attributes:
        loss: the last held-out loss; None before the first evaluation. [nats per token]
    """

    def __init__(self, context: RunContext, training: _Training, heldout: Sequence[TokenRow], samples: StepLog) -> None:
        self.loss: float | None = None
        self._context, self._training, self._samples = context, training, samples
        examples = {example.id: example for example in context.heldout}
        self._examples = [examples[row.example_id] for row in heldout[: training.section.samples]]

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
        self.loss = loss
        context.metrics.add(f"{stage}/heldout", step, loss=loss)
        context.progress.note(f"{self._training.title} step {step}: held-out loss {loss:.4f} nats per token")
        for example, answer in zip(self._examples, answers, strict=True):
            prompt = example.prompt[-1].content
            self._samples.append(stage, step, prompt=prompt, reference=example.answer, answer=answer)
