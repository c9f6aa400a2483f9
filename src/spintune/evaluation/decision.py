"""Which model of a run to use: one rule over all of them, made once and written with its reason to ``best.json``.

The one-standard-error rule (Breiman et al. 1984, section 3.4.3), on paired differences. Of all models the one with the
best mean score is the mark. Those that fall short of it by no more than one standard error of their difference are its
equals. Scores of answers are coarse, so of the equals those stay whose held-out loss is within one standard error of
the least. Of what is left the simplest is chosen: the recipe's model before SFT, SFT before more SFT, that before
self-play, an early iterate before a late one.

``benchmarks/decision.py`` measures how often this chooses a worse model than other rules do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from spintune.evaluation.metric_choice import better_of, measure_of
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.metrics import NLL
from spintune.recipe.evaluation import CHECKER, SAMPLED
from spintune.storage import read_json
from spintune.typed_json import OmitEmpty, from_json

BEST = "best.json"
OLD_BEST = "spin/best.json"
"""Where versions until 0.1 kept the choice among iterates."""

_TITLES = {"nll": "held-out loss", "rouge_l": "ROUGE-L", CHECKER: "share of right answers by the checker"}
_ROUNDING = 1 + 1e-9
"""One answer of n falls short by exactly one standard error, apart from rounding."""


@dataclass(frozen=True)
class Candidate:
    """A model that may be chosen.

    Attributes:
        scores: by example; higher is better.
        losses: by example; their mean is the loss in nats per token.
        deleted: its weights are gone, so it is measured but cannot be chosen.
    """

    name: str
    scores: Mapping[str, float]
    losses: Mapping[str, float]
    deleted: bool = False


@dataclass(frozen=True)
class CandidateFacts(OmitEmpty):
    """What a decision saw of one model.

    Attributes:
        mean: of the metric.
        difference: from the best mean, with its 95 % interval.
        loss: of the references. [nats per token]
        deleted: its weights were deleted, so it could not be chosen.
    """

    name: str
    mean: float
    difference: Interval
    loss: float
    deleted: bool = False


@dataclass(frozen=True)
class BestModel(OmitEmpty):
    """``best.json``: the model of a run to use.

    Attributes:
        model: its folder, relative to the run folder, or what the recipe calls the model.
        why: the reason, as a sentence without its full stop.
        metric: by which it was chosen; None where nothing was measured.
        selection: held-out examples that choose, and so do not report; 0 where all report.
        candidates: all models, in order of simplicity; empty where nothing was measured.
    """

    name: str
    model: str
    why: str
    metric: str | None = None
    selection: int = 0
    candidates: list[CandidateFacts] = field(default_factory=list)


@dataclass(frozen=True)
class Decision:
    """The model that :func:`decide` chooses, and why."""

    name: str
    why: str
    candidates: list[CandidateFacts]


def decide(candidates: Sequence[Candidate], metric: str, lower_is_better: bool = False) -> Decision:
    """Chooses by the rule above. The same scores give the same decision.

    Args:
        candidates: the simplest first; at least one whose weights are there.
        lower_is_better: the direction of the metric, for means and differences of the record; scores are always
            higher for a better model.

    Raises ValueError when all were deleted, or when they have fewer than two examples in common.
    """
    there = [place for place, one in enumerate(candidates) if not one.deleted]
    ids = [id for id in candidates[0].scores if all(id in one.scores and id in one.losses for one in candidates)]
    if not there or len(ids) < 2:
        raise ValueError(f"{len(there)} models and {len(ids)} examples: nothing to choose from")
    score_CN = np.array([[one.scores[id] for id in ids] for one in candidates])
    loss_CN = np.array([[one.losses[id] for id in ids] for one in candidates])
    best = _first_best(score_CN, there)
    equals = within_one_error(score_CN, there)
    likely = within_one_error(-loss_CN, equals)
    chosen = likely[0]
    sign = -1.0 if lower_is_better else 1.0
    facts = [
        CandidateFacts(
            name=one.name,
            mean=float(sign * score_N.mean()),
            difference=bootstrap((sign * (score_N - score_CN[best])).tolist()),
            loss=float(loss_N.mean()),
            deleted=one.deleted,
        )
        for one, score_N, loss_N in zip(candidates, score_CN, loss_CN, strict=True)
    ]
    return Decision(candidates[chosen].name, _Words(metric, len(ids), facts, best, equals, likely).why(), facts)


def within_one_error(score_CN: NDArray[np.float64], among: Sequence[int]) -> list[int]:
    """The models ``among`` whose mean is within one standard error of their paired difference from the best mean.

    The standard error is that of a mean, s/√n with n - 1 in s. A model that differs by the same amount on every example
    has none, so it is equal only without a difference.
    """
    best = _first_best(score_CN, among)
    gap_CN = score_CN[best] - score_CN
    error_C = gap_CN.std(1, ddof=1) / math.sqrt(gap_CN.shape[1])
    rounding = 1e-12 * max(1.0, float(np.abs(score_CN[best]).mean()))
    return [place for place in among if gap_CN[place].mean() <= error_C[place] * _ROUNDING + rounding]


def _first_best(score_CN: NDArray[np.float64], among: Sequence[int]) -> int:
    """The best mean; of equal ones the simplest."""
    return max(among, key=lambda place: (float(score_CN[place].mean()), -place))


@dataclass(frozen=True)
class _Words:
    """The reason of a decision in words; ``equals`` and ``likely`` are places of candidates."""

    metric: str
    items: int
    facts: Sequence[CandidateFacts]
    best: int
    equals: Sequence[int]
    likely: Sequence[int]

    def why(self) -> str:
        chosen, title = self.likely[0], title_of(self.metric)
        on = f"on {self.items} held-out examples"
        if len(self.equals) == 1:
            there = [place for place, one in enumerate(self.facts) if not one.deleted]
            rivals = [place for place in there if place != chosen]
            if not rivals:
                return f"it is the only model there is; its {title} is {self._mean(chosen)} {on}"
            nearest = min(rivals, key=lambda place: abs(self.facts[place].difference.mean))
            return (
                f"its {title} of {self._mean(chosen)} is the best of {len(there)} models {on}, by more than one "
                f"standard error: the next, {self.facts[nearest].name}, is worse by {self._gap(nearest)}"
            )
        level = f"{len(self.equals)} models are too close to call by {title} {on}"
        if len(self.likely) < len(self.equals):
            least = (
                "has the least loss of them" if len(self.likely) == 1 else "is the simplest of those with least loss"
            )
            return f"{level}, and it {least} ({self.facts[chosen].loss:.3f} nats a token)"
        told = "" if chosen == self.best else f" ({self.facts[self.best].name} is ahead by {self._gap(chosen)})"
        return f"{level}{told}, and it is the simplest of them"

    def _mean(self, place: int) -> str:
        return _shown(self.metric, self.facts[place].mean) + (" nats a token" if self.metric == "nll" else "")

    def _gap(self, place: int) -> str:
        gap = self.facts[place].difference
        low, high = sorted((gap.low, gap.high)) if gap.mean >= 0 else sorted((-gap.low, -gap.high))
        shown = (_shown(self.metric, value) for value in (abs(gap.mean), low, high))
        return "{}, 95 % interval {} to {}".format(*shown)


def title_of(metric: str) -> str:
    """What readers call a metric of ``evaluation.metric``."""
    name = metric.removeprefix(SAMPLED)
    title = _TITLES.get(name, name.replace("_", " "))
    return title if name == metric else f"{title} of answers at temperature 1"


def _shown(metric: str, value: float) -> str:
    return f"{value:.3f}".replace("-0.000", "0.000")


def better_models(best: BestModel, differences: Mapping[str, Mapping[str, Interval]]) -> list[str]:
    """The models that are significantly better than the one to use, by its metric.

    Args:
        differences: paired, by "MODEL - MODEL" and measure, on examples that did not choose.
    """
    if best.metric is None:
        return []
    measure = "nll_per_token" if best.metric == NLL.name else measure_of(best.metric)
    sign = -1 if better_of(best.metric) == "lower" else 1
    ahead = []
    for pair, measures in differences.items():
        first, _, second = pair.partition(" - ")
        if measure in measures and best.name in (first, second):
            lead = sign if best.name == second else -sign  # of the other model
            gap = measures[measure]
            if min(lead * gap.low, lead * gap.high) > 0:
                ahead.append(first if best.name == second else second)
    return ahead


# Reading -------------------------------------------------------------------------------------------------------------


def decision_file(run: Path) -> Path:
    """Where the decision of a run folder is, if it has made one."""
    return next((run / name for name in (BEST, OLD_BEST) if (run / name).is_file()), run / BEST)


def read_decision(run: Path) -> BestModel | None:
    """The decision of a run folder; None where none was made. Raises RunError when it is damaged."""
    path = decision_file(run)
    return from_json(BestModel, read_json(path), path) if path.is_file() else None
