"""Tables of models: their measures, their differences, scores of evaluations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from spintune.evaluation.model_pairs import measured_pairs
from spintune.evaluation.scores import ScoreScale, common_scales
from spintune.evaluation.statistics import Interval
from spintune.report.facts import EvaluationResult, RunFacts
from spintune.report.measures import (
    EXACT_MATCH,
    NLL,
    Contender,
    Ranking,
    contenders,
    difference,
    estimate,
    interval_of,
    label_of,
    measured,
    measures_of,
    shared,
)
from spintune.report.table import Cell, ColumnGroup, MeasureColumn, MeasureTable, Row, cell, decimals, difference_cell

RIVAL, CLEAN = "stored answers", "without them"
"""Notes under a label of a scoreboard."""

_OF_INSTRUCTIONS = ("instruction_strict", "instruction_loose")
"""IFEval's shares of instructions, which are no right or wrong of an item."""

_WIN_RATE = MeasureColumn("win_rate", "win rate", "%", "higher", 100, 0)
_RATING = MeasureColumn("rating", "rating", "1 to 10", "higher", 1, 2)


# Held-out examples --------------------------------------------------------------------------------------------------


def means(runs: Sequence[RunFacts]) -> MeasureTable | None:
    """Means of every model of the runs, on the held-out examples that all share, or each on its own if none are."""
    models = [one for one in contenders(runs) if len(runs) == 1 or measured(one, NLL)]
    common = shared(models, NLL) if len(runs) > 1 else ()
    measures = measures_of(models)
    rows = []
    for one in models:
        cells: list[Cell | None] = []
        for measure in measures:
            own = dict.fromkeys(measured(one, measure))
            ids = [id for id in common if id in own] if common else list(own)
            cells.append(cell(estimate(one, measure, ids), measure, len(ids)) if ids else None)
        if any(cells):
            rows.append(Row(one.label, tuple(cells)))
    items = len(common) or max((len(measured(one, NLL)) for one in models), default=0)
    title = "Each model" if len(runs) == 1 else "Models of all runs"
    return MeasureTable(title, "model", tuple(measures), tuple(rows), items) if rows else None


def differences(run: RunFacts) -> MeasureTable | None:
    """Paired differences of the models that the end of a run compares, as far as they are measured."""
    models = {one.model.name: one for one in contenders([run])}
    compared = measured_pairs(list(models), run.best.name if run.best else None)
    pairs = [(models[one], models[other]) for one, other in compared if one in models and other in models]
    measures = measures_of(list(models.values()))
    columns = []
    for measure in measures:
        gaps = [_paired(one, other, measure) for one, other in pairs]
        digits = decimals([gap for gap in gaps if gap], measure)
        columns.append([difference_cell(gap, measure, digits) if gap else None for gap in gaps])
    rows = [
        Row(f"{one.label} − {other.label}", tuple(cells))
        for (one, other), *cells in zip(pairs, *columns, strict=True)
        if any(cells)
    ]
    return MeasureTable("Paired differences", "first − second", tuple(measures), tuple(rows)) if rows else None


def _paired(one: Contender, other: Contender, measure: MeasureColumn) -> Interval | None:
    ids = measured(one, measure)
    return difference(one, other, measure, ids) if ids and ids == measured(other, measure) else None


def forest(run: RunFacts, ranking: Ranking | None) -> list[tuple[str, Interval, Cell]]:
    """Each ranked model with its difference from the one where self-play starts."""
    ranked = {one.model.name: one for one in (ranking.first, *ranking.tied, *ranking.behind)} if ranking else {}
    start = ranked.pop(run.start, None)
    if ranking is None or start is None:
        return []
    measure, ids = ranking.measure, measured(start, ranking.measure)
    names = [model.name for model in run.models if model.name in ranked]
    gaps = {name: difference(ranked[name], start, measure, ids) for name in names}
    digits = decimals(list(gaps.values()), measure)
    return [(name, gap, difference_cell(gap, measure, digits)) for name, gap in gaps.items()]


def accuracies(run: RunFacts) -> list[tuple[str, int, list[Cell | None]]]:
    """Right answers to a mixture's questions, as (group, items, a cell for each model): held-out and trained tasks
    first, then clusters, then single tasks.
    """
    by_model = list(run.results.tasks.accuracy.values()) if run.results.tasks else []
    rows = []
    groups = {group for means in by_model for group in means}
    for group in sorted(groups, key=lambda group: (group.startswith("task "), group.startswith("cluster "), group)):
        found = [means.get(group) for means in by_model]
        cells = [cell(Interval(one.mean, one.low, one.high), EXACT_MATCH, one.items) if one else None for one in found]
        rows.append((group, max(one.items for one in found if one), cells))
    return rows


# Scores of evaluations ----------------------------------------------------------------------------------------------


def scoreboard(runs: Sequence[RunFacts]) -> MeasureTable | None:
    """Scores of every model and rival of the runs; None without scores."""
    groups = _groups([one for run in runs for one in run.evaluations])
    rows = [
        Row(label_of(run, name, len(runs)), cells, _note(run, name))
        for run in runs
        for name in _names(run)
        if any(cells := _cells(run, name, groups))
    ]
    return _board("Scores" if len(runs) == 1 else "Benchmarks of all runs", groups, rows)


