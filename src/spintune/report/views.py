"""Runs as the page shows them: every number as text, every place in percent, nothing left for templates to work out."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from spintune.evaluation.model_pairs import compared_pairs
from spintune.evaluation.statistics import Interval
from spintune.report.benchmarks import (
    JudgeSummary,
    Scoreboard,
    different_items,
    judged,
    overlaps,
    scoreboard,
    without_overlaps,
)
from spintune.report.curves import FigureGroup, curves
from spintune.report.facts import RunFacts
from spintune.report.findings import (
    EXACT_MATCH,
    MEASURES,
    NLL,
    Cell,
    Contender,
    Finding,
    MeasureColumn,
    Ranking,
    cell,
    comparable,
    contenders,
    decimals,
    difference,
    estimate,
    finding,
    finding_across,
    measured,
    shown,
)
from spintune.report.tables import (
    WORK,
    FunnelRow,
    RunFile,
    StageCost,
    costs,
    differing,
    files,
    funnels,
    iterations,
    mixture,
    recipe_text,
    versions,
)


@dataclass(frozen=True)
class ViewTable:
    """Models, or pairs of models, by measures; None stands for what was not measured.

    Attributes:
        items: held-out examples that it is of.
    """

    measures: tuple[MeasureColumn, ...]
    rows: tuple[tuple[str, tuple[Cell | None, ...]], ...]
    items: int


@dataclass(frozen=True)
class ViewBar:
    """A difference on a common scale: places in percent of its width."""

    label: str
    low: float
    mean: float
    high: float
    text: str


@dataclass(frozen=True)
class Forest:
    """Differences from one model; ``zero`` is the place of 0 in percent."""

    measure: MeasureColumn
    other: str
    zero: float
    bars: tuple[ViewBar, ...]


@dataclass(frozen=True)
class Accuracies:
    """Right answers in groups of a mixture's questions, by model: (group, questions, a cell for each model)."""

    models: tuple[str, ...]
    rows: tuple[tuple[str, int, tuple[Cell | None, ...]], ...]


@dataclass(frozen=True)
class RunView:
    """A run as the page shows it.

    Attributes:
        prefix: keeps the anchors of several runs apart.
        scores, judged, overlaps, clean: of evaluations beside the held-out examples.
        iterations: heading of each iteration, and rows of (quantity, unit, a text for each iteration).
        seconds: of all stages, by kind of work.
        files: with their links.
    """

    run: RunFacts
    prefix: str
    finding: Finding
    forest: Forest | None
    groups: tuple[FigureGroup, ...]
    iterations: tuple[tuple[str, str, tuple[str, ...]], ...]
    table: ViewTable | None
    differences: ViewTable | None
    tasks: Accuracies | None
    scores: Scoreboard | None
    judged: JudgeSummary | None
    overlaps: tuple[tuple[str, int, tuple[str, ...]], ...]
    clean: Scoreboard | None
    mixture: tuple[tuple[str, tuple[str, ...]], ...]
    funnels: tuple[FunnelRow, ...]
    costs: tuple[StageCost, ...]
    seconds: Mapping[str, float]
    recipe: str
    versions: tuple[tuple[str, str], ...]
    files: tuple[tuple[RunFile, str], ...]


@dataclass(frozen=True)
class ComparisonView:
    """What stands above several runs.

    Attributes:
        unlike: evaluations that were done on other items in one run than in another.
        settings: those in which their recipes differ.
    """

    finding: Finding
    table: ViewTable | None
    note: str
    scores: Scoreboard | None
    different_items: tuple[str, ...]
    settings: tuple[tuple[str, list[str]], ...]


def unique_names(runs: Sequence[RunFacts]) -> list[RunFacts]:
    """Runs whose folders have the same name are called by their paths."""
    names = [run.name for run in runs]
    return [replace(run, name=str(run.folder)) if names.count(run.name) > 1 else run for run in runs]


def view(run: RunFacts, beside: Path, prefix: str) -> RunView:
    """A run for the page that lies in the folder ``beside``."""
    found, models, spent = finding(run), contenders([run]), costs(run)
    return RunView(
        run=run,
        prefix=prefix,
        finding=found,
        forest=_forest(run, found.ranking),
        groups=tuple(curves(run)),
        iterations=tuple(iterations(run)),
        table=_table(models),
        differences=_differences(run, models),
        tasks=_accuracies(run),
        scores=scoreboard([run]),
        judged=judged(run),
        overlaps=tuple(overlaps(run)),
        clean=without_overlaps(run),
        mixture=tuple(mixture(run)),
        funnels=tuple(funnels(run)),
        costs=tuple(spent),
        seconds={
            kind: sum(cost.seconds.get(kind, 0.0) for cost in spent)
            for kind in WORK
            if any(kind in cost.seconds for cost in spent)
        },
        recipe=recipe_text(run.recipe),
        versions=tuple(versions(run)),
        files=tuple((file, _link(run.folder / file.path, beside)) for file in files(run)),
    )


def _link(path: Path, beside: Path) -> str:
    return quote(os.path.relpath(path, beside))


