"""What a sweep found, as tables for a terminal and a page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from spintune.evaluation.statistics import Interval
from spintune.report.model_tables import score_column
from spintune.report.table import Cell, MeasureColumn, MeasureTable, Row, cell, decimals, difference_cell
from spintune.sweeps.results import CHOSEN, SeedEstimate, SeedEstimates, SettingResults, SweepResults, column_of

COVERS = (
    "A seed decides which examples are held out, the order of the others, and every random draw. Intervals are "
    "Student's over seeds (95 %): they say how far the mean may lie from that of all seeds on these data. "
    "Settings of one seed hold out the same examples, unless data itself varies, so differences are within a seed."
)
_EQUAL, _FEW = 1e-9, 6
ONE_SEED = "One seed has no interval: nothing tells its numbers from luck. Give more, such as seed=0..4."


def columns_of(results: SweepResults) -> list[MeasureColumn]:
    """The measures, those of held-out examples first."""
    columns = []
    for name, scale in results.measures.items():
        evaluation, _, key = name.rpartition("/")
        if evaluation:
            largest = max((abs(one.mean) for one in _of_measure(results, name)), default=0.0)
            plain = score_column(key, scale, largest)
            unit = f"{evaluation}, {plain.unit}" if plain.unit else evaluation
            columns.append(MeasureColumn(name, plain.title, unit, plain.better, plain.factor, plain.digits))
        else:
            columns.append(column_of(name))
    return columns


def _of_measure(results: SweepResults, measure: str) -> Iterator[SeedEstimate]:
    for setting in results.settings:
        yield from (models[measure] for models in setting.models.values() if measure in models)


def setting_table(results: SweepResults) -> MeasureTable:
    """The chosen models of each setting."""
    columns = columns_of(results)
    rows = [
        Row(one.name, _cells(one.models.get(CHOSEN, {}), columns), _counts(one))
        for one in results.settings
        if one.models
    ]
    return MeasureTable("The chosen model of each setting, mean over seeds", "setting", tuple(columns), tuple(rows))


def _counts(setting: SettingResults) -> str:
    """3 seeds: iterate-1 in 2, sft in 1."""
    count = len(setting.seeds)
    chosen = sorted(setting.chosen.items(), key=lambda entry: -entry[1])
    models = chosen[0][0] if len(chosen) == 1 else ", ".join(f"{model} in {times}" for model, times in chosen)
    return f"{count} seed{'s' * (count != 1)}: {models}" if chosen else f"{count} seeds"


def model_table(results: SweepResults, setting: SettingResults) -> MeasureTable:
    """Every model of a setting."""
    columns = columns_of(results)
    rows = [Row(name, _cells(found, columns)) for name, found in setting.models.items() if name != CHOSEN]
    return MeasureTable(f"Each model, mean over {len(setting.seeds)} seeds", "model", tuple(columns), tuple(rows))


def gain_table(results: SweepResults, setting: SettingResults) -> MeasureTable | None:
    """Every model of a setting minus the one where self-play starts."""
    return _differences(results, "Differences from where self-play starts", "first − second", setting.gains)


def difference_table(results: SweepResults) -> MeasureTable | None:
    """The chosen models of every two settings; of many settings, of each and the one with the best mean."""
    few = len(results.settings) <= _FEW
    shown = [one for one in results.differences if few or results.first in (one.first, one.second)]
    pairs = {f"{one.first} − {one.second}": one.measures for one in shown}
    return _differences(results, "Differences of settings, paired by seed", "first − second", pairs)


def _differences(
    results: SweepResults, title: str, first: str, pairs: Mapping[str, SeedEstimates]
) -> MeasureTable | None:
    columns = columns_of(results)
    by_column = []
    for column in columns:
        found = [measures.get(column.key) for measures in pairs.values()]
        ends = [_interval(one) for one in found if one]
        digits = decimals([one for one in ends if one.high - one.low > _EQUAL], column)  # equal but for rounding
        by_column.append([_difference(one, column, digits) if one else None for one in found])
    rows = [Row(name.replace(" - ", " − "), tuple(cells)) for name, *cells in zip(pairs, *by_column, strict=True)]
    return MeasureTable(title, first, tuple(columns), tuple(rows)) if rows else None


def _cells(found: SeedEstimates, columns: list[MeasureColumn]) -> tuple[Cell | None, ...]:
    return tuple(_cell(found[column.key], column) if column.key in found else None for column in columns)


def _cell(found: SeedEstimate, column: MeasureColumn) -> Cell:
    plain = cell(_interval(found), column)
    return plain if found.low is not None else Cell(plain.mean, "")


def _difference(found: SeedEstimate, column: MeasureColumn, digits: int) -> Cell:
    plain = difference_cell(_interval(found), column, digits)
    return plain if found.low is not None else Cell(plain.mean, "")


def _interval(found: SeedEstimate) -> Interval:
    if found.low is None or found.high is None:
        return Interval(found.mean, found.mean, found.mean)
    return Interval(found.mean, found.low, found.high)


def notes(results: SweepResults) -> list[str]:
    """What is to be known beside the tables."""
    single = any(len(setting.seeds) == 1 for setting in results.settings)
    return [COVERS, *([ONE_SEED] if single else [])]


def counts(results: SweepResults) -> str:
    """6 runs: 5 finished, 1 failed."""
    states = [run.state for run in results.runs]
    told = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    return f"{len(states)} run{'s' * (len(states) != 1)}: {told}"
