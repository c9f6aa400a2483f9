"""Tables of models: their measures, their differences, scores of evaluations, a judge's verdicts, contamination."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from spintune.evaluation.model_pairs import compared_pairs
from spintune.evaluation.scores import ScoreScale
from spintune.evaluation.statistics import Interval
from spintune.report.facts import EvaluationResult, RunFacts
from spintune.report.figures import interval_bar
from spintune.report.measures import (
    EXACT_MATCH,
    MEASURES,
    NLL,
    Contender,
    MeasureColumn,
    Ranking,
    cell,
    contenders,
    decimals,
    difference,
    estimate,
    interval_of,
    label_of,
    measured,
    shared,
    shown,
    verdict,
)
from spintune.report.table import Cell, Column, ColumnGroup, Row, Table

RIVAL, CLEAN = "stored answers", "without them"
"""Notes under a label of a scoreboard."""

_OF_INSTRUCTIONS = ("instruction_strict", "instruction_loose")
"""IFEval's shares of instructions, which are no right or wrong of an item."""

_MEASURE_COLUMNS = tuple(Column(measure.title, measure.unit) for measure in MEASURES)


# Held-out examples --------------------------------------------------------------------------------------------------


def means(runs: Sequence[RunFacts]) -> Table | None:
    """Means of every model of the runs, on the held-out examples that all share, or each on its own if none are."""
    models = [one for one in contenders(runs) if len(runs) == 1 or measured(one, NLL)]
    common = shared(models, NLL) if len(runs) > 1 else ()
    rows = []
    for one in models:
        cells: list[Cell | None] = []
        for measure in MEASURES:
            own = dict.fromkeys(measured(one, measure))
            ids = [id for id in common if id in own] if common else list(own)
            cells.append(cell(estimate(one, measure, ids), measure, len(ids)) if ids else None)
        if any(cells):
            rows.append(Row(one.label, tuple(cells)))
    items = len(common) or max((len(measured(one, NLL)) for one in models), default=0)
    title = "Each model" if len(runs) == 1 else "Models of all runs"
    columns = (Column("model"), *_MEASURE_COLUMNS)
    return Table(title, columns, tuple(rows), items, caption="shown") if rows else None


def differences(run: RunFacts) -> Table | None:
    """Paired differences of the models that the end of a run compares, as far as they are measured."""
    models = {one.model.name: one for one in contenders([run])}
    compared = compared_pairs(list(models), run.best.name if run.best else None)
    pairs = [(models[one], models[other]) for one, other in compared if one in models and other in models]
    columns = [[_paired(one, other, measure) for one, other in pairs] for measure in MEASURES]
    digits = [decimals([gap for gap in gaps if gap], measure) for measure, gaps in zip(MEASURES, columns, strict=True)]
    rows = [
        Row(f"{one.label} − {other.label}", tuple(map(_difference_cell, gaps, MEASURES, digits)))
        for (one, other), *gaps in zip(pairs, *columns, strict=True)
    ]
    rows = [row for row in rows if any(row.cells)]
    columns_ = (Column("first − second"), *_MEASURE_COLUMNS)
    return Table("Paired differences", columns_, tuple(rows), caption="shown") if rows else None


def _paired(one: Contender, other: Contender, measure: MeasureColumn) -> Interval | None:
    ids = measured(one, measure)
    return difference(one, other, measure, ids) if ids and ids == measured(other, measure) else None


def _difference_cell(gap: Interval | None, measure: MeasureColumn, digits: int) -> Cell | None:
    if gap is None:
        return None
    mean, low, high = (shown(value, measure, digits, sign=True) for value in (gap.mean, gap.low, gap.high))
    return Cell(mean, f"{low} to {high}", verdict(gap, measure))


