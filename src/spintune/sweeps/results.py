"""What a sweep found: means over seeds of every model of every setting, and differences of settings within a seed.

Each run is one number for each model and measure; its own interval, over held-out examples, is not used. Seeds are the
items here: an interval says how far the mean could lie from that of all seeds, for these data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from statistics import fmean
from typing import Literal

from spintune.evaluation.model_pairs import start_of
from spintune.evaluation.scores import ScoreScale, common_scales
from spintune.evaluation.statistics import over_seeds
from spintune.report.measures import FINISHED, LENGTH, NLL, metric_column
from spintune.report.table import MeasureColumn
from spintune.results import RunResults
from spintune.sweeps.values import label

LOSS_PER_BYTE = MeasureColumn("nll_per_byte", "held-out loss", "nats a byte", "lower")
CHOSEN = "chosen"
"""Stands for the model that each run chose."""

_LOSS, _LOSS_PER_BYTE = "nll_per_token", "nll_per_byte"
_REPEATS = ("nll_per_", "perplexity_per_")
"""Measures that say the same as a loss that is shown."""


RunState = Literal["finished", "failed", "not run"]


@dataclass(frozen=True)
class SweptRun:
    """A run of a sweep, as it stands.

    Attributes:
        values: of the keys that vary.
        reason: why it failed, or None.
    """

    name: str
    values: dict[str, object]
    seed: int
    state: RunState
    reason: str | None = None


@dataclass(frozen=True)
class SeedEstimate:
    """A mean over seeds with its 95 % t-interval; ``low`` and ``high`` are None for a single seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


SeedEstimates = dict[str, SeedEstimate]
"""By measure."""


@dataclass(frozen=True)
class SettingResults:
    """One setting over its seeds.

    Attributes:
        values: of the keys that vary, without the seed.
        seeds: of the runs that are finished.
        chosen: how many runs chose each model.
        models: by name, and :data:`CHOSEN`.
        gains: each model minus the one where self-play starts, paired by seed, by "MODEL - MODEL".
    """

    name: str
    values: dict[str, object]
    seeds: list[int]
    chosen: dict[str, int]
    models: dict[str, SeedEstimates]
    gains: dict[str, SeedEstimates]


@dataclass(frozen=True)
class SettingDifference:
    """The chosen models of two settings, first minus second, paired by seed."""

    first: str
    second: str
    seeds: list[int]
    measures: SeedEstimates


@dataclass(frozen=True)
class SweepResults:
    """``sweep.json``.

    Attributes:
        axes: the values of each key that varies.
        measures: how each measure is read.
        measure: the one by which settings are ranked; None when no run has it.
        first: the setting with the best mean.
        best: the setting that is better than every other, if one is.
        conclusion: what can be said of the settings, as a sentence.
    """

    spintune: str
    axes: dict[str, list[object]]
    runs: list[SweptRun]
    measures: dict[str, ScoreScale] = field(default_factory=dict)
    measure: str | None = None
    settings: list[SettingResults] = field(default_factory=list)
    differences: list[SettingDifference] = field(default_factory=list)
    first: str | None = None
    best: str | None = None
    conclusion: str = ""


Numbers = dict[str, dict[str, float]]
"""What one run measured: by model, then by measure."""


def summarize(
    version: str,
    axes: Mapping[str, Sequence[object]],
    runs: Sequence[SweptRun],
    found: Mapping[str, RunResults],
    metric: str,
) -> SweepResults:
    """What the finished runs say together.

    Args:
        found: the results of the finished runs, by name.
        metric: the measure of held-out examples by which runs compare models.
    """
    loss = _LOSS_PER_BYTE if "model" in axes else _LOSS  # tokens of other models are other tokens
    measures = common_scales(_scales(results, loss) for results in found.values())
    settings: list[_Setting] = []
    for run in runs:
        values = {key: value for key, value in run.values.items() if key != "seed"}
        if not any(setting.values == values for setting in settings):
            settings.append(_Setting(label(values) or "all runs", values))
        if run.name in found:
            setting = next(one for one in settings if one.values == values)
            setting.add(run.seed, found[run.name], measures.keys())
    differences = [_difference(one, other) for one, other in combinations(settings, 2)]
    differences = [one for one in differences if one.measures]
    measure = _main_measure(measures, loss if metric == "nll" else metric, settings)
    means = _means(settings, measure, measures)
    best, conclusion = _conclusion(settings, differences, means, measure, measures)
    return SweepResults(
        version,
        {key: list(values) for key, values in axes.items()},
        list(runs),
        measures,
        measure,
        [setting.results() for setting in settings],
        differences,
        next(iter(means), None),
        best,
        conclusion,
    )


