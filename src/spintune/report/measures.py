"""Estimates of models and of their differences, with 95 % intervals, on the same held-out examples."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from spintune.evaluation.metric_choice import AT_TEMPERATURE_1, choose_metric, measure_of
from spintune.evaluation.statistics import Interval, bootstrap, verdict_difference
from spintune.metrics import METRICS
from spintune.recipe.evaluation import CHECKER
from spintune.report.facts import ModelFacts, RunFacts
from spintune.report.table import MeasureColumn

NLL = MeasureColumn("nll_per_token", "held-out loss", "nats a token", "lower")
ROUGE_L = MeasureColumn("rouge_l", "ROUGE-L", "F-measure", "higher")
EXACT_MATCH = MeasureColumn("exact_match", "exact match", "% of answers", "higher", 100, 1)
LENGTH = MeasureColumn("answer_tokens", "answer length", "tokens", None, 1, 1)
FINISHED = MeasureColumn("finished", "finished", "% of answers", None, 100, 1)
_CHECKER = MeasureColumn(CHECKER, "accuracy by the checker", "% of answers", "higher", 100, 1)
_METRICS = {"nll": NLL, "rouge_l": ROUGE_L, "exact_match": EXACT_MATCH, CHECKER: _CHECKER}


@dataclass(frozen=True)
class Contender:
    """A model of one of the runs in a comparison."""

    run: RunFacts
    model: ModelFacts
    label: str


def contenders(runs: Sequence[RunFacts]) -> list[Contender]:
    """Every model of the runs."""
    return [Contender(run, model, label_of(run, model.name, len(runs))) for run in runs for model in run.models]


def label_of(run: RunFacts, name: str, runs: int) -> str:
    """A model's name; with several runs, the run's name is in front."""
    return name if runs == 1 else f"{run.name} / {name}"


# Measures -----------------------------------------------------------------------------------------------------------


def metric_column(name: str) -> MeasureColumn:
    """The column of a built-in or registered metric. ``better`` is None for those that are not registered here."""
    if name.endswith(AT_TEMPERATURE_1):
        greedy = metric_column(name.removesuffix(AT_TEMPERATURE_1))
        return replace(greedy, key=name, title=f"{greedy.title} at T = 1")
    if name in _METRICS:
        return _METRICS[name]
    title = name.replace("_", " ")
    if name not in METRICS:
        return MeasureColumn(name, title, "", None)
    metric = METRICS[name]
    if metric.right_or_wrong:
        return MeasureColumn(name, title, "% of answers", metric.better, 100, 1)
    return MeasureColumn(name, title, "", metric.better)


def measures_of(models: Sequence[Contender]) -> list[MeasureColumn]:
    """The measures of held-out examples, metrics that a user added included."""
    names = {name: None for one in models for answer in one.model.judged.values() for name in answer.scores}
    return [NLL, *map(metric_column, dict.fromkeys(("rouge_l", "exact_match", *names))), LENGTH, FINISHED]


def main_measure(run: RunFacts) -> MeasureColumn:
    """The measure by which the run chooses its model; the loss if its metric is not registered any more."""
    found = metric_column(measure_of((run.best.metric if run.best else None) or _metric(run)))
    return found if found.better else NLL


def _metric(run: RunFacts) -> str:
    section, spin = run.recipe.get("evaluation") or {}, run.recipe["spin"] or {}
    if "metric" not in section:  # of a version in which self-play named it
        return str(spin.get("metric", "nll"))
    return choose_metric(section["metric"], section.get("checker"), [one.answer for one in run.heldout]).name


# Estimates ----------------------------------------------------------------------------------------------------------


def measured(contender: Contender, measure: MeasureColumn) -> tuple[str, ...]:
    """Ids of the held-out examples that report on a model by this measure, in order."""
    answers = contender.model.judged
    described = measure in (NLL, LENGTH, FINISHED) or all(measure.key in one.scores for one in answers.values())
    ids = contender.model.likely if measure is NLL else answers if described else ()
    return tuple(id for id in ids if id not in contender.run.selection)


def shared(models: Sequence[Contender], measure: MeasureColumn) -> tuple[str, ...]:
    """Held-out examples on which all were measured, in the order of the first."""
    common = set.intersection(*(set(measured(one, measure)) for one in models)) if models else set()
    return tuple(id for id in measured(models[0], measure) if id in common) if common else ()


def comparable(models: Sequence[Contender], measure: MeasureColumn, ids: Sequence[str]) -> bool:
    """Whether the measure means the same for all: nats a token need the same tokens."""
    tokens = [[one.model.likely[id].tokens for id in ids] for one in models] if measure is NLL else []
    return all(counts == tokens[0] for counts in tokens)


def estimate(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> Interval:
    """A model's mean over held-out examples, with its 95 % interval."""
    known = one.run.results.heldout.get(one.model.name, {}).get(measure.key)
    return interval_of(_values(one, measure, ids), _weights(one, measure, ids), known)


