"""What a run found, in numbers with intervals and in a sentence: which model is best, and by how much."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from spintune.evaluation.statistics import Interval, bootstrap, wilson
from spintune.recipe import HELDOUT
from spintune.report.facts import ModelFacts, RunFacts
from spintune.run_folder import BASELINE

FEW_ITEMS = 50
"""Below this the percentile bootstrap's intervals are too short to lean on: even at 50 items 6 of 100 are wrong."""


@dataclass(frozen=True)
class MeasureColumn:
    """A column of the tables.

    Attributes:
        better: which way is better; None for what only describes.
        factor: shown as so many times the value: 100 for shares in percent.
        digits: shown behind the point.
    """

    key: str
    title: str
    unit: str
    better: Literal["lower", "higher"] | None
    factor: float = 1.0
    digits: int = 3


NLL = MeasureColumn("nll_per_token", "held-out loss", "nats a token", "lower")
ROUGE_L = MeasureColumn("rouge_l", "ROUGE-L", "F-measure", "higher")
EXACT_MATCH = MeasureColumn("exact_match", "exact match", "% of answers", "higher", 100, 1)
MEASURES = (
    NLL,
    ROUGE_L,
    EXACT_MATCH,
    MeasureColumn("answer_tokens", "answer length", "tokens", None, 1, 1),
    MeasureColumn("finished", "finished", "% of answers", None, 100, 1),
)
_METRICS = {"nll": NLL, "rouge_l": ROUGE_L, "exact_match": EXACT_MATCH}


def main_measure(run: RunFacts) -> MeasureColumn:
    """What the run itself judges its iterates by."""
    return _METRICS[run.recipe["spin"]["metric"]] if run.recipe["spin"] else NLL


# Estimates ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contender:
    """A model of one of the runs in a comparison."""

    run: RunFacts
    model: ModelFacts
    label: str


def contenders(runs: Sequence[RunFacts]) -> list[Contender]:
    """Every model; with several runs, the run's name is in front."""
    return [
        Contender(run, model, model.name if len(runs) == 1 else f"{run.name} / {model.name}")
        for run in runs
        for model in run.models
    ]


def measured(contender: Contender, measure: MeasureColumn) -> tuple[str, ...]:
    """Ids of the held-out examples on which a model was measured, in order."""
    model = contender.model
    return tuple(model.likely if measure is NLL else model.judged)


