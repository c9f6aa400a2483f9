"""Commands that run stages: run, synth, sft, spin, eval."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spintune.cli.dry_run import show_stages
from spintune.cli.execution import execute
from spintune.cli.options import (
    Data,
    Heldout,
    Model,
    Out,
    OutputOptions,
    Overrides,
    RecipeFile,
    RunOptions,
    Words,
    data_flags,
    flags_as_overrides,
    grouped,
    need_section,
    recipe_and_overrides,
    stage_recipe,
)

if TYPE_CHECKING:
    from spintune.pipeline import Stage
    from spintune.recipe import Recipe

RANKED = ("run", "sft", "spin", "eval")
"""The commands that many ranks execute together."""


@grouped
def run(recipe: RecipeFile, overrides: Overrides = None, options: RunOptions = RunOptions()) -> None:
    """Run every stage a recipe names. The same command resumes a stopped run and repeats nothing."""
    from spintune.recipe import load_recipe

    _do(load_recipe(recipe, overrides), "eval", options)


@grouped
def synth(
    words: Words = None,
    seeds: Annotated[str | None, typer.Option(help="Seed tasks: builtin:seeds or a file.")] = None,
    model: Annotated[
        str | None, typer.Option(help="The teacher: a model on this machine, or its name at the endpoint.")
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="An endpoint with OpenAI's protocol; without it, the model runs here.")
    ] = None,
    instructions: Annotated[int | None, typer.Option(help="New instructions to accept.", min=1)] = None,
    out: Out = None,
    output: OutputOptions = OutputOptions(),
) -> None:
    """Write instruction data from seed tasks: a recipe's synth stage, or flags alone (all have defaults)."""
    from spintune.recipe import DEFAULT_MODEL, load_recipe, recipe_values

    path, overrides = recipe_and_overrides(words)
    flags = {"synth.seeds": seeds, "synth.instructions": instructions, "out": out, "synth.teacher.url": url}
    base = {"model": DEFAULT_MODEL, "data": {"train": "synth"}, "out": "runs/synth", "synth": {}}
    section = recipe_values(path, [*flags_as_overrides(flags), *overrides], base).get("synth")
    has_teacher = isinstance(section, dict) and isinstance(section.get("teacher"), dict)
    flags["synth.teacher.model" if has_teacher else "model"] = model
    recipe = load_recipe(path, [*flags_as_overrides(flags), *overrides], base)
    if path:
        need_section(recipe, path, "synth")
    execute(recipe, "synth", output)


@grouped
def sft(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    heldout: Heldout = None,
    out: Out = None,
    options: RunOptions = RunOptions(),
) -> None:
    """Supervised fine-tuning: a recipe's sft stage, or --model and --data alone."""
    _do(*stage_recipe("sft", words, model, data, out, heldout), options)


@grouped
def spin(
    words: Words = None,
    model: Model = None,
    data: Data = None,
    heldout: Heldout = None,
    out: Out = None,
    options: RunOptions = RunOptions(),
) -> None:
    """Self-play fine-tuning: a recipe up to its spin stage, or --model and --data alone.

    In our experiments further SFT on the same answers gained as much or more (docs/lab/self-play-map.md). By flags
    alone both are trained and compared, and the run says which model to use.
    """
    _do(*stage_recipe("spin", words, model, data, out, heldout), options)


@grouped
def evaluate(
    words: Words = None,
    model: Annotated[str | None, typer.Option(help="Alias, model or run folder, GGUF file, or hub id.")] = None,
    data: Data = None,
    heldout: Heldout = None,
    on: Annotated[
        list[str] | None,
        typer.Option(help="ifeval, questions, mt-bench, heldout, spin-paper, a task of lm-eval or FILE.yaml."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Ask only the first items of each.", min=1)] = None,
    out: Out = None,
    options: RunOptions = RunOptions(),
) -> None:
    """Evaluate a recipe's models as its eval says, or one model by flags alone: --model M --on TASK."""
    from spintune.errors import RecipeError
    from spintune.recipe import HELDOUT, load_recipe
    from spintune.run_models import final_model

    path, overrides = recipe_and_overrides(words)
    if model and (Path(model) / "recipe.json").is_file():
        model = final_model(Path(model))
    flags = {"model": model, **data_flags(data, heldout), "eval": on, "evaluation.limit": limit, "out": out}
    if path is None and not (model and on):
        raise RecipeError("spintune eval needs a recipe, or --model and --on; see spintune eval --help")
    sections = {re.split("[.=]", one)[0] for one in overrides}
    if path is None and HELDOUT in (on or ()) and not (data or heldout) and "data" not in sections:
        raise RecipeError(
            f"--on {HELDOUT} needs held-out examples; give --heldout FILE, or --data FILE to hold out a part of it"
        )
    base: dict[str, object] = {"out": "runs/eval"}
    recipe = load_recipe(path, [*flags_as_overrides(flags), *overrides], None if path else base)
    _do(recipe, "eval", options)


def _do(recipe: Recipe, until: Stage, options: RunOptions) -> None:
    if options.dry_run:
        show_stages(recipe, until, options.json)
    else:
        execute(recipe, until, options.output, (options.gpus, options.processes))
