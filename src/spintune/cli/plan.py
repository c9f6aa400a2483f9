"""The command ``spintune plan``: what a recipe takes, before anything is spent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from spintune.cli.options import Json, Overrides, RecipeFile, print_json
from spintune.storage import cache_folder

if TYPE_CHECKING:
    from spintune.plan.plan import RunPlan


def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    gpus: Annotated[int | None, typer.Option(help="Plan for this many GPUs. Default: this machine.", min=1)] = None,
    gpu: Annotated[str | None, typer.Option(help="Their kind, such as h100, a100-80gb or rtx-4090.")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory of each device, such as 80GB. Default: the GPU's.")] = None,
    share: Annotated[
        float | None,
        typer.Option(help="Share of the GPU's peak that training reaches. Default: 0.35.", min=0.01, max=1),
    ] = None,
    rows: Annotated[
        str | None, typer.Option(help="ROWSxTOKENS, such as 50000x600: plan for these instead of reading the data.")
    ] = None,
    probe: Annotated[bool, typer.Option(help="Measure speed by a few steps where the model runs here.")] = True,
    json: Json = False,
) -> None:
    """Say what a recipe takes before anything is spent: rows, steps, memory, time, disk; and what would make it fit.

    The model may be a folder, a hub id, a config.json, or a size by name (model=llama-70b): weights are not fetched.
    """
    from spintune.cli.execution import lasting_imports, quiet_libraries
    from spintune.progress_display import open_progress
    from spintune.recipe import load_recipe
    from spintune.terminal import print_lines

    settings, stated = load_recipe(recipe, overrides), _stated(rows)
    with open_progress(json) as progress:
        progress.note("loading torch and transformers")
        with lasting_imports():
            from spintune.plan.devices import target_of
            from spintune.plan.plan import make_plan
            from spintune.plan.text import plan_lines

        quiet_libraries()
        found = make_plan(settings, target_of(gpus, memory, gpu, share), cache_folder(), progress, stated, probe)
    if json:
        print_json(_as_json(found))
    else:
        print_lines(plan_lines(found))
    if not found.fits:
        raise found.refusal()


def _stated(rows: str | None) -> tuple[int, int] | None:
    """ROWSxTOKENS as numbers. Raises RecipeError."""
    import re

    from spintune.errors import RecipeError

    if rows is None:
        return None
    found = re.fullmatch(r"([1-9][\d_,]*)\s*[xX]\s*([1-9]\d*)", rows)
    if found is None:
        raise RecipeError(f"--rows {rows!r:.40} is not ROWSxTOKENS; write it as 50000x600")
    return int(re.sub("[_,]", "", found[1])), int(found[2])


def _as_json(plan: RunPlan) -> dict[str, object]:
    from dataclasses import asdict

    found = asdict(plan)
    for part in ("sft", "spin"):  # the length of each row is of no use to a reader
        sizes = getattr(plan.rows, part)
        found["rows"][part] = {"rows": sizes.rows, "mean_tokens": sum(sizes.lengths) / max(1, len(sizes.lengths))}
    for stage, one in zip(found["stages"], plan.stages, strict=True):
        stage["memory"]["total"] = one.memory.total
        if one.sharded:
            stage["sharded"]["total"] = one.sharded.total
    return {**found, "fits": plan.fits, "seconds": plan.seconds}
