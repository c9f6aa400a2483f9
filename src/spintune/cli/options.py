"""What several commands share: their options, and how words on a command line become a recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, get_type_hints

import typer

if TYPE_CHECKING:
    from spintune.pipeline import Stage
    from spintune.recipe import Recipe


def complete_keys(incomplete: str) -> list[str]:
    """The keys of a recipe that a word may become, for the shell; words with other letters are files."""
    from spintune.recipe import every_key

    return [f"{key}=" for key in every_key() if key.startswith(incomplete)] if incomplete else []


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key.path=value, values in YAML", metavar="[KEY=VALUE]...", autocompletion=complete_keys),
]
Details = Annotated[bool, typer.Option("--details", help="At the end, also the tables of what was measured.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output: results on stdout, events on stderr.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Only warnings, errors, and the outcome in a sentence.")]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="List the stages and which are finished; run nothing, write nothing.")
]
RecipeFile = Annotated[
    Path, typer.Argument(help="A YAML file, or the name of a recipe in spintune (spintune recipes).", metavar="RECIPE")
]
Words = Annotated[
    list[str] | None,
    typer.Argument(
        help="A recipe and key.path=value overrides, or overrides alone.",
        metavar="[RECIPE] [KEY=VALUE]...",
        autocompletion=complete_keys,
    ),
]
Model = Annotated[str | None, typer.Option(help="Alias, local folder, GGUF file, or hub id[@revision].")]
Data = Annotated[str | None, typer.Option(help="builtin:NAME, a local file, or a hub id.")]
Heldout = Annotated[
    str | None,
    typer.Option(help="Your own held-out examples, named as the data is; then no part of the data is held out."),
]
RunModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Of a run: best (what the run decided to use), last, base, sft, sft-more or iterate-N. Default: best.",
    ),
]
Gpus = Annotated[
    int | None,
    typer.Option("--gpus", help="Use this many GPUs, one process each; for several nodes use torchrun.", min=1),
]
Processes = Annotated[int | None, typer.Option("--processes", help="Use this many processes on the CPU.", min=1)]
Out = Annotated[str | None, typer.Option(help="The run folder.")]


@dataclass(frozen=True)
class OutputOptions:
    """How a run shows itself."""

    quiet: Quiet = False
    details: Details = False
    json: Json = False


@dataclass(frozen=True)
class RunOptions:
    """Where a run that trains runs, and how it shows itself."""

    gpus: Gpus = None
    processes: Processes = None
    dry_run: DryRun = False
    quiet: Quiet = False
    details: Details = False
    json: Json = False

    @property
    def output(self) -> OutputOptions:
        """How it shows itself."""
        return OutputOptions(self.quiet, self.details, self.json)


def grouped(command: Callable[..., None]) -> Callable[..., None]:
    """A command with a parameter for each option, made of one that takes some as a dataclass."""
    hints = get_type_hints(command, include_extras=True)
    parameters: list[Parameter] = []
    groups: dict[str, tuple[Callable[..., object], list[str]]] = {}
    for one in signature(command).parameters.values():
        hint = hints[one.name]
        if is_dataclass(hint):
            types, members = get_type_hints(hint, include_extras=True), fields(hint)
            groups[one.name] = (hints[one.name], [field.name for field in members])
            parameters += [
                Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name])
                for field in members
            ]
        else:
            parameters.append(one.replace(annotation=hint, kind=Parameter.KEYWORD_ONLY))

    @wraps(command)
    def expanded(**values: object) -> None:
        for name, (group, members) in groups.items():
            values[name] = group(**{member: values.pop(member) for member in members})
        command(**values)

    expanded.__signature__ = Signature(parameters)  # type: ignore[attr-defined]  # what inspect, and so typer, reads
    expanded.__annotations__ = {one.name: one.annotation for one in parameters}
    return expanded


def stage_recipe(
    stage: Stage,
    words: list[str] | None,
    model: str | None,
    data: str | None,
    out: str | None,
    heldout: str | None = None,
) -> tuple[Recipe, Stage]:
    """The recipe on the command line and the stage to run it to.

    A recipe made of flags has this stage and the held-out table, so it runs to the end.
    """
    from spintune.errors import RecipeError
    from spintune.recipe import load_recipe

    path, overrides = recipe_and_overrides(words)
    if path:
        flags: dict[str, object] = {"model": model, **data_flags(data, heldout), "out": out}
        recipe = load_recipe(path, [*flags_as_overrides(flags), *overrides])
        need_section(recipe, path, stage)
        return recipe, stage
    if not model or not data:
        raise RecipeError(f"spintune {stage} needs a recipe, or --model and --data; see spintune {stage} --help")
    section: dict[str, object] = {}
    base = {"model": model, "out": out or f"runs/{stage}", stage: section}
    base["data"] = {key.removeprefix("data."): one for key, one in data_flags(data, heldout).items() if one}
    section |= _measured_defaults(stage, load_recipe(None, overrides, base))
    return load_recipe(None, overrides, base), "eval"


def data_flags(data: str | None, heldout: str | None) -> dict[str, object]:
    """As sections, so that data.train.columns.prompt=KEY can follow."""
    return {"data.train": data and {"path": data}, "data.heldout": heldout and {"path": heldout}}


def _measured_defaults(stage: Stage, given: Recipe) -> dict[str, object]:
    """What a recipe of flags has instead of the papers' defaults. What is ``given`` stays; a loss keeps its own λ."""
    from spintune.recipe import measured

    rate = {} if given.data.holds_nothing_out else measured.RATE
    if stage != "spin" or given.spin is None:
        return {**rate}
    said = given.spin.model_fields_set
    found = {**measured.STEP, **measured.ANSWER, **({} if "loss" in said else measured.LOSS)}
    if given.spin.refresh != "step":  # there, nothing is there to try rates on
        found |= rate
    if "baseline" not in said or given.spin.baseline == "sft":
        found |= {**measured.BASELINE, **{f"baseline_{key}": value for key, value in rate.items()}}
    return found


