"""What a run gained: the model to use beside the one before training, in a sentence and on a few prompts.

It reads the held-out answers of a run folder. Where some held-out examples chose the model, only the others count.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from spintune.evaluation.answers import answered_models
from spintune.evaluation.comparison import MIN_ITEMS
from spintune.evaluation.decision import BestModel, read_decision, title_of
from spintune.evaluation.heldout import HeldoutAnswer, heldout_differences, summarize_heldout, with_further
from spintune.evaluation.metric_choice import are_verdicts, better_of, choose_metric, measure_of
from spintune.evaluation.scores import MEASURES_FOLDER, read_scores
from spintune.evaluation.selection import selects
from spintune.evaluation.statistics import Interval
from spintune.metrics import NLL
from spintune.recipe.evaluation import AUTO, CHECKER, SAMPLED
from spintune.records import Example, read_records
from spintune.run_folder import BASE, BASELINE, MANIFEST, read_recipe

SHOWN = 3
"""Prompts that are shown: the first ones of the held-out file that report, good or bad."""


@dataclass(frozen=True)
class AnswersBeside:
    """One prompt, answered before and after; ``right`` and ``was_right`` are None where the metric gives none."""

    prompt: str
    before: str
    after: str
    was_right: bool | None = None
    right: bool | None = None


@dataclass(frozen=True)
class Gain:
    """What training changed.

    Attributes:
        before, after: names of the models.
        sentence: how much, by the metric that decides, with its 95 % interval.
        shown: the first prompts.
    """

    before: str
    after: str
    sentence: str
    shown: tuple[AnswersBeside, ...]


def gain_of(run: Path) -> Gain | None:
    """What a run folder's training gained; None where base and a trained model did not answer the same prompts.

    Raises RunError for a damaged folder.
    """
    best = read_decision(run)
    after = _trained(run, best) if best else None
    if best is None or after is None:
        return None
    old, new = ({one.id: one for one in _answers(run, name)} for name in (BASE, after))
    ids = [id for id in old if id in new and not (best.selection and selects(old[id].prompt))]
    if not ids:
        return None
    first, second = [old[id] for id in ids], [new[id] for id in ids]
    metric = _metric(run, best, first)
    measured = _Measured(metric, first, second)
    prompts = {example.id: example for example in read_records(run / "data" / "heldout.jsonl", Example)}
    shown = tuple(measured.beside(place, prompts) for place in range(min(SHOWN, len(ids))))
    return Gain(BASE, after, measured.sentence(after, best), shown)


def _trained(run: Path, best: BestModel) -> str | None:
    """The model to use, or the newest one where none is better than base; None where either gave no answers."""
    answered = answered_models(run)
    if BASE not in answered:
        return None
    if best.name != BASE:
        return best.name if best.name in answered else None
    names = [one.name for one in best.candidates if one.name not in (BASE, BASELINE) and one.name in answered]
    return names[-1] if names else None


def _answers(run: Path, name: str) -> list[HeldoutAnswer]:
    answers = read_records(run / "eval" / "heldout" / name / "answers.jsonl", HeldoutAnswer)
    further = run / "eval" / MEASURES_FOLDER / name
    return with_further(answers, read_scores(further)) if (further / MANIFEST).is_file() else answers


def _metric(run: Path, best: BestModel, answers: list[HeldoutAnswer]) -> str:
    """The metric that decided; where nothing was decided, the one that the recipe would decide by."""
    section = read_recipe(run).recipe.get("evaluation") or {}
    references = [one.reference for one in answers]
    metric = best.metric or choose_metric(section.get("metric", AUTO), section.get("checker"), references).name
    return metric if metric == NLL.name or measure_of(metric) in answers[0].scores else NLL.name


@dataclass(frozen=True)
class _Measured:
    """Answers of two models to the same prompts, by a metric as ``evaluation.metric`` names it."""

    metric: str
    before: list[HeldoutAnswer]
    after: list[HeldoutAnswer]

    @property
    def measure(self) -> str:
        return "nll_per_token" if self.metric == NLL.name else measure_of(self.metric)

    @property
    def is_verdict(self) -> bool:
        """Whether every answer is right or wrong."""
        answers = (*self.before, *self.after)
        return self.metric != NLL.name and are_verdicts(self.measure, (one.scores[self.measure] for one in answers))

    def beside(self, place: int, prompts: dict[str, Example]) -> AnswersBeside:
        """One prompt with both answers."""
        old, new = self.before[place], self.after[place]
        example = prompts.get(old.id)
        prompt = example.prompt[-1].content if example else old.prompt
        is_shown = self.is_verdict and not self.metric.startswith(SAMPLED)  # greedy answers are shown
        verdicts = [bool(one.scores[self.measure]) for one in (old, new)] if is_shown else [None, None]
        return AnswersBeside(prompt, old.answer, new.answer, *verdicts)

    def sentence(self, after: str, best: BestModel) -> str:
        """How much was gained, and how sure that is."""
        gap = heldout_differences(self.after, self.before)[self.measure]
        old, new = (summarize_heldout(answers)[self.measure].mean for answers in (self.before, self.after))
        on = f"{len(self.before)} held-out prompt{'s' * (len(self.before) > 1)}"
        told = f"{self._told(gap)}.{self._kept(gap, after, best)}"
        if self.is_verdict:
            how = " by the checker" if self.measure == CHECKER else f" by {title_of(self.metric)}"
            return f"Of {on}, {after} answers {100 * new:.0f} % right{how}, and {BASE} {100 * old:.0f} %: {told}"
        title = title_of(self.metric) + (" (nats a token)" if self.metric == NLL.name else "")
        title = title[:1].upper() + title[1:]
        return f"{title} on {on}: {new:.3f} of {after}, {old:.3f} of {BASE}: {told}"

    @property
    def _are_few(self) -> bool:
        return len(self.before) < MIN_ITEMS

    def _told(self, gap: Interval) -> str:
        if self._are_few:
            return f"{amount_text(gap.mean, self.is_verdict)}, too few prompts to tell from chance"
        told = gap_text(gap, self.is_verdict)
        if gap.low <= 0 <= gap.high:
            return f"{told}, too little to tell from chance"
        return told if self._is_better(gap) else f"{told}, so it got worse"

    def _is_better(self, gap: Interval) -> bool:
        """Whether all of the interval is on the better side."""
        return gap.low > 0 if better_of(self.metric) == "higher" else gap.high < 0

    def _kept(self, gap: Interval, after: str, best: BestModel) -> str:
        """Why the model from before training stays the one to use, where it does."""
        if best.name != BASE:
            return ""
        if self._are_few:
            return f" {BASE} stays the model to use."
        if not self._is_better(gap):
            return f" Nothing was gained, so {BASE} stays the model to use."
        chose = "The examples that chose could not tell them apart, so " if best.selection else ""
        return f" {chose}{BASE} stays the model to use, though these prompts favour {after}."


def gap_text(gap: Interval, in_points: bool) -> str:
    """A difference with its 95 % interval, in percentage points or as it is."""
    low, high = (f"{100 * end:+.0f}" if in_points else f"{end:+.3f}" for end in (gap.low, gap.high))
    return f"{amount_text(gap.mean, in_points)} (95 % interval {low} to {high})"


def amount_text(mean: float, in_points: bool) -> str:
    """A difference in percentage points or as it is."""
    return f"{100 * mean:+.0f} points" if in_points else f"{mean:+.3f}"
