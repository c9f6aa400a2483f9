"""What a run found, in sentences: which model is best, by how much, and what limits the comparison."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from spintune.evaluation.comparison import listed
from spintune.evaluation.decision import BestModel
from spintune.evaluation.judge import Canary
from spintune.evaluation.statistics import Interval
from spintune.recipe import HELDOUT
from spintune.report.facts import RunFacts
from spintune.report.measures import (
    NLL,
    Contender,
    Ranking,
    comparable,
    contenders,
    difference,
    estimate,
    main_measure,
    measured,
    measures_of,
    negative,
    rank,
    shared,
)
from spintune.report.table import MeasureColumn, decimals, shown, verdict
from spintune.results import SftFacts

FEW_ITEMS = 50
"""Below this the percentile bootstrap's intervals are too short: even at 50 items 6 of 100 are wrong, not 5."""


@dataclass(frozen=True)
class Finding:
    """What was found: a sentence, remarks on it, and the ranking that it comes from."""

    sentence: str
    remarks: tuple[str, ...] = ()
    ranking: Ranking | None = None


def finding(run: RunFacts) -> Finding:
    """Which model of a run to use, and what the examples that did not choose it say about that."""
    measure = main_measure(run)
    models = [one for one in contenders([run]) if measured(one, measure)]
    remarks = tuple(_remarks(run))
    ids = Counter(measured(one, measure) for one in models).most_common(1)[0][0] if models else ()
    alike = [one for one in models if measured(one, measure) == ids]
    if len(alike) < 2:
        return _without_ranking(run, models, measure, remarks)
    ranking = rank(alike, measure, ids)
    chosen = _chosen(run, alike)
    sentence, *why = _decision(run, run.best) if run.best else (_best(ranking, bool(run.missing)),)
    told = _confirmation(chosen, alike, measure, ids) if chosen else ()
    others = (*told, *why, *_other_measures(run, chosen or ranking.first, measure), *_few(ranking.items))
    return Finding(sentence, (*others, *remarks), ranking)


def _without_ranking(
    run: RunFacts, models: Sequence[Contender], measure: MeasureColumn, remarks: tuple[str, ...]
) -> Finding:
    """The finding of a run whose models were not measured on the same examples, or not at all."""
    apart = "No two models were judged on the same examples; run the recipe again."
    if run.best:
        sentence, *why = _decision(run, run.best)
        return Finding(sentence, (*why, *[apart] * (len(models) > 1), *remarks))
    if len(models) == 1 and not run.missing:
        return Finding(_single_model(models[0], measure), remarks)
    if len(models) < 2:
        return Finding(_unjudged(run), (*(f"{said}." for said in run.results.conclusions), *remarks))
    return Finding(apart, remarks)


def finding_across(runs: Sequence[RunFacts]) -> Finding:
    """Which run's model is best, where they were judged on the same held-out examples."""
    rankings = [(run, ranking) for run in runs if (ranking := finding(run).ranking)]
    if len(rankings) < 2:
        held = "Fewer than two of these runs have judged their models on held-out examples"
        if any(run.evaluations for run in runs):
            return Finding(f"{held}; what their benchmarks found is below.")
        return Finding(f"{held}, so there is nothing to compare.")
    measure = rankings[0][1].measure
    if any(ranking.measure != measure for _, ranking in rankings):
        return Finding("These runs judge by different measures, so no one model is named the best.")
    everyone = contenders(runs)
    best = []
    for run, ranking in rankings:
        own = [one for one in everyone if one.run is run]
        first = next(one for one in own if one.model is ranking.first.model)
        best.append(_chosen(run, [one for one in own if measured(one, measure)]) or first)
    ids = shared(best, measure)
    if not ids:
        return Finding("These runs hold out different examples, so their models cannot be compared.")
    if not comparable(best, measure, ids):
        return Finding(
            "These runs split text into different tokens, so their losses a token cannot be compared; "
            "the measures of answers below can."
        )
    ranking = rank(best, measure, ids)
    remark = f"The model to use of each run, on the {len(ids):,} held-out examples that all of them were measured on."
    return Finding(_best(ranking), (remark, *_few(ranking.items)), ranking)


