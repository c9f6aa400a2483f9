"""Commands that show something and write nothing: inspect, mix, doctor, verify, schema."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spintune.cli.options import Json, print_json, print_outcome, recipe_and_overrides
from spintune.storage import cache_folder

if TYPE_CHECKING:
    from spintune.results import DataFacts
    from spintune.tokens.rows import RenderedRows


def inspect(
    words: Annotated[list[str], typer.Argument(help="A recipe and overrides.", metavar="RECIPE [KEY=VALUE]...")],
    rows: Annotated[int, typer.Option(help="How many rows to show.", min=1)] = 3,
    json: Json = False,
) -> None:
    """Show the exact tokens of some training rows, the trained ones colored, and the metric that fits the answers."""
    from spintune.downloads import shown_on
    from spintune.evaluation.metric_choice import choose_metric
    from spintune.models.loading import is_encoder_decoder, load_stop_ids, load_tokenizer
    from spintune.progress_display import open_progress
    from spintune.recipe import load_recipe
    from spintune.stages.data import mixture_of, read_data
    from spintune.tokens.rendering import build_renderer
    from spintune.tokens.rows import render

    recipe = load_recipe(*recipe_and_overrides(words))
    with open_progress(json) as progress, shown_on(progress):
        tokenizer = load_tokenizer(recipe.model, cache=cache_folder())
        renderer = build_renderer(
            tokenizer,
            recipe.data.template,
            recipe.data.turns,
            is_encoder_decoder(recipe.model, cache=cache_folder()),
            recipe.data.generation_prompt,
            load_stop_ids(recipe.model, cache=cache_folder()),
            recipe.data.template_options,
        )
    data = recipe.data.model_copy(update={"eval_fraction": 0.0})  # every row, in the order of the files
    whole = recipe.model_copy(update={"data": data})
    with open_progress(json) as progress:
        found = read_data(whole, mixture_of(recipe, cache_folder()), progress)  # what is held out decides its draws
        longest = (data.max_length, data.max_target_length, progress, data.max_input_length)
        rendered = render(found.train, renderer, *longest)
        held = render(found.heldout, renderer, *longest) if data.heldout else None
    rendered.check_unknown()
    facts = _row_facts(found.facts, rendered, held)
    asked = recipe.evaluation
    references = [example.answer for example in itertools.islice(found.train, 1000)]
    choice = choose_metric(asked.metric, asked.checker, references)
    shown = rendered.rows[:rows]
    if json:
        keys = ("example_id", "prompt_ids", "response_ids", "trained", "complete")
        print_json(
            {**facts, "metric": asdict(choice), "shown": [{key: getattr(row, key) for key in keys} for row in shown]}
        )
        return
    from spintune.cli.data_tables import print_tokens
    from spintune.data.row_reader import named

    facts["ignored_keys"] = named(found.facts.ignored_keys)
    for number, row in enumerate(shown, 1):
        print_tokens(
            [tokenizer.decode([id]) for id in row.prompt_ids],
            [(tokenizer.decode([id]), trained) for id, trained in zip(row.response_ids, row.trained, strict=True)],
            f"row {number}: {len(row.prompt_ids)} prompt tokens, {sum(row.trained)} of {len(row.response_ids)} trained",
        )
    print("\n" + "  ".join(f"{name.replace('_', ' ')}: {value or 0}" for name, value in facts.items()))
    print(choice.line())


def _row_facts(read: DataFacts, rendered: RenderedRows, held: RenderedRows | None) -> dict[str, object]:
    """How many rows and tokens a recipe trains on, and what was left out: kept + dropped = read + repeated + mixed.

    Args:
        held: the held-out rows that the recipe gives.
    """
    lengths = sorted(row.tokens for row in rendered.rows)
    return {
        "read": read.read,
        "repeated": read.repeated,
        **({"mixed": read.mixture.examples} if read.mixture else {}),
        "dropped": {**read.dropped, **(rendered.dropped + (held.dropped if held else Counter()))},
        "cut_after_last_answer": read.trimmed or 0,
        "ignored_keys": read.ignored_keys,
        "truncated": rendered.truncated,
        "rows": len(rendered.rows),
        **({"held_out": len(held.rows)} if held else {}),
        "tokens": sum(lengths),
        "trained_tokens": rendered.answer_tokens,
        "unknown_tokens": rendered.unknown,
        "median_length": lengths[len(lengths) // 2],
        "longest": lengths[-1],
    }


def mix(
    words: Annotated[
        list[str] | None,
        typer.Argument(help="A recipe with a mixture, and overrides.", metavar="[RECIPE] [KEY=VALUE]..."),
    ] = None,
    show: Annotated[str | None, typer.Option(help="Print examples of this task: builtin:NAME or a YAML file.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the files of built-in tasks are.")] = None,
    rows: Annotated[int, typer.Option(help="How many examples to show.", min=1)] = 4,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    json: Json = False,
) -> None:
    """Show a task's examples (--show TASK), or a recipe's mixture with its target and actual shares."""
    from spintune.cli.data_tables import print_examples, print_mixture
    from spintune.errors import RecipeError
    from spintune.mixtures.report import show as examples_of
    from spintune.mixtures.tasks import load_tasks

    path, overrides = recipe_and_overrides(words)
    if show:
        found = load_tasks([show], folder)
        shown = [row for task in found.tasks[:rows] for row in examples_of(task, rows, seed)]
        if json:
            keys = ("prompt", "target", "quadrant", "inverted", "shots", "phrasing", "row", "source")
            print_json([{key: getattr(one, key) for key in keys} for one in shown])
        else:
            print_examples(shown)
        return
    if path is None:
        raise RecipeError("spintune mix needs a recipe with data.mixture, or --show TASK; see spintune mix --help")
    from spintune.progress_display import open_progress
    from spintune.recipe import load_recipe
    from spintune.stages.data import mixture_of, read_data

    recipe = load_recipe(path, overrides)
    if recipe.data.mixture is None:
        raise RecipeError(f"{path} has no data.mixture; add one, or look at a task with --show")
    with open_progress(json) as progress:
        mixed = read_data(recipe, mixture_of(recipe, cache_folder()), progress)
    if mixed.facts.mixture is not None:
        if json:
            print_json(asdict(mixed.facts.mixture))
        else:
            print_mixture(mixed.facts.mixture)


def doctor(
    model: Annotated[str | None, typer.Option(help="Check this model instead: its paths, limits and costs.")] = None,
    clear_cache: Annotated[
        bool, typer.Option("--clear-cache", help="Remove models, tokens and compiled code that can be made again.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what is installed, what each part can use, and what is wrong; with --model, what spintune does with it."""
    if clear_cache:
        _clear_cache(json)
        return
    if model:
        _doctor_model(model, json)
        return
    from spintune.doctor import examine
    from spintune.terminal import print_lines

    findings = examine(cache_folder())
    if json:
        print_json([finding.to_json() for finding in findings])
    else:
        print_lines(f"{'ok   ' if found.fine else 'WRONG'} {found.subject}: {found.text}" for found in findings)
    if not all(finding.fine for finding in findings):
        raise typer.Exit(1)