def compare(runs: Sequence[RunFacts]) -> ComparisonView:
    """Tables of all runs on the held-out examples that they share, or a line that says there are none."""
    models = [one for one in contenders(runs) if measured(one, NLL)]
    sets = [set(measured(one, NLL)) for one in models]
    common = set.intersection(*sets) if sets else set()
    ids = [example.id for example in models[0].run.heldout if example.id in common] if models else []
    notes = []
    if not models:
        notes.append("No model of these runs has been judged on held-out examples yet.")
    elif not ids:
        notes.append(
            "These runs share no held-out example that all models were measured on: each row is of its own examples, "
            "and rows of different runs must not be compared."
        )
    elif any(found != common for found in sets):
        notes.append(f"The runs hold out different examples: all rows are of the {len(ids):,} that all of them share.")
    else:
        notes.append(f"All rows are of the same {len(ids):,} held-out examples.")
    if not all(comparable(models[0], one, NLL, ids) for one in models[1:]):
        notes.append("The runs' tokenizers differ: losses a token cannot be compared between them.")
    if len({(run.recipe["spin"] or {}).get("max_new_tokens") for run in runs}) > 1:
        notes.append("The runs give answers different room (spin.max_new_tokens), which moves all measures of answers.")
    table = _table(models, ids) if ids else _table(models)
    return ComparisonView(
        finding=finding_across(runs),
        table=table,
        note=" ".join(notes),
        scores=scoreboard(runs),
        different_items=tuple(different_items(runs)),
        settings=tuple(differing([run.recipe for run in runs])),
    )


# Tables -------------------------------------------------------------------------------------------------------------


def _table(models: Sequence[Contender], only: Sequence[str] | None = None) -> ViewTable | None:
    """Every measured model's means, on the examples ``only`` or on all of its own."""
    rows = []
    for one in models:
        cells = []
        for measure in MEASURES:
            own = dict.fromkeys(measured(one, measure))
            ids = list(own) if only is None else [id for id in only if id in own]
            cells.append(cell(estimate(one, measure, ids), measure, len(ids)) if ids else None)
        if any(cells):
            rows.append((one.label, tuple(cells)))
    items = max((len(measured(one, NLL)) for one in models), default=0) if only is None else len(only)
    return ViewTable(MEASURES, tuple(rows), items) if rows else None


def _differences(run: RunFacts, models: Sequence[Contender]) -> ViewTable | None:
    """The pairs that the end of a run compares, of what is measured already."""
    by_name = {one.model.name: one for one in models}
    wanted = compared_pairs(list(by_name), run.best["name"] if run.best else None)
    pairs = [(by_name[one], by_name[other]) for one, other in wanted if one in by_name and other in by_name]
    columns = [[_paired(one, other, measure) for one, other in pairs] for measure in MEASURES]
    digits = [
        decimals([found for found in column if found], measure)
        for column, measure in zip(columns, MEASURES, strict=True)
    ]
    rows = []
    for (one, other), *row in zip(pairs, *columns, strict=True):
        cells = [_gap(found, measure, count) for found, measure, count in zip(row, MEASURES, digits, strict=True)]
        if any(cells):
            rows.append((f"{one.label} − {other.label}", tuple(cells)))
    return ViewTable(MEASURES, tuple(rows), len(measured(pairs[0][0], NLL))) if rows else None


def _paired(one: Contender, other: Contender, measure: MeasureColumn) -> Interval | None:
    ids = measured(one, measure)
    return difference(one, other, measure, ids) if ids and ids == measured(other, measure) else None


def _gap(found: Interval | None, measure: MeasureColumn, digits: int) -> Cell | None:
    if found is None:
        return None
    verdict = ""
    if found.low > 0 or found.high < 0:
        up = found.mean > 0
        verdict = {
            "higher": "better" if up else "worse",
            "lower": "worse" if up else "better",
            None: "more" if up else "less",
        }[measure.better]
    low, high = (shown(end, measure, digits, sign=True) for end in (found.low, found.high))
    return Cell(shown(found.mean, measure, digits, sign=True), f"{low} to {high}", verdict)


def _accuracies(run: RunFacts) -> Accuracies | None:
    """Held-out and trained tasks first, then clusters, then single tasks."""
    if run.tasks is None:
        return None
    accuracy = run.tasks["accuracy"]
    groups = dict.fromkeys(group for means in accuracy.values() for group in means)
    order = sorted(groups, key=lambda group: (group.startswith("task "), group.startswith("cluster "), group))
    rows = []
    for group in order:
        found = [means.get(group) for means in accuracy.values()]
        items = max(one["items"] for one in found if one)
        cells = [
            cell(Interval(one["mean"], one["low"], one["high"]), EXACT_MATCH, one["items"]) if one else None
            for one in found
        ]
        rows.append((group, items, tuple(cells)))
    return Accuracies(tuple(accuracy), tuple(rows))


def _forest(run: RunFacts, ranking: Ranking | None) -> Forest | None:
    """Each ranked model's difference from where self-play starts."""
    ranked = {one.model.name: one for one in (ranking.first, *ranking.tied, *ranking.behind)} if ranking else {}
    start = ranked.get(run.start)
    if ranking is None or start is None:
        return None
    measure = ranking.measure
    ids = measured(start, measure)
    names = [model.name for model in run.models if model.name in ranked and model.name != run.start]
    gaps = {name: difference(ranked[name], start, measure, ids) for name in names}
    low, high = min(0.0, *(gap.low for gap in gaps.values())), max(0.0, *(gap.high for gap in gaps.values()))
    margin = 0.04 * (high - low) or 1.0

    def place(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    digits = decimals(list(gaps.values()), measure)

    def text(value: float) -> str:
        return shown(value, measure, digits, sign=True)

    bars = tuple(
        ViewBar(
            name,
            place(gap.low),
            place(gap.mean),
            place(gap.high),
            f"{text(gap.mean)} ({text(gap.low)} to {text(gap.high)})",
        )
        for name, gap in gaps.items()
    )
    return Forest(measure, start.label, place(0.0), bars)
