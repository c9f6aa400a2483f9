"""The page of a sweep: one HTML file in the look of a run's report."""

from __future__ import annotations

from pathlib import Path

from spintune.report.page import fill
from spintune.storage import atomic_file
from spintune.sweeps.results import SweepResults
from spintune.sweeps.tables import counts, difference_table, gain_table, model_table, notes, setting_table
from spintune.sweeps.values import as_text


def write_page(results: SweepResults, name: str, path: Path) -> None:
    """Writes the page of a sweep that is called ``name``. Raises StorageError."""
    done = [setting for setting in results.settings if setting.models]
    page = fill(
        "sweep.html",
        name,
        name=name,
        results=results,
        counts=counts(results),
        remarks=[*([counts(results)] if results.conclusion else []), *notes(results)],
        settings=setting_table(results) if done else None,
        differences=difference_table(results),
        every=[(setting, model_table(results, setting), gain_table(results, setting)) for setting in done],
        keys=list(results.axes),
        runs=[(run, [as_text(run.values[key]) for key in results.axes]) for run in results.runs],
    )
    with atomic_file(path) as file:
        file.write(page.encode())
