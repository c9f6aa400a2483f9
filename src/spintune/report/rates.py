"""The learning rates that a run's short runs tried, with what they found (``learning_rate: auto``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from spintune.report.facts import RunFacts, number_of
from spintune.report.table import Cell, MeasureColumn, MeasureTable, Row
from spintune.run_folder import MANIFEST, read_manifest
from spintune.training.rate_facts import RateFacts
from spintune.typed_json import from_json

_TITLES = {"sft": "SFT", "spin/baseline-sft": "more SFT"}


def searches_in(run: Path, iterations: int) -> dict[str, RateFacts]:
    """What the searches of a run folder found, by training stage, in the order of the stages.

    Args:
        iterations: of self-play; others may lie in the folder from before.
    """
    stages = ["sft", *(f"spin/iterate-{number}" for number in range(1, iterations + 1)), "spin/baseline-sft"]
    folders = {stage: run / stage / "rates" for stage in stages if (run / stage / "rates" / MANIFEST).is_file()}
    return {
        stage: from_json(RateFacts, read_manifest(folder).facts, folder / MANIFEST) for stage, folder in folders.items()
    }


def searches_of(run: RunFacts) -> dict[str, RateFacts]:
    """The same of a run that was read."""
    found = {stage.removesuffix("/rates"): facts for stage in run.stages if (facts := run.facts(stage, RateFacts))}
    return {stage: found[stage] for stage in sorted(found, key=_order)}


def rates_tried(searches: Mapping[str, RateFacts]) -> list[MeasureTable]:
    """A table with a row for each search: the loss before, and after a short run at each rate. None without any."""
    tried = {stage: facts for stage, facts in searches.items() if facts.rungs and facts.start_loss is not None}
    rates = sorted({rung.learning_rate for facts in tried.values() for rung in facts.rungs})
    columns = [MeasureColumn(name, name, "", "lower") for name in ("before", *(f"{rate:g}" for rate in rates))]
    rows = [_row(stage, facts, rates) for stage, facts in tried.items()]
    title = "Learning rates that short runs tried: the loss before, and after them at each rate"
    return [MeasureTable(title, "stage", tuple(columns), tuple(rows))] if rows else []


def _row(stage: str, facts: RateFacts, rates: Sequence[float]) -> Row:
    losses = {rung.learning_rate: _cell(rung.loss) for rung in facts.rungs}
    cells = [_cell(facts.start_loss), *map(losses.get, rates)]
    note = f"{facts.measure} on {facts.rows} rows, {facts.rungs[0].steps} steps; taken: {facts.rate:g}"
    return Row(stage_title(stage), tuple(cells), note)


def _cell(loss: float | None) -> Cell:
    return Cell("broke" if loss is None else f"{loss:.4f}", "")


def stage_title(stage: str) -> str:
    """What tables call a training stage."""
    return _TITLES.get(stage, f"iteration {number_of(stage)}")


def _order(stage: str) -> tuple[int, int]:
    return {"sft": 0, "spin/baseline-sft": 2}.get(stage, 1), number_of(stage)