def flags_as_overrides(flags: Mapping[str, object]) -> list[str]:
    """Flags as overrides. A JSON text is a YAML text, whatever is in it: a folder may be called 2024 or "a: b"."""
    import json

    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in flags.items() if value is not None]


def need_section(recipe: Recipe, path: Path, stage: str) -> None:
    """Raises RecipeError when a recipe lacks the section of a stage."""
    from spintune.errors import RecipeError

    if getattr(recipe, stage) is None:
        raise RecipeError(f"{path} has no {stage} section; add one or use spintune run")


def recipe_and_overrides(words: list[str] | None) -> tuple[Path | None, list[str]]:
    """The first word of a command line, where it names a recipe and not a key, and the other words."""
    words = words or []
    return (Path(words[0]), words[1:]) if words and "=" not in words[0] else (None, words)


def options_from(words: list[str] | None) -> dict[str, str | int | float | bool] | None:
    """KEY=VALUE words, values in YAML, as options of a chat template. Raises RecipeError."""
    from spintune.recipe import load_recipe

    if not words:
        return None
    base: dict[str, object] = {"out": "-", "model": "-", "eval": []}
    return load_recipe(None, [f"data.template_options.{word}" for word in words], base).data.template_options


def print_outcome(value: object, text: object, as_json: bool) -> None:
    """Writes what a command did to stdout: as JSON for machines, or as a text."""
    from spintune.terminal import visible

    if as_json:
        print_json(value)
    else:
        print(visible(str(text)))


def print_json(value: object) -> None:
    """Writes a value to stdout as indented JSON, for machines."""
    import orjson

    sys.stdout.write(orjson.dumps(value, option=orjson.OPT_INDENT_2).decode() + "\n")