def difference(one: Contender, other: Contender, measure: MeasureColumn, ids: Sequence[str]) -> Interval:
    """The paired mean difference, first minus second, on the same held-out examples, with its 95 % interval."""
    values = [a - b for a, b in zip(_values(one, measure, ids), _values(other, measure, ids), strict=True)]
    known = None
    if one.run is other.run:
        results = one.run.results.differences
        known = results.get(f"{one.model.name} - {other.model.name}", {}).get(measure.key)
        reverse = results.get(f"{other.model.name} - {one.model.name}", {}).get(measure.key)
        known = known or (negative(reverse) if reverse else None)
    found = interval_of(values, _weights(one, measure, ids), known)
    return verdict_difference(values) if measure.factor == 100 and found.low == found.high else found


def interval_of(values: Sequence[float], weights: Sequence[float] | None, known: Interval | None) -> Interval:
    """The interval ``known`` of results.json if it is of these values, else their bootstrap.

    They differ where the run continued and measured again.
    """
    mean = math.fsum(values) / (len(values) if weights is None else math.fsum(weights))
    if known and math.isclose(mean, known.mean, rel_tol=1e-9, abs_tol=1e-12):
        return known
    return bootstrap(values, weights)


def negative(interval: Interval) -> Interval:
    """The interval of the difference the other way round."""
    return Interval(-interval.mean, -interval.high, -interval.low)


def _values(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> list[float]:
    if measure is NLL:
        return [one.model.likely[id].nll for id in ids]
    answers = [one.model.judged[id] for id in ids]
    if measure is LENGTH:
        return [float(answer.tokens or 0) for answer in answers]
    if measure is FINISHED:
        return [float(bool(answer.finished)) for answer in answers]
    return [answer.scores[measure.key] for answer in answers]


def _weights(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> list[int] | None:
    return [one.model.likely[id].tokens for id in ids] if measure is NLL else None


# Ranking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Models in the order of a measure on the same held-out examples.

    Attributes:
        first: the one with the best mean.
        tied: those that do not differ significantly from it, the best mean first.
        behind: those that are significantly worse, the best mean first.
        gains: by how much ``first`` is better than each other, by label; above 0 is better.
    """

    measure: MeasureColumn
    items: int
    first: Contender
    tied: tuple[Contender, ...]
    behind: tuple[Contender, ...]
    gains: Mapping[str, Interval]


def rank(models: Sequence[Contender], measure: MeasureColumn, ids: Sequence[str]) -> Ranking:
    """Ranks models by a measure with a better direction."""
    sign = -1 if measure.better == "lower" else 1
    first, *others = sorted(models, key=lambda one: -sign * estimate(one, measure, ids).mean)
    gains = {}
    for other in others:
        gain = difference(first, other, measure, ids)
        gains[other.label] = gain if sign == 1 else negative(gain)
    tied = tuple(other for other in others if gains[other.label].low <= 0)
    behind = tuple(other for other in others if gains[other.label].low > 0)
    return Ranking(measure, len(ids), first, tied, behind, gains)
