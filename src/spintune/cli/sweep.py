"""The sweep command."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from spintune.cli.dry_run import check_paths
from spintune.cli.options import Json, Quiet, RecipeFile, print_json, print_outcome
from spintune.storage import cache_folder

if TYPE_CHECKING:
    from spintune.report.table import MeasureTable
    from spintune.sweeps.plan import PlannedRun, SweepPlan
    from spintune.sweeps.results import SweepResults


def sweep(
    recipe: RecipeFile,
    values: Annotated[
        list[str] | None,
        typer.Argument(help="seed=0..4, 'key.path=[a,b]', or key.path=value for all runs.", metavar="KEY=VALUES..."),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(help="Run part K of N alone, beside other processes that run the others.", metavar="K/N"),
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(help="Write a job array for Slurm to this file, and run nothing.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the runs and what they share, and run nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="More than 50 runs are meant.")] = False,
    quiet: Quiet = False,
    json: Json = False,
) -> None:
    """Run a recipe with many seeds and settings, each in a folder of its own, and report means over seeds.

    The same command goes on with a stopped sweep and tries again what failed.
    """
    from spintune.errors import RecipeError
    from spintune.sweeps.plan import plan_sweep

    if slurm and (only or dry_run):
        raise RecipeError(f"--slurm writes a job of all runs; leave out {'--only' if only else '--dry-run'}")
    plan = plan_sweep(recipe, values or [], yes or dry_run)
    runs = _part(plan, only)
    if dry_run:
        _show_plan(plan, runs, json)
    elif slurm:
        _write_job(plan, ["spintune", "sweep", str(recipe), *(values or []), *(["--yes"] if yes else [])], slurm, json)
    else:
        _run(plan, runs, json, quiet)


def _part(plan: SweepPlan, only: str | None) -> tuple[PlannedRun, ...]:
    from spintune.errors import RecipeError

    if only is None:
        return plan.runs
    found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", only)
    number, parts = map(int, found.groups()) if found else (0, 0)
    if not 1 <= number <= parts <= len(plan.runs):
        raise RecipeError(
            f"--only {only} is no part of {len(plan.runs)} runs; give K/N, such as 1/{len(plan.runs)} for the first run"
        )
    return plan.part(number, parts)


def _run(plan: SweepPlan, runs: tuple[PlannedRun, ...], as_json: bool, quiet: bool) -> None:
    from spintune.cli.execution import prepared
    from spintune.cli.unexpected import shows_itself, unexpected_text
    from spintune.errors import SweepError
    from spintune.plain_tables import print_tables
    from spintune.typed_json import to_json

    def unforeseen(error: BaseException) -> str:
        if shows_itself(error):
            raise error
        return unexpected_text(error)

    with prepared(as_json, no_progress=quiet) as (stop, progress):
        from spintune.sweeps.execution import check_sweep, run_sweep

        check_sweep(plan)
        results, failures = run_sweep(plan, runs, cache_folder(), progress, os.environ, stop, unforeseen)
    if as_json:
        print_json(to_json(results))
    else:
        print_tables(_found(results, plan.folder))
    if failures:
        name, reason = next(iter(failures.items()))
        raise SweepError(
            f"{len(failures)} of {len(runs)} run{'s' * (len(runs) != 1)} failed; the same command tries again. "
            f"{name}: {reason}"
        )


def _found(results: SweepResults, folder: Path) -> Iterator[MeasureTable | str]:
    """What is printed at the end of a sweep."""
    from spintune.sweeps.tables import counts, difference_table, gain_table, model_table, notes, setting_table

    done = [setting for setting in results.settings if setting.models]
    if len(done) == 1:
        yield model_table(results, done[0])
    elif done:
        yield setting_table(results)
    table = gain_table(results, done[0]) if len(done) == 1 else difference_table(results)
    if table and any(any(row.cells) for row in table.rows):
        yield table
    if done:
        yield from notes(results)
    if results.conclusion:
        yield f"\n{results.conclusion}"
    yield f"\n{counts(results)}. {folder}/report.html shows every model of every setting; sweep.json has the numbers."


def _show_plan(plan: SweepPlan, runs: tuple[PlannedRun, ...], as_json: bool) -> None:
    from spintune.sweeps.sharing import shared_with

    listed = []
    for run in runs:
        check_paths(run.recipe)
    for place, (run, shared) in enumerate(zip(plan.runs, shared_with([run.recipe for run in plan.runs]), strict=True)):
        if run in runs:
            copies = {part: plan.runs[other].name for part, other in shared.items() if other != place}
            listed.append({"name": run.name, "values": run.values, "out": run.recipe.out, "copies": copies})
    if as_json:
        print_json({"folder": str(plan.folder), "runs": listed})
        return
    print(f"{len(listed)} run{'s' * (len(listed) != 1)} in {plan.folder}, in this order:")
    for number, one in enumerate(listed, 1):
        print(f"{number:4} {one['name']}{_copies(one['copies'])}")


def _copies(copies: object) -> str:
    """What a run takes from others, as text."""
    by_run: dict[str, list[str]] = {}
    for part, name in copies.items() if isinstance(copies, dict) else ():
        by_run.setdefault(name, []).append(part)
    return "".join(f"; {', '.join(parts)} as in {name}" for name, parts in by_run.items())


def _write_job(plan: SweepPlan, command: list[str], path: Path, as_json: bool) -> None:
    from spintune.cli.execution import prepared
    from spintune.sweeps.slurm import write_job

    with prepared(as_json):
        from spintune.sweeps.execution import check_sweep

        check_sweep(plan)
    arrays = write_job(plan, command, path)
    told = "one array" if arrays == 1 else f"{arrays} arrays, one after another, so that shared work is done once"
    text = f"{path}: {len(plan.runs)} runs in {told}; look at its #SBATCH lines, then submit it with: bash {path}"
    print_outcome({"file": str(path), "runs": len(plan.runs), "arrays": arrays}, text, as_json)
