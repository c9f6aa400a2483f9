"""Supervised fine-tuning of the recipe's model, and the baseline that self-play has to beat."""

from __future__ import annotations

import time
from typing import Any

from spintune.recipe import SftSection
from spintune.stages.workbench import BASELINE, Iterate, Workbench, delete
from spintune.training.sft import run_sft, steps_of_epochs, steps_of_tokens


def sft_stage(bench: Workbench, section: SftSection, base: Iterate) -> tuple[Iterate, dict[str, Any]]:
    """Trains the base model on the training examples; the iterate and what was found."""
    inputs = bench.inputs(base, sft=bench.settings["sft"])
    facts = bench.run.finished("sft", inputs)
    if facts is None:
        return _train(bench, section, base, "sft", "sft", inputs, None)
    delete(bench.run.folder / "sft" / "checkpoints")
    return bench.published("sft", "sft"), facts


def baseline_stage(
    bench: Workbench, section: SftSection, start: Iterate, steps: int, tokens: int
) -> tuple[Iterate, dict[str, Any]]:
    """Trains iterate 0 further by SFT for as many steps as self-play took, of as many tokens on average.

    Generating and scoring cost self-play more; what is equal is the computing that changes weights.
    """
    stage = "spin/baseline-sft"
    budget = {"steps": steps, "tokens": tokens}
    inputs = bench.inputs(start, sft=bench.settings["sft"] or section.model_dump(mode="json"), budget=budget)
    facts = bench.run.finished(stage, inputs)
    if facts is None:
        return _train(bench, section, start, BASELINE, stage, inputs, (steps, tokens))
    delete(bench.run.folder / stage / "checkpoints")
    return bench.published(BASELINE, stage), facts


def _train(
    bench: Workbench,
    section: SftSection,
    start: Iterate,
    name: str,
    stage: str,
    inputs: dict[str, Any],
    budget: tuple[int, int] | None,
) -> tuple[Iterate, dict[str, Any]]:
    recipe, folder = bench.recipe, bench.run.folder / stage
    player = bench.load(start)
    renderer = player.renderer(recipe.data.turns)
    train = bench.render(bench.train, renderer)
    heldout = bench.render_heldout(bench.heldout, renderer)
    steps = (
        steps_of_epochs(train.rows, section, recipe.seed)
        if budget is None
        else steps_of_tokens(train.rows, *budget, recipe.seed)
    )
    prompts = {example.id: example for example in bench.heldout}
    losses: list[float] = []

    def begin(step: int) -> None:
        bench.metrics.begin(stage, step)
        # an evaluation of the step that the checkpoint was taken after stays; one of step 0 comes again
        evaluated_until = step or -1
        bench.metrics.begin(f"{stage}/heldout", evaluated_until)
        samples.rewind(stage, evaluated_until)

    def evaluated(step: int, loss: float, answers: list[str]) -> None:
        losses.append(loss)
        bench.metrics.add(f"{stage}/heldout", step, loss=loss)
        bench.progress.note(f"{_title(name)} step {step}: held-out loss {loss:.4f} nats a token")
        for row, answer in zip(heldout, answers, strict=False):
            example = prompts[row.example_id]
            samples.append(stage, step, prompt=example.prompt[-1].content, reference=example.answer, answer=answer)

    started = time.monotonic()
    with bench.run.log(f"{stage}/samples.jsonl") as samples:
        run_sft(
            player.engine,
            player.generator,
            train.rows,
            steps,
            heldout,
            section,
            recipe.seed,
            recipe.tokens_per_forward,
            bench.checkpoints(folder, inputs, section),
            bench.progress,
            _title(name),
            begin,
            bench.step_logger(stage),
            evaluated,
        )
    facts = {
        "rows": len(train.rows),
        "dropped": dict(train.dropped),
        "truncated": train.truncated,
        "steps": len(steps),
        "heldout_loss": losses[-1] if losses else None,
        "seconds": time.monotonic() - started,
    }
    iterate = bench.publish(player, name, stage, inputs, facts)
    delete(folder / "checkpoints")
    return iterate, facts


def _title(name: str) -> str:
    return "SFT" if name == "sft" else "SFT baseline"