def comparison_notes(runs: Sequence[RunFacts]) -> str:
    """How to read a table of the models of several runs."""
    models = [one for one in contenders(runs) if measured(one, NLL)]
    ids = shared(models, NLL)
    if not models:
        notes = ["No model of these runs has been judged on held-out examples yet."]
    elif not ids:
        notes = [
            "These runs share no held-out example that all models were measured on: each row is of its own examples, "
            "and rows of different runs must not be compared."
        ]
    elif any(len(measured(one, NLL)) != len(ids) for one in models):
        notes = [f"The runs hold out different examples: all rows are of the {len(ids):,} that all of them share."]
    else:
        notes = [f"All rows are of the same {len(ids):,} held-out examples."]
    if not comparable(models, NLL, ids):
        notes.append("The runs' tokenizers differ: losses a token cannot be compared between them.")
    if len({run.longest_answer for run in runs}) > 1:
        notes.append(
            "The runs limit answers to different lengths (spin.max_new_tokens), which affects all measures of answers."
        )
    return " ".join(notes)


def belief(evaluation: str, canary: Canary) -> str:
    """Whether a judge can be trusted, as a sentence."""
    given, rate = len(canary.preferences), canary.rate
    if not canary.finished:
        return (
            f"{evaluation}: the judge's budget ended after {given} of {canary.items} comparisons of constant nonsense "
            "with real answers, so whether it can be trusted is not known and nothing was judged."
        )
    distrust = "so the judge is not trusted and its verdicts do not count"
    if rate is None or (not canary.trusted and rate <= canary.limit):
        return (
            f"{evaluation}: only {given} of {canary.items} comparisons of constant nonsense with real answers got a "
            f"verdict, {distrust}."
        )
    told = f"it was preferred in {100 * rate:.0f} % of {given} comparisons with real answers"
    if canary.trusted:
        return f"{evaluation}: constant nonsense lost; {told}."
    return f"{evaluation}: constant nonsense did not lose; {told}, {distrust}."


# Sentences ----------------------------------------------------------------------------------------------------------


def _chosen(run: RunFacts, models: Sequence[Contender]) -> Contender | None:
    """The model that the run decided to use, if it is among ``models``."""
    return next((one for one in models if run.best and one.model.name == run.best.name), None)


def _decision(run: RunFacts, best: BestModel) -> list[str]:
    """Which model to use, with the first reason; then the others, if there are."""
    why, _, more = best.why.partition("; ")
    sentence = f"{'So far, ' if run.missing else ''}{best.name} is the model to use: {why}."
    return [sentence, *([f"{more[0].upper()}{more[1:]}."] if more else [])]


def _best(ranking: Ranking, so_far: bool = False) -> str:
    measure, first, on = ranking.measure, ranking.first.label, _items(ranking.items)
    if not ranking.behind:
        models = "So far, the models" if so_far else "The models"
        return (
            f"{models} cannot be told apart: on {on}, {first} has the best {measure.title}, but the 95 % interval of "
            f"its lead over {listed([one.label for one in ranking.tied])} includes 0."
        )
    opening = "So far, " if so_far else ""
    next_best = ranking.behind[0].label
    gain = ranking.gains[next_best]
    low, high = (shown(end, measure, decimals([gain], measure)) for end in (gain.low, gain.high))
    lead = f"{_by(gain, measure)} {measure.better} than that of {next_best} (95 % interval {low} to {high}; {on})."
    if not ranking.tied:
        return f"{opening}{first} is the best model: its {measure.title} is {lead}"
    level = listed([first, *(one.label for one in ranking.tied)])
    return f"{opening}{level} are the best models and cannot be told apart; the {measure.title} of {first} is {lead}"


def _single_model(one: Contender, measure: MeasureColumn) -> str:
    ids = measured(one, measure)
    found = estimate(one, measure, ids)
    mean, low, high = (shown(value, measure, measure.digits) for value in (found.mean, found.low, found.high))
    return (
        f"Only {one.label} was judged: its {measure.title} is {mean} {measure.unit} (95 % interval {low} to {high}; "
        f"{_items(len(ids))})."
    )


def _nats(loss: float | None) -> str:
    return "non-finite" if loss is None else f"{loss:.3f}"


