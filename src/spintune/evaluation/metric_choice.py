"""Which metric of held-out examples decides: the recipe's, or one that fits the references (``evaluation.metric``).

Likelihood is no measure of self-play, whose optimum overshoots the data (docs/explanation/spin.md); answers are. What
can be met exactly is counted as right or wrong, as T5, FLAN and lm-evaluation-harness do for labels and short answers;
longer answers are compared by words, as they do for summaries.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from spintune.checkers import TASKS, CheckerSetting
from spintune.metrics import EXACT_MATCH, METRICS, NLL, ROUGE_L
from spintune.recipe.evaluation import AUTO, CHECKER, SAMPLED
from spintune.text.answers import CURRENCIES, announced_answers
from spintune.text.reasoning import without_reasoning
from spintune.text.words import split_words

SHORT_WORDS = 5
"""A reference of at most so many words may be met exactly: the limit of short answers in Natural Questions too."""

SHORT_SHARE = 0.5
"""With at least this share of short references, exact_match decides. Of 101 public files the share is 0.995 or more in
the 59 that classify or answer briefly, and at most 0.31 in the others (benchmarks/metric_choice.py)."""

AT_TEMPERATURE_1 = "@T1"
"""After the name of a metric: the mean score of answers that were drawn at temperature 1."""

FINAL_NUMBER = re.compile(rf"####\s*[-+{CURRENCIES}]?[\d.,/]+(?:\s*%)?\s*$")
"""How GSM8K ends an answer with its number."""


@dataclass(frozen=True)
class MetricChoice:
    """The metric that decides, as ``evaluation.metric`` names it, and why as a phrase."""

    name: str
    why: str

    def line(self) -> str:
        """What a run tells its user."""
        return f"models are judged by {self.name}: {self.why}"


def choose_metric(metric: str, checker: CheckerSetting | None, references: Sequence[str]) -> MetricChoice:
    """The metric that decides on examples with these reference answers, by ``evaluation.metric`` and ``.checker``."""
    if metric != AUTO:
        return MetricChoice(metric, "the recipe says so (evaluation.metric)")
    if checker is not None and checker != TASKS:
        kind = checker if isinstance(checker, str) else next(iter(checker))
        return MetricChoice(CHECKER, f"the recipe has one (evaluation.checker: {kind})")
    if not references:
        return MetricChoice(NLL.name, "there is no reference answer to look at")
    texts = [without_reasoning(reference) for reference in references]
    if checker == TASKS:  # a rationale may stand before the answer
        texts = [announced_answers(text)[0] for text in texts]
    share = sum(len(split_words(text)) <= SHORT_WORDS for text in texts) / len(texts)
    if share >= SHORT_SHARE and checker == TASKS:
        why = f"{100 * share:.0f} % of the references give an answer of at most {SHORT_WORDS} words"
        return MetricChoice(CHECKER, f"{why}, which the rules of their tasks check")
    if share >= SHORT_SHARE:
        return MetricChoice(EXACT_MATCH.name, f"{100 * share:.0f} % of the references have at most {SHORT_WORDS} words")
    why = f"{100 * (1 - share):.0f} % of the references have more than {SHORT_WORDS} words, too many to be met exactly"
    if checker is None and sum(map(bool, map(FINAL_NUMBER.search, texts))) >= len(texts) / 2:
        why += "; most end in '#### NUMBER', which evaluation.checker=number compares"
    return MetricChoice(ROUGE_L.name, why)


def measure_of(metric: str) -> str:
    """The name that a metric's scores have in tables: ``exact_match@T1`` for ``sampled:exact_match``."""
    name = metric.removeprefix(SAMPLED)
    return name if name == metric else f"{name}{AT_TEMPERATURE_1}"


def are_verdicts(measure: str, scores: Iterable[float]) -> bool:
    """Whether scores say right or wrong: 0 or 1, and of no measure of how alike texts are."""
    name = measure.removesuffix(AT_TEMPERATURE_1)
    may_be = name not in METRICS or METRICS[name].right_or_wrong  # the checker, or a metric that is not there now
    return may_be and all(score in (0, 1) for score in scores)


def better_of(metric: str) -> Literal["higher", "lower"]:
    """Which scores of a metric are better."""
    name = metric.removeprefix(SAMPLED)
    return "higher" if name == CHECKER else METRICS[name].better