# One run -------------------------------------------------------------------------------------------------------------


def _scales(results: RunResults, loss: str) -> dict[str, ScoreScale]:
    scales = {}
    for name in dict.fromkeys(name for one in results.heldout.values() for name in one):
        if name == loss or not name.startswith(_REPEATS):
            column = column_of(name)
            scales[name] = ScoreScale(column.better, column.factor == 100)
    for evaluation, benchmark in results.benchmarks.items():
        scales |= {f"{evaluation}/{name}": scale for name, scale in benchmark.measures.items()}
    return scales


def column_of(measure: str) -> MeasureColumn:
    """The column of a measure of held-out examples."""
    known = {one.key: one for one in (NLL, LOSS_PER_BYTE, LENGTH, FINISHED)}
    return known.get(measure) or metric_column(measure)


def _numbers(results: RunResults, measures: Collection[str]) -> Numbers:
    """The estimates of one run; those of the model that it chose stand under :data:`CHOSEN` as well."""
    numbers: Numbers = {
        model: {key: one.mean for key, one in found.items() if key in measures}
        for model, found in results.heldout.items()
    }
    for evaluation, benchmark in results.benchmarks.items():
        for model, scores in benchmark.scores.items():
            own = {f"{evaluation}/{key}": one.mean for key, one in scores.items()}
            numbers.setdefault(model, {}).update(own)
    chosen = chosen_model(results)
    return numbers | ({CHOSEN: numbers[chosen]} if chosen in numbers else {})


def chosen_model(results: RunResults) -> str | None:
    """The model that a run chose; without a choice the last that it trained."""
    return results.best.name if results.best else next(reversed(results.models or results.heldout), None)


class _Setting:
    def __init__(self, name: str, values: dict[str, object]) -> None:
        self.name, self.values = name, values
        self.by_seed: dict[int, Numbers] = {}
        self.chosen: Counter[str] = Counter()

    def add(self, seed: int, results: RunResults, measures: Collection[str]) -> None:
        self.by_seed[seed] = _numbers(results, measures)
        if (chosen := chosen_model(results)) is not None:
            self.chosen[chosen] += 1

    def results(self) -> SettingResults:
        runs = list(self.by_seed.values())
        models = list(dict.fromkeys(model for numbers in runs for model in numbers))
        start = start_of(models)
        others = [model for model in models if model not in (start, "base")] if start in models else []
        return SettingResults(
            self.name,
            self.values,
            list(self.by_seed),
            dict(self.chosen),
            {model: _estimates([numbers[model] for numbers in runs if model in numbers]) for model in models},
            {
                f"{model} - {start}": _paired(
                    [numbers.get(model, {}) for numbers in runs], [numbers.get(start, {}) for numbers in runs]
                )
                for model in others
            },
        )


# Over seeds ----------------------------------------------------------------------------------------------------------


def estimate(values: Sequence[float]) -> SeedEstimate:
    """The mean of one number a seed. Raises ValueError without numbers."""
    if len(values) < 2:
        return SeedEstimate(fmean(values), None, None, len(values))
    found = over_seeds(values)
    return SeedEstimate(found.mean, found.low, found.high, len(values))


def _estimates(runs: Sequence[Mapping[str, float]]) -> SeedEstimates:
    measures = dict.fromkeys(measure for one in runs for measure in one)
    return {measure: estimate([one[measure] for one in runs if measure in one]) for measure in measures}


