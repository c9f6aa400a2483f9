"""Tables of what evaluations beside the held-out examples found: scores, a judge's verdicts, overlaps with training."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from spintune.evaluation.judge import Canary
from spintune.evaluation.scores import ScoreScale
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.report.evaluated import EvaluationResult, JudgeVerdicts
from spintune.report.facts import RunFacts
from spintune.report.findings import Cell, MeasureColumn, cell

RIVAL, CLEAN = "stored answers", "without them"
"""What stands under a row's label."""

_OF_INSTRUCTIONS = ("instruction_strict", "instruction_loose")
"""IFEval's shares of instructions, which are no right or wrong of an item."""


@dataclass(frozen=True)
class ScoreboardGroup:
    """An evaluation in the heading of a table; ``items`` is the most that any model has."""

    name: str
    items: int
    measures: tuple[MeasureColumn, ...]


@dataclass(frozen=True)
class ScoreboardRow:
    """A model; ``note`` stands under its label. None stands for what was not measured."""

    label: str
    note: str
    cells: tuple[Cell | None, ...]


@dataclass(frozen=True)
class Scoreboard:
    """Models by the measures of evaluations: the cells of a row follow the measures of all groups."""

    groups: tuple[ScoreboardGroup, ...]
    rows: tuple[ScoreboardRow, ...]


# Scores -------------------------------------------------------------------------------------------------------------


def scoreboard(runs: Sequence[RunFacts]) -> Scoreboard | None:
    """Every model and rival of all runs; None without scores."""
    groups = _groups([one for run in runs for one in run.evaluations])
    rows = []
    for run in runs:
        for name in _names(run):
            cells = _cells(run, name, groups)
            if any(cells):
                label = name if len(runs) == 1 else f"{run.name} / {name}"
                rows.append(ScoreboardRow(label, RIVAL if name in run.rivals else "", cells))
    return Scoreboard(groups, tuple(rows)) if rows else None


def without_overlaps(run: RunFacts) -> Scoreboard | None:
    """Evaluations of which items share a long run of words with training rows: scores with these items and without."""
    unclean = {one.evaluation: one.unclean for one in run.overlaps if one.unclean}
    groups = _groups([one for one in run.evaluations if one.name in unclean])
    rows = []
    for name in _names(run):
        cells = _cells(run, name, groups)
        if any(cells):
            rows.append(ScoreboardRow(name, RIVAL if name in run.rivals else "", cells))
            rows.append(ScoreboardRow(name, CLEAN, _cells(run, name, groups, unclean)))
    return Scoreboard(groups, tuple(rows)) if rows else None


def different_items(runs: Sequence[RunFacts]) -> list[str]:
    """Evaluations that were done on other items in one run than in another."""
    asked: dict[str, list[set[str]]] = {}
    for run in runs:
        for one in run.evaluations:
            if one.scores:
                asked.setdefault(one.name, []).append({item.id for all_ in one.scores.values() for item in all_.items})
    return [name for name, sets in asked.items() if any(found != sets[0] for found in sets)]


def _names(run: RunFacts) -> list[str]:
    return [*(model.name for model in run.models), *run.rivals]


def _groups(evaluations: Sequence[EvaluationResult]) -> tuple[ScoreboardGroup, ...]:
    """By name, as several runs may share one."""
    groups = []
    for name in dict.fromkeys(one.name for one in evaluations):
        scores = [scores for one in evaluations if one.name == name for scores in one.scores.values()]
        scales = {key: scale for one in scores for key, scale in one.scales.items()}
        largest = {
            key: max((abs(item.scores[key]) for one in scores for item in one.items if key in item.scores), default=0)
            for key in scales
        }
        if scales:
            measures = tuple(_measure(key, scale, largest[key]) for key, scale in scales.items())
            groups.append(ScoreboardGroup(name, max(len(one.items) for one in scores), measures))
    return tuple(groups)


def _measure(key: str, scale: ScoreScale, largest: float) -> MeasureColumn:
    title = {"rouge_l": "ROUGE-L"}.get(key, key.replace("_", " "))
    if scale.right_or_wrong or key in _OF_INSTRUCTIONS:
        return MeasureColumn(key, title, "% of instructions" if key in _OF_INSTRUCTIONS else "%", scale.better, 100, 1)
    return MeasureColumn(key, title, "", scale.better, 1, 3 if largest <= 1 else 2 if largest <= 20 else 1)


def _cells(
    run: RunFacts, name: str, groups: Sequence[ScoreboardGroup], left_out: dict[str, frozenset[str]] | None = None
) -> tuple[Cell | None, ...]:
    """A model's cells over all items, or without those of the ids ``left_out``, by evaluation."""
    by_name = {one.name: one for one in run.evaluations}
    return tuple(
        _cell(by_name.get(group.name), name, measure, group.items, (left_out or {}).get(group.name))
        for group in groups
        for measure in group.measures
    )