def forest(run: RunFacts, ranking: Ranking | None) -> Table | None:
    """Each ranked model's difference from the one where self-play starts: as a drawing, and as text."""
    ranked = {one.model.name: one for one in (ranking.first, *ranking.tied, *ranking.behind)} if ranking else {}
    start = ranked.pop(run.start, None)
    if ranking is None or start is None:
        return None
    measure, ids = ranking.measure, measured(start, ranking.measure)
    names = [model.name for model in run.models if model.name in ranked]
    gaps = {name: difference(ranked[name], start, measure, ids) for name in names}
    low, high = min(0.0, *(gap.low for gap in gaps.values())), max(0.0, *(gap.high for gap in gaps.values()))
    digits = decimals(list(gaps.values()), measure)
    rows = []
    for name, gap in gaps.items():
        text = _difference_cell(gap, measure, digits)
        if text:
            rows.append(Row(name, (interval_bar(gap, low, high), f"{text.mean} ({text.interval})")))
    return Table(f"{measure.title} of each model minus that of {start.label}", (), tuple(rows))


def accuracies(run: RunFacts) -> Table | None:
    """Right answers to a mixture's questions: held-out and trained tasks, then clusters, then single tasks."""
    if run.results.tasks is None:
        return None
    accuracy = run.results.tasks.accuracy
    groups = dict.fromkeys(group for means in accuracy.values() for group in means)
    rows = []
    for group in sorted(groups, key=lambda group: (group.startswith("task "), group.startswith("cluster "), group)):
        found = [means.get(group) for means in accuracy.values()]
        items = max(one.items for one in found if one)
        cells = [cell(Interval(one.mean, one.low, one.high), EXACT_MATCH, one.items) if one else None for one in found]
        rows.append(Row(group, (f"{items:,}", *cells)))
    columns = (Column("questions"), Column("items"), *map(Column, accuracy))
    return Table("Right answers to the mixture’s tasks, %", columns, tuple(rows), caption="shown")


# Scores of evaluations ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Measures:
    """The measures of an evaluation, over at most so many items."""

    name: str
    items: int
    measures: tuple[MeasureColumn, ...]


def scoreboard(runs: Sequence[RunFacts]) -> Table | None:
    """Scores of every model and rival of the runs; None without scores."""
    groups = _groups([one for run in runs for one in run.evaluations])
    rows = [
        Row(label_of(run, name, len(runs)), cells, _note(run, name))
        for run in runs
        for name in _names(run)
        if any(cells := _cells(run, name, groups))
    ]
    return _board("Scores" if len(runs) == 1 else "Benchmarks of all runs", groups, rows)


def scores_without_overlaps(run: RunFacts) -> Table | None:
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


def _board(title: str, groups: Sequence[_Measures], rows: Sequence[Row]) -> Table | None:
    columns = [Column("model")]
    for measure in (measure for group in groups for measure in group.measures):
        lower = ["lower is better"] if measure.better == "lower" else []
        columns.append(Column(measure.title, ", ".join(filter(None, [measure.unit, *lower]))))
    heads = tuple(ColumnGroup(group.name, group.items, len(group.measures)) for group in groups)
    style = "numbers board"
    return Table(title, tuple(columns), tuple(rows), style=style, caption="unseen", groups=heads) if rows else None


def _names(run: RunFacts) -> list[str]:
    return [*(model.name for model in run.models), *run.rivals]


def _note(run: RunFacts, name: str) -> str:
    return RIVAL if name in run.rivals else ""


def _groups(evaluations: Sequence[EvaluationResult]) -> list[_Measures]:
    """By name, as several runs may share one."""
    groups = []
    for name in dict.fromkeys(one.name for one in evaluations):
        tables = [table for one in evaluations if one.name == name for table in one.scores.values()]
        scales = {key: scale for table in tables for key, scale in table.scales.items()}
        largest = {
            key: max((abs(item.scores[key]) for one in tables for item in one.items if key in item.scores), default=0)
            for key in scales
        }
        if scales:
            measures = tuple(_measure(key, scale, largest[key]) for key, scale in scales.items())
            groups.append(_Measures(name, max(len(table.items) for table in tables), measures))
    return groups


def _measure(key: str, scale: ScoreScale, largest: float) -> MeasureColumn:
    title = {"rouge_l": "ROUGE-L"}.get(key, key.replace("_", " "))
    if scale.right_or_wrong or key in _OF_INSTRUCTIONS:
        return MeasureColumn(key, title, "% of instructions" if key in _OF_INSTRUCTIONS else "%", scale.better, 100, 1)
    return MeasureColumn(key, title, "", scale.better, 1, 3 if largest <= 1 else 2 if largest <= 20 else 1)