def scores_without_overlaps(run: RunFacts) -> MeasureTable | None:
    """Scores with and without items that share a long run of words with training rows, where there are such items."""
    sets = run.contamination.sets if run.contamination else {}
    unclean = {name: found.unclean for name, found in sets.items() if found.unclean}
    groups = _groups([one for one in run.evaluations if one.name in unclean])
    rows = []
    for name in _names(run):
        if any(cells := _cells(run, name, groups)):
            rows += [Row(name, cells, _note(run, name)), Row(name, _cells(run, name, groups, unclean), CLEAN)]
    return _board("With all items, and without those that were trained on", groups, rows)


def different_items(runs: Sequence[RunFacts]) -> list[str]:
    """Evaluations that were done on other items in one run than in another."""
    asked: dict[str, list[set[str]]] = {}
    for run in runs:
        for one in run.evaluations:
            if one.scores:
                asked.setdefault(one.name, []).append({item.id for all_ in one.scores.values() for item in all_.items})
    return [name for name, sets in asked.items() if any(found != sets[0] for found in sets)]


def _board(title: str, groups: Sequence[ColumnGroup], rows: Sequence[Row]) -> MeasureTable | None:
    measures = tuple(measure for group in groups for measure in group.measures)
    return MeasureTable(title, "model", measures, tuple(rows), groups=tuple(groups)) if rows else None


def _names(run: RunFacts) -> list[str]:
    return [*(model.name for model in run.models), *run.rivals]


def _note(run: RunFacts, name: str) -> str:
    return RIVAL if name in run.rivals else ""


def _groups(evaluations: Sequence[EvaluationResult]) -> list[ColumnGroup]:
    """By name, as several runs may share one."""
    groups = []
    for name in dict.fromkeys(one.name for one in evaluations):
        tables = [table for one in evaluations if one.name == name for table in one.scores.values()]
        scales = common_scales(table.scales for table in tables)
        largest = {
            key: max((abs(item.scores[key]) for one in tables for item in one.items if key in item.scores), default=0)
            for key in scales
        }
        if scales:
            measures = tuple(score_column(key, scale, largest[key]) for key, scale in scales.items())
            groups.append(ColumnGroup(name, max(len(table.items) for table in tables), measures))
    return groups


def score_column(key: str, scale: ScoreScale, largest: float) -> MeasureColumn:
    """The column of an evaluation's measure; ``largest`` is the largest value in it."""
    title = {"rouge_l": "ROUGE-L"}.get(key, key.replace("_", " "))
    if scale.right_or_wrong or key in _OF_INSTRUCTIONS:
        return MeasureColumn(key, title, "% of instructions" if key in _OF_INSTRUCTIONS else "%", scale.better, 100, 1)
    return MeasureColumn(key, title, "", scale.better, 1, 3 if largest <= 1 else 2 if largest <= 20 else 1)


def _cells(
    run: RunFacts, name: str, groups: Sequence[ColumnGroup], left_out: Mapping[str, Sequence[str]] | None = None
) -> tuple[Cell | None, ...]:
    """A model's scores over all items, or without those of the ids ``left_out``, by evaluation."""
    return tuple(
        _score(run, name, group, measure, None if left_out is None else left_out.get(group.name, ()))
        for group in groups
        for measure in group.measures
    )


def _score(
    run: RunFacts, name: str, group: ColumnGroup, measure: MeasureColumn, left_out: Sequence[str] | None
) -> Cell | None:
    scores = next((one.scores.get(name) for one in run.evaluations if one.name == group.name), None)
    unclean = set(left_out or ())
    items = [item for item in scores.items if measure.key in item.scores and item.id not in unclean] if scores else []
    if not items:
        return None
    values = [item.scores[measure.key] for item in items]
    weights = [item.weights.get(measure.key, 1.0) for item in items]
    results = run.results.benchmarks.get(group.name)
    known = (results.scores if left_out is None else results.clean) if results else {}
    found = interval_of(values, weights, known.get(name, {}).get(measure.key))
    return cell(found, measure, len(items), "" if len(items) == group.items else f"{len(items):,} items")


# The judge ----------------------------------------------------------------------------------------------------------


def win_rate(found: Interval | None) -> Cell | None:
    """A judge's interval of a win rate, in percent; None without verdicts."""
    return cell(found, _WIN_RATE) if found else None


def ratings(run: RunFacts) -> list[tuple[str, list[Cell | None], int]]:
    """The judge's mean ratings, as (model, cells for all turns and for each turn, ratings that could not be read)."""
    found = run.results.judge.ratings if run.results.judge else {}
    turns = sorted({turn for one in found.values() for turn in one.turns})
    rows = []
    for model, rated in found.items():
        means = [rated.mean, *(rated.turns.get(turn) for turn in turns)]
        rows.append((model, [cell(one, _RATING) if one else None for one in means], rated.invalid))
    return rows