def estimate(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> Interval:
    """A model's mean over held-out examples, with its 95 % interval."""
    values, weights = _values(one, measure, ids), _weights(one, measure, ids)
    return _known(one.run.estimates.get((one.model.name, measure.key)), values, weights) or bootstrap(values, weights)


def difference(one: Contender, other: Contender, measure: MeasureColumn, ids: Sequence[str]) -> Interval:
    """The paired mean difference, first minus second, on the same held-out examples, with its 95 % interval."""
    values = [a - b for a, b in zip(_values(one, measure, ids), _values(other, measure, ids), strict=True)]
    weights = _weights(one, measure, ids)
    if one.run is other.run:
        known, names = one.run.differences, (one.model.name, other.model.name)
        if there := _known(known.get((*names, measure.key)), values, weights):
            return there
        reverse = known.get((*names[::-1], measure.key))
        if there := _known(reverse and negative(reverse), values, weights):
            return there
    return bootstrap(values, weights)


def negative(interval: Interval) -> Interval:
    return Interval(-interval.mean, -interval.high, -interval.low)


def comparable(one: Contender, other: Contender, measure: MeasureColumn, ids: Sequence[str]) -> bool:
    """Whether the measure means the same for both: nats a token need the same tokens."""
    mine, theirs = one.model.likely, other.model.likely
    return measure is not NLL or all(mine[id].tokens == theirs[id].tokens for id in ids)


def _known(interval: Interval | None, values: Sequence[float], weights: Sequence[float] | None) -> Interval | None:
    """An interval of results.json, if it is of these values: a run that goes on has measured anew since."""
    if interval is None:
        return None
    mean = math.fsum(values) / (len(values) if weights is None else math.fsum(weights))
    return interval if math.isclose(mean, interval.mean, rel_tol=1e-9, abs_tol=1e-12) else None


def _values(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> list[float]:
    if measure is NLL:
        return [one.model.likely[id].nll for id in ids]
    name = {"answer_tokens": "tokens"}.get(measure.key, measure.key)
    return [float(getattr(one.model.judged[id], name)) for id in ids]


def _weights(one: Contender, measure: MeasureColumn, ids: Sequence[str]) -> list[int] | None:
    return [one.model.likely[id].tokens for id in ids] if measure is NLL else None


# Ranking ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Ranking:
    """Who is best by a measure on the same held-out examples.

    Attributes:
        first: the one with the best mean.
        tied: those that it cannot be told from, the best mean first.
        behind: those that it is better than, the best mean first.
        gains: by how much ``first`` is better than each other, by label; above 0 is better.
    """

    measure: MeasureColumn
    items: int
    first: Contender
    tied: tuple[Contender, ...]
    behind: tuple[Contender, ...]
    gains: Mapping[str, Interval]


def rank(models: Sequence[Contender], measure: MeasureColumn, ids: Sequence[str]) -> Ranking:
    """Ranks models by a measure that has a better side."""
    sign = -1 if measure.better == "lower" else 1
    ordered = sorted(models, key=lambda one: -sign * estimate(one, measure, ids).mean)
    first, *others = ordered
    gains = {}
    for other in others:
        gain = difference(first, other, measure, ids)
        gains[other.label] = gain if sign == 1 else negative(gain)
    tied = tuple(other for other in others if gains[other.label].low <= 0)
    behind = tuple(other for other in others if gains[other.label].low > 0)
    return Ranking(measure, len(ids), first, tied, behind, gains)


# Words --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Finding:
    """What was found: a sentence, what else must be said, and the ranking that it comes from."""

    sentence: str
    remarks: tuple[str, ...]
    ranking: Ranking | None = None


def finding(run: RunFacts) -> Finding:
    """Which model of a run is best, and by how much."""
    measure = main_measure(run)
    models = [one for one in contenders([run]) if measured(one, measure)]
    remarks = tuple(_remarks(run))
    if len(models) == 1 and not run.missing:
        return Finding(_alone(models[0], measure), remarks)
    if len(models) < 2:
        return Finding(_unjudged(run), (*(f"{said}." for said in run.conclusions), *remarks))
    ids = measured(models[0], measure)
    models = [one for one in models if measured(one, measure) == ids]
    ranking = rank(models, measure, ids)
    return Finding(
        _sentence(ranking, bool(run.missing)), (*_choice(run, ranking), *_elsewhere(run, ranking), *remarks), ranking
    )


def finding_across(runs: Sequence[RunFacts]) -> Finding:
    """Which run's best model is best, where they were judged on the same held-out examples."""
    answers = [finding(run) for run in runs]
    found = [(run, one.ranking) for run, one in zip(runs, answers, strict=True) if one.ranking]
    if len(found) < 2:
        held = "Fewer than two of these runs have judged their models on held-out examples"
        if any(run.evaluations for run in runs):
            return Finding(f"{held}; what their benchmarks found stands below.", ())
        return Finding(f"{held}, so there is nothing to compare.", ())
    measure = found[0][1].measure
    if any(ranking.measure is not measure for _, ranking in found):
        return Finding("These runs judge by different measures, so no one model is named the best.", ())
    every = contenders(runs)
    best = [next(one for one in every if one.run is run and one.model is ranking.first.model) for run, ranking in found]
    ids = shared(best, measure)
    if not ids:
        return Finding("These runs hold out different examples, so their models cannot be compared.", ())
    if not all(comparable(best[0], other, measure, ids) for other in best[1:]):
        return Finding(
            "These runs split text into different tokens, so their losses a token cannot be compared; "
            "the measures of answers below can.",
            (),
        )
    ranking = rank(best, measure, ids)
    remarks = [f"The best model of each run, on the {len(ids):,} held-out examples that all of them were measured on."]
    return Finding(_sentence(ranking), (*remarks, *_few(ranking.items)), ranking)


def shared(models: Sequence[Contender], measure: MeasureColumn) -> tuple[str, ...]:
    """Held-out examples on which all were measured, in the order of the first."""
    common = set.intersection(*(set(measured(one, measure)) for one in models))
    return tuple(id for id in measured(models[0], measure) if id in common)


def _sentence(ranking: Ranking, so_far: bool = False) -> str:
    measure, first = ranking.measure, ranking.first.label
    on = _items(ranking.items)
    if not ranking.behind:
        models = "So far, the models" if so_far else "The models"
        return (
            f"{models} cannot be told apart: on {on}, {first} has the best {measure.title}, but the 95 % interval of "
            f"its lead over {_listed([one.label for one in ranking.tied])} includes 0."
        )
    opening = "So far, " if so_far else ""
    next_best = ranking.behind[0].label
    gain = f"{_by(ranking.gains[next_best], measure)} {measure.better} than that of {next_best}"
    if not ranking.tied:
        return (
            f"{opening}{first} is the best model: its {measure.title} is {gain} ({_range(ranking, next_best)}; {on})."
        )
    level = _listed([first, *(one.label for one in ranking.tied)])
    return (
        f"{opening}{level} are the best models and cannot be told apart; the {measure.title} of {first} is {gain} "
        f"({_range(ranking, next_best)}; {on})."
    )


def _by(gain: Interval, measure: MeasureColumn) -> str:
    return f"{shown(abs(gain.mean), measure, decimals([gain], measure))} {_unit(measure)}".rstrip()


def _range(ranking: Ranking, label: str) -> str:
    gain, measure = ranking.gains[label], ranking.measure
    digits = decimals([gain], measure)
    return f"95 % interval {shown(gain.low, measure, digits)} to {shown(gain.high, measure, digits)}"


def _unit(measure: MeasureColumn) -> str:
    return "points" if measure.factor == 100 else measure.unit if measure is NLL else ""


def _unjudged(run: RunFacts) -> str:
    losses = run.metrics.get("sft/heldout", [])
    told = ""
    if len(losses) > 1:
        told = (
            f"SFT took the held-out loss from {losses[0]['loss']:.3f} to {losses[-1]['loss']:.3f} nats a token in "
            f"{losses[-1]['step']:,} steps. "
        )
    if "data" not in run.stages and not run.evaluations:
        return "Nothing has been trained yet."
    if run.evaluations and (not run.heldout or HELDOUT not in run.recipe["eval"]):
        names = _listed([one.name for one in run.evaluations])
        return f"{told}No held-out example judges the models; {names} {'do' if len(run.evaluations) > 1 else 'does'}."
    if not run.heldout and HELDOUT in run.recipe["eval"]:
        return "No example is held out, so no model is judged: the curves below show training alone."
    if not run.recipe["eval"]:
        return told + "The recipe asks for no evaluation, so no model is judged."
    return told + "The models have not been judged against each other yet."


def _alone(one: Contender, measure: MeasureColumn) -> str:
    ids = measured(one, measure)
    found = estimate(one, measure, ids)
    mean, low, high = (shown(value, measure, measure.digits) for value in (found.mean, found.low, found.high))
    return (
        f"Only {one.label} was judged: its {measure.title} is {mean} {measure.unit} (95 % interval {low} to {high}; "
        f"{_items(len(ids))})."
    )


def _items(count: int) -> str:
    return f"{count:,} held-out example{'s' * (count != 1)}"


def _choice(run: RunFacts, ranking: Ranking) -> list[str]:
    """What the run itself keeps, and where that is not the best there is."""
    if run.best is None:
        return []
    told = f"Self-play keeps {run.best['name']}: {run.best['why']}."
    if ranking.first.model.name == BASELINE and ranking.gains.get(run.best["name"], Interval(0, 0, 0)).low > 0:
        told += " As many more steps of SFT did better."
    return [told, "It was chosen on the examples that measure it, which flatters it a little."]


def _elsewhere(run: RunFacts, ranking: Ranking) -> list[str]:
    """Other measures on which the first can be told from where self-play starts."""
    first = ranking.first
    start = next((one for one in contenders([run]) if one.model.name == run.start), None)
    if start is None or start.model is first.model:
        return list(_few(ranking.items))
    told, level = [], []
    for measure in MEASURES:
        if measure is ranking.measure or measure.better is None:
            continue
        ids = measured(start, measure)
        if not ids or measured(first, measure) != ids:
            continue
        gap = difference(first, start, measure, ids)
        if gap.low <= 0 <= gap.high:
            level.append(measure.title)
        else:
            better = (gap.mean > 0) == (measure.better == "higher")
            told.append(
                f"{measure.title} is {'better' if better else 'worse'} than {start.label}'s by {_by(gap, measure)}"
            )
    sentences = []
    if told:
        sentences.append(f"For {first.label}, {_listed(told)}.")
    if level:
        sentences.append(f"By {_listed(level)}, {first.label} cannot be told from {start.label}.")
    return [*sentences, *_few(ranking.items)]


def _few(items: int) -> list[str]:
    if items >= FEW_ITEMS:
        return []
    return [f"{items} held-out examples are few: such intervals are too short. Hold out more before you rely on them."]


def _remarks(run: RunFacts) -> list[str]:
    remarks = [f"Self-play stopped early: {run.stopped}."] if run.stopped else []
    for number in range(1, run.iterations + 1):
        facts = run.facts_of(f"spin/iterate-{number}/pairs")
        remarks += [f"Iteration {number}: {warning}." for warning in (facts["warnings"] if facts else [])]
    return remarks


def _listed(names: Sequence[str]) -> str:
    """a; a and b; a, b and c."""
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


# Numbers ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """A number with its interval, as text.

    Attributes:
        verdict: better, worse, more or less, where the interval of a difference leaves out 0.
        note: what else must be known of it.
    """

    mean: str
    interval: str
    verdict: str = ""
    note: str = ""


def cell(found: Interval, measure: MeasureColumn, items: int | None, note: str = "") -> Cell:
    """A mean over so many items with its interval; without ``items`` the interval is no bootstrap's."""
    ends = found
    if items and measure.factor == 100 and found.low == found.high:
        ends = wilson(found.mean * items, items)  # resampling answers that are all alike tells nothing
    low, high = (shown(end, measure, measure.digits) for end in (ends.low, ends.high))
    return Cell(shown(found.mean, measure, measure.digits), f"{low} to {high}", note=note)


def decimals(intervals: Sequence[Interval], measure: MeasureColumn) -> int:
    """Digits behind the point that show two figures of the narrowest interval, so that columns line up."""
    widths = [(one.high - one.low) / 2 * measure.factor for one in intervals if one.high > one.low]
    if not widths:
        return measure.digits
    return max(measure.digits, min(6, 1 - math.floor(math.log10(min(widths)))))


def shown(value: float, measure: MeasureColumn, digits: int, sign: bool = False) -> str:
    """A value as text, with a real minus sign. What rounds to 0 has no sign."""
    text = f"{value * measure.factor:{'+' if sign else ''}.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")