def _cell(
    evaluated: EvaluationResult | None, name: str, measure: MeasureColumn, most: int, left_out: Collection[str] | None
) -> Cell | None:
    scores = evaluated.scores.get(name) if evaluated else None
    if evaluated is None or scores is None:
        return None
    items = [item for item in scores.items if measure.key in item.scores and item.id not in (left_out or ())]
    if not items:
        return None
    values = [item.scores[measure.key] for item in items]
    weights = [item.weights.get(measure.key, 1.0) for item in items]
    known = (evaluated.known if left_out is None else evaluated.known_clean).get((name, measure.key))
    mean = math.fsum(values) / math.fsum(weights)
    if known is None or not math.isclose(mean, known.mean, rel_tol=1e-9, abs_tol=1e-12):
        known = bootstrap(values, weights)  # a run that goes on has measured anew since
    return cell(known, measure, len(items), "" if len(items) == most else f"{len(items):,} items")


# The judge ----------------------------------------------------------------------------------------------------------

_RATE = MeasureColumn("win_rate", "win rate", "%", "higher", 100, 0)
_RATING = MeasureColumn("rating", "rating", "1 to 10", "higher", 1, 2)


@dataclass(frozen=True)
class JudgedPair:
    """A pair of models as the judge sees it."""

    evaluation: str
    first: str
    second: str
    win_rate: Cell | None
    length_controlled: Cell | None
    counts: str
    flips: str
    invalid: int


@dataclass(frozen=True)
class JudgeSummary:
    """What the page says of a judge.

    Attributes:
        beliefs: whether constant nonsense lost, a sentence an evaluation.
        ratings: model, its mean over all turns and of each turn, and ratings that could not be read.
        turns: of the ratings.
    """

    judge: str
    beliefs: tuple[str, ...]
    contests: tuple[JudgedPair, ...]
    ratings: tuple[tuple[str, tuple[Cell | None, ...], int], ...]
    turns: int
    problems: tuple[str, ...]


def judged(run: RunFacts) -> JudgeSummary | None:
    """None without a judge."""
    found = run.judging
    if found is None:
        return None
    ratings = [
        (
            one.model,
            tuple(cell(mean, _RATING, None) if mean else None for mean in (one.mean, *one.turns)),
            one.invalid,
        )
        for one in found.ratings
    ]
    return JudgeSummary(
        judge=found.judge,
        beliefs=tuple(belief(name, canary) for name, canary in found.canaries.items()),
        contests=tuple(map(_contest, found.pairs)),
        ratings=tuple(ratings),
        turns=max((len(one.turns) for one in found.ratings), default=0),
        problems=found.problems,
    )


def belief(evaluation: str, canary: Canary) -> str:
    """Whether a judge can be believed, as a sentence."""
    given, rate = len(canary.preferences), canary.rate
    disbelief = "so the judge is not believed and its verdicts are not counted"
    if rate is None or (not canary.trusted and rate <= canary.limit):
        return (
            f"{evaluation}: only {given} of {canary.items} comparisons of constant nonsense with real answers got a "
            f"verdict, {disbelief}."
        )
    told = f"it was preferred in {100 * rate:.0f} % of {given} comparisons with real answers"
    if canary.trusted:
        return f"{evaluation}: constant nonsense lost; {told}."
    return f"{evaluation}: constant nonsense did not lose; {told}, {disbelief}."


def _contest(pair: JudgeVerdicts) -> JudgedPair:
    def rate(found: Interval | None) -> Cell | None:
        return cell(found, _RATE, None) if found else None

    return JudgedPair(
        pair.evaluation,
        pair.first,
        pair.second,
        rate(pair.win_rate),
        rate(pair.length_controlled),
        f"{pair.wins:,} / {pair.ties:,} / {pair.losses:,}",
        "–" if pair.flip_rate is None else f"{100 * pair.flip_rate:.0f}",
        pair.invalid,
    )


# Overlaps -----------------------------------------------------------------------------------------------------------


def overlaps(run: RunFacts) -> list[tuple[str, int, tuple[str, ...]]]:
    """Of each evaluation: its items, and how many share a run of words with training rows, for each length of run."""
    return [
        (one.evaluation, one.items, tuple(_share(touched, one.items) for touched in one.touched.values()))
        for one in run.overlaps
    ]


def _share(part: int, whole: int) -> str:
    return f"{part:,} ({100 * part / whole:.1f} %)" if part else "0"