def _unjudged(run: RunFacts) -> str:
    losses = run.metrics.get("sft/heldout", [])
    told = ""
    if len(losses) > 1:
        facts = run.facts("sft", SftFacts)
        kept = facts.kept_step if facts and facts.kept_step else losses[-1]["step"]
        end = next((row for row in losses if row["step"] == kept), losses[-1])
        told = (
            f"SFT took the held-out loss from {_nats(losses[0]['loss'])} to {_nats(end['loss'])} nats a token in "
            f"{end['step']:,} steps. "
        )
    if "data" not in run.stages and not run.evaluations:
        return "Nothing has been trained yet."
    if run.evaluations and (not run.heldout or HELDOUT not in run.recipe["eval"]):
        names = listed([one.name for one in run.evaluations])
        return f"{told}No held-out example judges the models; {names} {'do' if len(run.evaluations) > 1 else 'does'}."
    if not run.heldout and HELDOUT in run.recipe["eval"]:
        return "No example is held out, so no model is judged: the curves below show training alone."
    if not run.recipe["eval"]:
        return told + "The recipe asks for no evaluation, so no model is judged."
    return told + "The models have not been judged against each other yet."


# Remarks ------------------------------------------------------------------------------------------------------------


def _confirmation(
    chosen: Contender, models: Sequence[Contender], measure: MeasureColumn, ids: Sequence[str]
) -> Iterator[str]:
    """What examples that did not choose the model say about it, and which models are better there."""
    gaps = {}
    for other in models:
        if other is not chosen:
            gap = difference(chosen, other, measure, ids)
            gaps[other.label] = gap if measure.better == "higher" else negative(gap)
    behind = sorted((label for label, gap in gaps.items() if gap.low > 0), key=lambda label: gaps[label].mean)
    level = [label for label, gap in gaps.items() if gap.low <= 0 <= gap.high]
    ahead = sorted((label for label, gap in gaps.items() if gap.high < 0), key=lambda label: gaps[label].mean)
    own = estimate(chosen, measure, ids)
    unit = measure.unit if measure is NLL or measure.factor == 100 else ""
    mean = f"{shown(own.mean, measure, measure.digits)} {unit}".rstrip()
    on = f"the {_items(len(ids))} that did not choose" if chosen.run.selection else _items(len(ids))
    said = []
    if behind:
        more = f", and than that of {listed(behind[1:])} by more" if behind[1:] else ""
        said.append(f"better than that of {behind[0]} by {_lead(gaps[behind[0]], measure)}{more}")
    if level:
        said.append(f"not told apart from that of {listed(level)}")
    if ahead:
        worse = [f"{label} by {_lead(negative(gaps[label]), measure)}" for label in ahead]
        said.append(f"worse than that of {listed(worse)}, a caveat to the choice")
    yield f"On {on}, its {measure.title} is {mean}: {'; '.join(said)}."


def _other_measures(run: RunFacts, first: Contender, main: MeasureColumn) -> Iterator[str]:
    """By which other measures a model differs from the one where self-play starts."""
    start = next((one for one in contenders([run]) if one.model.name == run.start), None)
    if start is None or start.model is first.model:
        return
    told, level = [], []
    for measure in measures_of([first, start]):
        ids = measured(start, measure)
        if measure == main or measure.better is None or not ids or measured(first, measure) != ids:
            continue
        gap = difference(first, start, measure, ids)
        if found := verdict(gap, measure):
            told.append(f"{measure.title} is {found} than {start.label}'s by {_by(gap, measure)}")
        else:
            level.append(measure.title)
    if told:
        yield f"For {first.label}, {listed(told)}."
    if level:
        yield f"By {listed(level)}, {first.label} does not differ significantly from {start.label}."


def _few(items: int) -> Iterator[str]:
    if items < FEW_ITEMS:
        yield f"{items} held-out examples are few: such intervals are too short. Hold out more before you rely on them."


def _remarks(run: RunFacts) -> Iterator[str]:
    if run.leftover:
        numbers = ", ".join(map(str, run.leftover))
        yield f"Of an earlier recipe with more iterations, the folder still has {numbers}; they are not shown."
    if run.results.stopped:
        yield f"Self-play stopped early: {run.results.stopped}."
    for iteration in run.iterations:
        for warning in iteration.pairs.warnings if iteration.pairs else ():
            yield f"Iteration {iteration.number}: {warning}."


# Words --------------------------------------------------------------------------------------------------------------


def _by(gain: Interval, measure: MeasureColumn) -> str:
    unit = "points" if measure.factor == 100 else measure.unit if measure is NLL else ""
    return f"{shown(abs(gain.mean), measure, decimals([gain], measure))} {unit}".rstrip()


def _lead(gain: Interval, measure: MeasureColumn) -> str:
    low, high = (shown(end, measure, decimals([gain], measure)) for end in (gain.low, gain.high))
    return f"{_by(gain, measure)} (95 % interval {low} to {high})"


def _items(count: int) -> str:
    return f"{count:,} held-out example{'s' * (count != 1)}"
