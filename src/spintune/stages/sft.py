"""Supervised fine-tuning of the recipe's model, and the baseline that self-play has to beat."""

from __future__ import annotations

import math
import time
from typing import Any

from spintune.recipe import SftSection, SpinSection
from spintune.run_folder import BASELINE
from spintune.stages.context import Iterate, RunContext, delete
from spintune.stages.metering import Meter
from spintune.training.optimization import optimization_of
from spintune.training.sft import SftHooks, SftRows, run_sft, steps_of_epochs, steps_of_tokens


def sft_stage(context: RunContext, section: SftSection, base: Iterate) -> tuple[Iterate, dict[str, Any]]:
    """Trains the base model on the training examples; the iterate and what was found."""
    inputs = context.inputs(base, sft=context.settings["sft"])
    facts = context.run.finished("sft", inputs)
    if facts is None:
        return _train(context, section, base, "sft", "sft", inputs, None)
    delete(context.run.folder / "sft" / "checkpoints")
    return context.published("sft", "sft"), facts


def baseline_stage(
    context: RunContext, spin: SpinSection, start: Iterate, steps: int, tokens: int
) -> tuple[Iterate, dict[str, Any]]:
    """Trains iterate 0 further by SFT for as many steps as self-play took, of as many tokens on average.

    Generating and scoring cost self-play more; what is equal is the computing that changes weights. It trains as the
    recipe's sft section says, at spin.baseline_learning_rate where that is given, and goes on in the order of rows
    behind the epochs that SFT has seen.
    """
    stage = "spin/baseline-sft"
    section = context.recipe.sft or SftSection.model_validate({})
    if spin.baseline_learning_rate is not None:
        section = section.model_copy(update={"learning_rate": spin.baseline_learning_rate})
    seen = math.ceil(section.epochs) if context.recipe.sft else 0
    budget = {"steps": steps, "tokens": tokens, "first_epoch": seen}
    inputs = context.inputs(start, sft=section.model_dump(mode="json"), budget=budget)
    facts = context.run.finished(stage, inputs)
    if facts is None:
        return _train(context, section, start, BASELINE, stage, inputs, (steps, tokens, seen))
    delete(context.run.folder / stage / "checkpoints")
    return context.published(BASELINE, stage), facts


def _train(
    context: RunContext,
    section: SftSection,
    start: Iterate,
    name: str,
    stage: str,
    inputs: dict[str, Any],
    budget: tuple[int, int, int] | None,
) -> tuple[Iterate, dict[str, Any]]:
    recipe, folder = context.recipe, context.run.folder / stage
    player = context.load(start)
    renderer = player.renderer(recipe.data.turns)
    train = context.render(context.train, renderer)
    heldout = context.render_heldout(context.heldout, renderer)
    steps = (
        steps_of_epochs(train.rows, section, recipe.seed)
        if budget is None
        else steps_of_tokens(train.rows, steps=budget[0], tokens=budget[1], seed=recipe.seed, first_epoch=budget[2])
    )
    prompts = {example.id: example for example in context.heldout}
    losses: list[float] = []

    def begin(step: int) -> None:
        context.metrics.begin(stage, step)
        # an evaluation of the step that the checkpoint was taken after stays; one of step 0 comes again
        evaluated_until = step or -1
        context.metrics.begin(f"{stage}/heldout", evaluated_until)
        samples.rewind(stage, evaluated_until)

    def evaluated(step: int, loss: float, answers: list[str]) -> None:
        losses.append(loss)
        context.metrics.add(f"{stage}/heldout", step, loss=loss)
        context.progress.note(f"{_title(name)} step {step}: held-out loss {loss:.4f} nats a token")
        for row, answer in zip(heldout, answers, strict=False):
            example = prompts[row.example_id]
            samples.append(stage, step, prompt=example.prompt[-1].content, reference=example.answer, answer=answer)

    meter = Meter(player.engine)
    started = time.monotonic()
    with (
        context.run.log(f"{stage}/samples.jsonl") as samples,
        context.progress.task(_title(name), len(steps), "steps") as task,
    ):
        run_sft(
            player.engine,
            player.generator,
            SftRows(train.rows, steps, heldout, heldout[: section.samples]),
            optimization_of(section, section.learning_rate, recipe.seed),
            context.checkpoints(folder, inputs, section),
            task,
            SftHooks(begin, context.step_logger(stage, meter), evaluated),
        )
    facts = {
        "rows": len(train.rows),
        "dropped": dict(train.dropped),
        "truncated": train.truncated,
        "steps": len(steps),
        "heldout_loss": losses[-1] if losses else None,
        "learning_rate": section.learning_rate,
        "seconds": {"train": time.monotonic() - started},
        "hardware": meter.facts(),
    }
    iterate = context.publish(player, name, stage, inputs, facts)
    delete(folder / "checkpoints")
    return iterate, facts


def _title(name: str) -> str:
    return "SFT" if name == "sft" else "SFT baseline"