def _cells(
    run: RunFacts, name: str, groups: Sequence[_Measures], left_out: Mapping[str, Sequence[str]] | None = None
) -> tuple[Cell | None, ...]:
    """A model's scores over all items, or without those of the ids ``left_out``, by evaluation."""
    return tuple(
        _score(run, name, group, measure, None if left_out is None else left_out.get(group.name, ()))
        for group in groups
        for measure in group.measures
    )


def _score(
    run: RunFacts, name: str, group: _Measures, measure: MeasureColumn, left_out: Sequence[str] | None
) -> Cell | None:
    scores = next((one.scores.get(name) for one in run.evaluations if one.name == group.name), None)
    unclean = set(left_out or ())
    items = [item for item in scores.items if measure.key in item.scores and item.id not in unclean] if scores else []
    if not items:
        return None
    values = [item.scores[measure.key] for item in items]
    weights = [item.weights.get(measure.key, 1.0) for item in items]
    results = (run.results.benchmarks or {}).get(group.name)
    known = (results.scores if left_out is None else results.clean or {}) if results else {}
    found = interval_of(values, weights, known.get(name, {}).get(measure.key))
    return cell(found, measure, len(items), "" if len(items) == group.items else f"{len(items):,} items")


# The judge ----------------------------------------------------------------------------------------------------------

_WIN_RATE = MeasureColumn("win_rate", "win rate", "%", "higher", 100, 0)
_RATING = MeasureColumn("rating", "rating", "1 to 10", "higher", 1, 2)


def contests(run: RunFacts) -> Table | None:
    """What the judge said of pairs of models; None without a judge, or without pairs."""
    columns = (
        Column("first over second"),
        Column("answers to"),
        Column("win rate", "%"),
        Column("length-controlled", "%"),
        Column("first wins / ties / loses", "contests"),
        Column("order decides", "%"),
        Column("no verdict", "contests"),
    )
    rows = [
        Row(
            Markup("<bdi>{}</bdi> over <bdi>{}</bdi>").format(*names.split(" - ", 1)),
            (
                evaluation,
                _rate(facts["win_rate"]),
                _rate((facts["length_controlled"] or {}).get("rate")),
                f"{facts['wins']:,} / {facts['ties']:,} / {facts['losses']:,}",
                None if facts["flip_rate"] is None else f"{100 * facts['flip_rate']:.0f}",
                f"{facts['invalid']:,}",
            ),
        )
        for evaluation, pairs in (run.results.judge.pairs if run.results.judge else {}).items()
        for names, facts in pairs.items()
    ]
    return Table("Pairs of models", columns, tuple(rows), caption="shown") if rows else None


def ratings(run: RunFacts) -> Table | None:
    """The judge's mean ratings of models, over all turns and by turn; None without ratings."""
    found = run.results.judge.ratings if run.results.judge else {}
    turns = max((len(facts["turns"]) for facts in found.values()), default=0)
    rows = []
    for model, facts in found.items():
        intervals = [facts["mean"], *(interval for _, interval in sorted(facts["turns"].items()))]
        cells = [cell(Interval(**one), _RATING) if one else None for one in intervals]
        rows.append(Row(model, (*cells, f"{facts['invalid']:,}")))
    names = ("model", "all turns", *(f"turn {turn}" for turn in range(1, turns + 1)), "no rating")
    columns = tuple(map(Column, names))
    return Table("Ratings of mt-bench, 1 to 10", columns, tuple(rows), caption="shown") if rows else None


def _rate(found: dict[str, float] | None) -> Cell | None:
    return cell(Interval(**found), _WIN_RATE) if found else None


# Contamination ------------------------------------------------------------------------------------------------------


def overlaps(run: RunFacts) -> Table | None:
    """How many items of each evaluation share a run of words with training rows."""
    rows = [
        Row(name, (f"{found.items:,}", _part(found.shared_8, found.items), _part(found.shared_13, found.items)))
        for name, found in (run.contamination.sets if run.contamination else {}).items()
    ]
    columns = tuple(map(Column, ("evaluation", "items", "share 8 words", "share 13 words")))
    title = "Items that stand in the training data"
    return Table(title, columns, tuple(rows), style="numbers plain") if rows else None


def _part(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if part else "0"