def _paired(first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]) -> SeedEstimates:
    return _estimates(
        [
            {measure: value - other[measure] for measure, value in one.items() if measure in other}
            for one, other in zip(first, second, strict=True)
        ]
    )


def _difference(first: _Setting, second: _Setting) -> SettingDifference:
    seeds = [seed for seed in first.by_seed if seed in second.by_seed]
    sides = [[one.by_seed[seed].get(CHOSEN, {}) for seed in seeds] for one in (first, second)]
    return SettingDifference(first.name, second.name, seeds, _paired(*sides))


# The best setting ----------------------------------------------------------------------------------------------------


def _main_measure(measures: Mapping[str, ScoreScale], wanted: str, settings: Sequence[_Setting]) -> str | None:
    """The recipe's metric, or else the first measure with a better direction, that every finished run has."""
    runs = [numbers.get(CHOSEN, {}) for setting in settings for numbers in setting.by_seed.values()]
    candidates = [wanted, *(name for name, scale in measures.items() if scale.better)]
    return next((name for name in candidates if runs and all(name in one for one in runs)), None)


def _means(settings: Sequence[_Setting], measure: str | None, measures: Mapping[str, ScoreScale]) -> dict[str, float]:
    """The mean of each setting that has a finished run, the best first."""
    if measure is None:
        return {}
    done = [one for one in settings if one.by_seed]
    means = {one.name: fmean(numbers[CHOSEN][measure] for numbers in one.by_seed.values()) for one in done}
    return dict(sorted(means.items(), key=lambda entry: entry[1], reverse=measures[measure].better == "higher"))


def _conclusion(
    settings: Sequence[_Setting],
    differences: Sequence[SettingDifference],
    means: Mapping[str, float],
    measure: str | None,
    measures: Mapping[str, ScoreScale],
) -> tuple[str | None, str]:
    """The setting whose difference from each other has an interval that leaves out 0, and a sentence about it."""
    done = [setting for setting in settings if setting.by_seed]
    if len(settings) < 2:
        return None, ""
    if len(done) == len(settings) and measure is None:
        return None, "No setting is called best: the runs have no measure in common."
    if measure is None or len(done) < len(settings):
        return None, f"No setting is called best: {len(settings) - len(done)} of {len(settings)} have no finished run."
    sign = -1 if measures[measure].better == "lower" else 1
    first, *others = means
    gains = {other: _gain(differences, first, other, measure, sign) for other in others}
    unclear = [other for other, gain in gains.items() if gain is None or gain[0] <= 0]
    title = title_of(measure)
    if not unclear:
        told = "; ".join(f"{_ends(gain)} than {other}" for other, gain in gains.items())
        return first, f"{first} is best in {title}, paired by seed: {told}."
    told = "; ".join(f"{other} ({_ends(gains[other])})" for other in unclear)
    return None, f"No setting is called best: {first} has the best mean {title}, but cannot be told from {told}."


def title_of(measure: str) -> str:
    """A measure as tables name it."""
    evaluation, _, name = measure.rpartition("/")
    return f"{evaluation} {name.replace('_', ' ')}" if evaluation else column_of(measure).title


Gain = tuple[float, float] | None


def _gain(differences: Sequence[SettingDifference], first: str, other: str, measure: str, sign: int) -> Gain:
    """By how much the first of two settings is better, at least and at most; None for fewer than two common seeds."""
    for one in differences:
        if {one.first, one.second} == {first, other} and (found := one.measures.get(measure)):
            if found.low is None or found.high is None:
                return None
            low, high = sorted(sign * (1 if one.first == first else -1) * end for end in (found.low, found.high))
            return low, high
    return None


def _ends(gain: Gain) -> str:
    if gain == (0, 0):
        return "the same for every seed"
    return f"better by {gain[0]:.3g} to {gain[1]:.3g}" if gain else "fewer than two seeds in common"