def _clear_cache(as_json: bool) -> None:
    from spintune import doctor as doctors

    freed = doctors.clear_cache(cache_folder())
    print_outcome({"freed": freed}, f"{cache_folder()}: removed {doctors.sizes_text(freed)}", as_json)


def _doctor_model(name: str, as_json: bool) -> None:
    from spintune.cli.execution import quiet_libraries
    from spintune.downloads import shown_on
    from spintune.progress_display import open_progress
    from spintune.typed_json import to_json

    with open_progress(as_json) as progress, shown_on(progress):
        progress.note("loading torch and transformers")
        from spintune.model_report import report_model

        quiet_libraries()
        report = report_model(name, cache_folder(), progress)
    if as_json:
        print_json(to_json(report))
    else:
        for subject, text in report.lines():
            print(f"ok    {subject}: {text}")
        for problem in report.problems:
            print(f"WRONG {problem}")
    if report.problems:
        raise typer.Exit(1)


def verify(run: Annotated[Path, typer.Argument(help="A run folder.")], json: Json = False) -> None:
    """Read every file of a run and compare it with its digest: what is whole, changed, missing, damaged or added.

    A start of a run looks at sizes and times only.
    """
    from spintune.errors import DamagedRunError
    from spintune.progress_display import open_progress
    from spintune.terminal import print_lines
    from spintune.typed_json import to_json
    from spintune.verification import verify_run

    with open_progress(json) as progress:
        found = verify_run(run, progress)
    if json:
        print_json(to_json(found))
    else:
        print_lines(found.lines())
    if found.problems:
        count = len(found.problems)
        problems = f"{count} problem{'s' * (count != 1)} beside {found.files} whole files"
        raise DamagedRunError(f"{run}: {problems}; do as each line says, then run the recipe again")


def schema() -> None:
    """Print the JSON Schema of recipes, for editors."""
    from spintune.recipe import recipe_schema

    print_json(recipe_schema())
