"""A run for people who did not train it: what was asked, what was gained, and examples that nobody picked by hand."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

from spintune.evaluation.comparison import MIN_ITEMS, listed
from spintune.evaluation.metric_choice import AT_TEMPERATURE_1, are_verdicts
from spintune.evaluation.statistics import Interval
from spintune.recipe.evaluation import CHECKER
from spintune.report.facts import ReportedAnswer, RunFacts
from spintune.report.measures import (
    NLL,
    ROUGE_L,
    Contender,
    contenders,
    difference,
    estimate,
    main_measure,
    measured,
    metric_column,
    negative,
)
from spintune.report.table import MeasureColumn
from spintune.results import DataFacts, SftFacts
from spintune.run_folder import BASE, BASELINE, SFT

SHOWN = 5
"""Examples of a page: the first, the last, and those at each quarter of the order."""
MAX_CHARACTERS, MAX_LINES = 180, 5
"""Of each text, so that all of it fits on two printed pages."""


Verdict = Literal["better", "same", "worse"]

_CLOSER: dict[Verdict, str] = {
    "better": "came closer to the reference answer",
    "same": "stayed as close",
    "worse": "moved away",
}
_RIGHT: dict[Verdict, str] = {"better": "became right", "same": "stayed as they were", "worse": "became wrong"}


@dataclass(frozen=True)
class Case:
    """One example: how it came out, in ``words`` too, and its ``place`` in the order of all."""

    place: str
    verdict: Verdict
    words: str
    prompt: str
    reference: str
    before: str
    after: str


@dataclass(frozen=True)
class PlainView:
    """What colleagues read.

    Attributes:
        asked: what was done, in sentences.
        gained: the one sentence.
        advice: which model to use.
        judged: how many examples were judged, and how.
        counts: how many of them came out how, in words.
        better, same, worse: the same as numbers.
        rule: how ``cases`` were chosen.
    """

    asked: str
    gained: str
    advice: str
    judged: str
    counts: str
    better: int
    same: int
    worse: int
    rule: str
    cases: tuple[Case, ...]

    @property
    def items(self) -> int:
        """The examples that were judged."""
        return self.better + self.same + self.worse


def plain_view(run: RunFacts) -> PlainView | None:
    """The view of a run; None where the model before training and one after it did not answer the same prompts."""
    models = {one.model.name: one for one in contenders([run])}
    before, after = models[BASE], _after(run, models)
    if after is None:
        return None
    main = main_measure(run)
    by_answer = _by_answer(main)
    ids = measured(before, by_answer)
    if not ids or measured(after, by_answer) != ids:
        return None
    sign = -1 if by_answer.better == "lower" else 1
    old, new = (one.model.judged for one in (before, after))
    changes = {id: sign * (new[id].scores[by_answer.key] - old[id].scores[by_answer.key]) for id in ids}
    better, worse = (sum(way * change > 0 for change in changes.values()) for way in (1, -1))
    scores = (one.scores[by_answer.key] for id in ids for one in (old[id], new[id]))
    right = main is not NLL and are_verdicts(by_answer.key, scores)
    comparable = bool(measured(before, main)) and measured(after, main) == measured(before, main)
    measures = [main, by_answer] if comparable and main != by_answer else [by_answer]
    return PlainView(
        asked=_asked(run, after),
        gained=f"On {_examples(len(ids))} not trained on, "
        + "; ".join(_gained(before, after, measure) for measure in measures)
        + ".",
        advice=_advice(run, before, after, measures[0]),
        judged=_judged(run, by_answer, len(ids)),
        counts=_counts(better, len(ids) - better - worse, worse, _RIGHT if right else _CLOSER),
        better=better,
        same=len(ids) - better - worse,
        worse=worse,
        rule=_rule(len(ids)),
        cases=tuple(_cases(run, before, after, changes, by_answer if right else None)),
    )


def _by_answer(main: MeasureColumn) -> MeasureColumn:
    """What judges the greedy answers, which are shown: the measure itself, but for the loss and drawn answers."""
    return ROUGE_L if main is NLL else metric_column(main.key.removesuffix(AT_TEMPERATURE_1))


def _after(run: RunFacts, models: dict[str, Contender]) -> Contender | None:
    """The model that the run decided to use; where that is the one before training, the newest that was trained."""
    if run.best and run.best.name != BASE:
        return models.get(run.best.name)
    trained = [one for name, one in models.items() if name not in (BASE, BASELINE) and one.model.judged]
    return trained[-1] if trained else None


# Sentences ----------------------------------------------------------------------------------------------------------


def _asked(run: RunFacts, after: Contender) -> str:
    """How the model was trained. No word of SFT where there was none."""
    told: list[str] = []
    name = after.model.name
    who = f"the language model {PurePath(str(run.recipe['model'])).name}"
    for stage in [SFT] * bool(run.recipe["sft"]) + ["spin/baseline-sft"] * (name == BASELINE):
        facts = run.facts(stage, SftFacts)
        steps = 0 if facts is None else facts.steps if facts.kept_step is None else facts.kept_step
        taken = f" in {steps:,} step{'s' * (steps != 1)}" if facts else ""
        size = f" ({facts.rows:,} in all)" if facts else ""
        told.append(
            f"it was then trained{taken} more"
            if told
            else f"{who} was trained{taken} on examples from {_sources(run)}{size}, to answer as they do"
        )
    if name.startswith("iterate-"):
        rounds = int(name.removeprefix("iterate-"))
        said = f"{rounds}{' further' * bool(told)} round{'s' * (rounds != 1)}"
        to = "others" if run.recipe["spin"].get("generated") else "its own"
        preferred = "the reference answers" + ("" if told else f" of {_sources(run)}")
        told.append(f"in {said} {'it' if told else who} learned to prefer {preferred} to {to}")
    return " ".join(f"{one[0].upper()}{one[1:]}." for one in told)


def _sources(run: RunFacts) -> str:
    data = run.facts("data", DataFacts)
    sources = [PurePath(str(source["path"])).name for source in run.recipe["data"]["train"]]
    if run.recipe["data"].get("mixture"):
        tasks = len(data.mixture.tasks) if data and data.mixture else 0
        sources.append(f"a mixture of {tasks:,} task{'s' * (tasks != 1)}" if tasks else "a mixture of tasks")
    return listed(sources)


def _gained(before: Contender, after: Contender, measure: MeasureColumn) -> str:
    """What changed by a measure, with its interval, in words of everyday."""
    ids = measured(before, measure)
    gap = difference(after, before, measure, ids)
    old, new = (estimate(one, measure, ids).mean for one in (before, after))
    if measure is NLL:
        return _likelier(negative(gap), len(ids))
    digits = next((one for one in (0, 1, 2) if _amount(old, measure, one) != _amount(new, measure, one)), 3)
    was, now = (_amount(value, measure, digits) for value in (old, new))
    if len(ids) < MIN_ITEMS:
        return f"{_what(measure)} was {was} before and {now} after, too few examples to tell from chance"
    if gap.low <= 0 <= gap.high:
        return f"{_what(measure)} cannot be told from what it was: {was} before and {now} after, which may be chance"
    went = "fell" if gap.mean < 0 else "rose"
    good = "" if _is_better(gap, measure) else ", which is worse"
    return f"{_what(measure)} {went} from {was} to {now}{good} ({_certainty(gap, measure, digits)})"


def _is_better(gap: Interval, measure: MeasureColumn) -> bool:
    """Whether all of the interval is on the better side."""
    return gap.high < 0 if measure.better == "lower" else gap.low > 0


def _likelier(gain: Interval, items: int) -> str:
    """``gain`` is in nats a token: 0.3 makes each piece of an answer 1.35 times as likely."""
    mean, low, high = (math.exp(value) for value in (gain.mean, gain.low, gain.high))
    if items < MIN_ITEMS:
        return (
            f"the trained model finds each piece of the reference answers {mean:.2f} times as likely as before, too "
            "few examples to tell from chance"
        )
    if gain.low <= 0 <= gain.high:
        return f"reference answers did not become more or less likely beyond chance ({low:.2f} to {high:.2f} times)"
    return (
        f"the trained model finds each piece of the reference answers {mean:.2f} times as likely as before "
        f"(with 95 % certainty {low:.2f} to {high:.2f} times){'' if mean > 1 else ', which is worse'}"
    )


def _what(measure: MeasureColumn) -> str:
    drawn = " drawn at random" * measure.key.endswith(AT_TEMPERATURE_1)
    greedy = _by_answer(measure)
    if greedy == ROUGE_L:
        return f"the likeness{f' of answers{drawn}' if drawn else ''} to the reference answers"
    if measure.factor == 100:
        which = "equal to the reference answers" if greedy.key == "exact_match" else "that are right"
        return f"the share of answers{drawn} {which}"
    return measure.title


def _amount(value: float, measure: MeasureColumn, digits: int) -> str:
    if _by_answer(measure) == ROUGE_L:
        return f"{100 * value:.{digits}f} of 100"
    return f"{100 * value:.{digits}f} %" if measure.factor == 100 else f"{value:.{digits + 1}f}"


def _certainty(gap: Interval, measure: MeasureColumn, digits: int) -> str:
    in_points = _by_answer(measure) == ROUGE_L or measure.factor == 100
    low, high = sorted((abs(gap.low), abs(gap.high)))
    if in_points:
        return f"with 95 % certainty by {100 * low:.{digits}f} to {100 * high:.{digits}f} points"
    return f"with 95 % certainty by {low:.{digits + 1}f} to {high:.{digits + 1}f}"


def _advice(run: RunFacts, before: Contender, after: Contender, measure: MeasureColumn) -> str:
    if run.best is None:
        return f"The trained model is called {after.label} in this run, which is not finished."
    if run.best.name != BASE:
        return f"The trained model, called {after.label} in this run, is the one to use."
    ids = measured(before, measure)
    if len(ids) < MIN_ITEMS:
        return "The model from before training stays the one to use."
    if not _is_better(difference(after, before, measure, ids), measure):
        return "Training did not help, so the model from before it stays the one to use."
    chose = "The examples that served to choose could not tell the two apart, so the" if run.selection else "The"
    return f"{chose} model from before training stays the one to use, though these examples favour the trained one."


def _counts(better: int, same: int, worse: int, words: dict[Verdict, str]) -> str:
    told = zip((better, same, worse), words.values(), strict=True)
    return f"Of {better + same + worse:,} answers, {listed([f'{count:,} {word}' for count, word in told])}."


def _examples(items: int) -> str:
    return f"{items:,} example that was" if items == 1 else f"{items:,} examples that were"


def _judged(run: RunFacts, measure: MeasureColumn, items: int) -> str:
    how = {
        ROUGE_L.key: "by the words that it shares with the reference answer in the same order: 0 for none, 100 for all",
        "exact_match": "by whether it is the reference answer, word for word",
        CHECKER: "by a program that says right or wrong",
    }.get(measure.key, f"by {measure.title}")
    chose = (
        f" {len(run.selection):,} other examples served to choose among the models; they are not counted, since that "
        "would flatter the winner."
        if run.selection
        else ""
    )
    compared = measure.key in (ROUGE_L.key, "exact_match")
    close = " This measures closeness to the reference answers, not whether they are true." if compared else ""
    return (
        f"{_examples(items)} not trained on {'was' if items == 1 else 'were'} answered by the model before and after "
        f"training, and each answer was compared {how}.{chose}{close}"
    )


def _rule(items: int) -> str:
    if items <= SHOWN:
        return "All examples are shown, from the largest gain to the largest loss."
    return (
        f"Nobody picked these: all {items:,} were sorted from the largest gain to the largest loss, and the first, the "
        "last and those at each quarter are shown."
    )


# Examples -----------------------------------------------------------------------------------------------------------


def quarters(count: int) -> list[int]:
    """Places of the first, the last, and those at each quarter.

    >>> quarters(101)
    [0, 25, 50, 75, 100]
    """
    return list(range(count)) if count <= SHOWN else [round(part * (count - 1) / (SHOWN - 1)) for part in range(SHOWN)]


def _cases(
    run: RunFacts, before: Contender, after: Contender, changes: dict[str, float], verdict_by: MeasureColumn | None
) -> Iterator[Case]:
    """``verdict_by`` is None where answers are more or less close, and not right or wrong."""
    prompts = {example.id: example for example in run.heldout}
    order = sorted(changes, key=lambda id: -changes[id])  # stable: equal ones stay in the order of the data
    for place in quarters(len(order)):
        id = order[place]
        verdict: Verdict = "better" if changes[id] > 0 else "worse" if changes[id] < 0 else "same"
        words = {**_CLOSER, "better": "closer"}[verdict]
        if verdict_by:
            was_right = bool(before.model.judged[id].scores[verdict_by.key])
            words = _RIGHT[verdict] if verdict != "same" else "still right" if was_right else "still wrong"
        yield Case(
            f"place {place + 1:,} of {len(order):,}",
            verdict,
            words,
            shortened(prompts[id].prompt[-1].content),
            shortened(prompts[id].answer),
            *(_answer(one.model.judged[id]) for one in (before, after)),
        )


def _answer(answer: ReportedAnswer) -> str:
    text = shortened(answer.texts[0])
    return f"{text} … (cut for length)" if answer.finished is False and not text.endswith("(cut)") else text


def shortened(text: str) -> str:
    """The beginning of a text, with a mark where it was cut."""
    lines = [line for line in text.strip().splitlines() if line.strip()]
    kept = "\n".join(lines[:MAX_LINES])
    if len(kept) > MAX_CHARACTERS:
        cut = kept[:MAX_CHARACTERS]
        words = cut.rsplit(None, 1)[0]
        kept = words if len(words) > MAX_CHARACTERS // 2 else cut  # not every language has spaces
    return kept if len(kept) == len("\n".join(lines)) else f"{kept} … (cut)"
