"""Runs a sweep: one run after another, what one has finished is copied by the next, and the report after each.

::

    SWEEP/NAME/         the folder of one run
    SWEEP/sweep.json    what was tried, and what the finished runs say together
    SWEEP/report.html   the same as a page

On one machine a run takes all cores, or the GPU, so runs do not run beside each other here. Several processes may each
take a part of a sweep (``--only``), on several GPUs or machines.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from spintune.errors import RunError, SpintuneError, is_panic
from spintune.evaluation.metric_choice import choose_metric, measure_of
from spintune.pipeline import check_recipe, run_recipe
from spintune.portable import wait_for_lock
from spintune.progress import Progress, StopRequest
from spintune.records import Example, read_records
from spintune.results import RunResults
from spintune.run_folder import read_recipe, with_names_of
from spintune.storage import (
    digest_json,
    open_unlinked,
    read_json,
    remove_abandoned,
    storage_errors,
    write_json_if_changed,
)
from spintune.sweeps.page import write_page
from spintune.sweeps.plan import PlannedRun, SweepPlan
from spintune.sweeps.results import RunState, SweepResults, SweptRun, summarize
from spintune.typed_json import from_json, to_json
from spintune.version import __version__

SWEEP, LOCK = "sweep.json", ".sweep.lock"
Failures = Mapping[str, str | None]
"""By name of a run: why it failed, or None."""


def check_sweep(plan: SweepPlan) -> None:
    """Raises SpintuneError, one line for each thing that can be found wrong before any run begins."""
    problems: dict[str, SpintuneError] = {}
    for run in plan.runs:
        try:
            check_recipe(run.recipe)
        except SpintuneError as error:
            problems.setdefault(str(error), error)
    if problems:
        kind = type(next(iter(problems.values())))
        raise kind("\n".join(problems))


def run_sweep(
    plan: SweepPlan,
    runs: Sequence[PlannedRun],
    cache: Path,
    progress: Progress,
    environment: Mapping[str, str],
    stop: StopRequest,
    unforeseen: Callable[[BaseException], str],
) -> tuple[SweepResults, dict[str, str]]:
    """Runs ``runs``, all of a sweep or a part. A run that fails does not keep the others from running.

    Args:
        stop: ends the run under way at its next safe point, and the sweep; the same call goes on.
        unforeseen: what to say of an error that is no SpintuneError, or raises it.

    Returns what the sweep has found so far, and why runs of these failed, by name.
    """
    siblings = [run.folder for run in plan.runs]
    failures: dict[str, str] = {}
    results = update_report(plan, {})
    for number, run in enumerate(runs, 1):
        stop.check()
        progress.note(f"run {number} of {len(runs)}: {run.name}")
        known = [*siblings, *_earlier(plan.folder, siblings)]
        reason = None
        try:
            run_recipe(run.recipe, cache, progress, "eval", environment, stop, known)
        except SpintuneError as error:
            reason = "; ".join([str(error), *getattr(error, "__notes__", [])])
        except BaseException as error:
            if not (isinstance(error, Exception) or is_panic(error)):  # a signal, Ctrl-C
                raise
            reason = unforeseen(error)
        gc.collect()  # no model of this run is in memory beside the next one's
        if reason is not None:
            failures[run.name] = reason
            progress.note(f"{run.name} failed: {reason}")
        results = update_report(plan, {run.name: reason})
    return results, failures


def _earlier(folder: Path, known: Sequence[Path]) -> list[Path]:
    """Runs in the folder that this sweep does not name: an earlier command had other values."""
    return sorted(path.parent for path in folder.glob("*/recipe.json") if path.parent not in known)


# What it found -------------------------------------------------------------------------------------------------------


def update_report(plan: SweepPlan, attempts: Failures) -> SweepResults:
    """Writes sweep.json and report.html anew from what the runs have left in their folders.

    Args:
        attempts: runs that were just tried, each with the reason why it failed. Of others the file knows.
    """
    with _locked(plan.folder):
        failures = {**_known_failures(plan.folder / SWEEP), **attempts}
        found: dict[str, RunResults] = {}
        runs = [_look(run, failures.get(run.name), found) for run in plan.runs]
        done = next((run for run in plan.runs if run.name in found), None)
        results = summarize(__version__, plan.axes, runs, found, _metric(done) if done else "nll")
        page = plan.folder / "report.html"
        for path in (plan.folder / SWEEP, page):
            remove_abandoned(path)
        write_json_if_changed(plan.folder / SWEEP, to_json(results))
        write_page(results, plan.folder.resolve().name, page)
    return results


def read_sweep(folder: Path) -> SweepResults:
    """What the last command on a sweep has found. Raises RunError when the folder holds none."""
    return from_json(SweepResults, read_json(folder / SWEEP), folder / SWEEP)


def _metric(run: PlannedRun) -> str:
    """The measure by which a run compares models; with ``metric: auto`` its held-out examples decide."""
    section, path = run.recipe.evaluation, run.folder / "data" / "heldout.jsonl"
    references = [example.answer for example in read_records(path, Example)] if path.is_file() else []
    return measure_of(choose_metric(section.metric, section.checker, references).name)


def _look(run: PlannedRun, reason: str | None, found: dict[str, RunResults]) -> SweptRun:
    """How a run stands; adds its results to ``found`` if it is finished."""
    try:
        results = None if reason else _results(run)
    except RunError as error:  # damaged
        results, reason = None, str(error)
    if results:
        found[run.name] = results
    state: RunState = "failed" if reason else "finished" if results else "not run"
    return SweptRun(run.name, run.values, run.recipe.seed, state, reason)


def _known_failures(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    with contextlib.suppress(RunError):  # it is written anew
        runs = from_json(SweepResults, read_json(path), path).runs
        return {run.name: run.reason for run in runs if run.state == "failed" and run.reason}
    return {}


def _results(run: PlannedRun) -> RunResults | None:
    """What a run found; None unless it has ended with this recipe."""
    path = run.folder / "results.json"
    if not path.is_file():
        return None
    recipe = with_names_of(read_recipe(run.folder).recipe, run.recipe)
    results = from_json(RunResults, read_json(path), path)
    return results if results.recipe == digest_json(recipe.identity()) else None


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One process at a time: whoever writes last has read what all others had finished."""
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = open_unlinked(folder / LOCK, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with file:
        with contextlib.suppress(OSError):  # a file system without locks
            wait_for_lock(file.fileno())
        yield
