"""Metrics by name: how good an answer is. Held-out tables, comparisons and ``evaluation.metric`` take them from here.

Register your own in Python::

    register_metric(Metric("brevity", lambda prediction, references: 1 / (1 + len(prediction)), "higher", "Short."))

or offer it as an entry point of a package, in the group ``spintune.metrics``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from spintune.errors import DataError, RecipeError
from spintune.plugins import Table
from spintune.text.rouge import rouge_l

MetricFunction = Callable[[str, Sequence[str]], float]
"""The score of a prediction against its references, of which there is at least one."""

_TAKEN = frozenset(
    "id prompt reference answer finish_reason answer_tokens reference_tokens reference_bytes finished characters "  # noqa: SIM905
    "nll_per_token nll_per_byte perplexity_per_token perplexity_per_byte auto checker".split()
)
"""Names that rows of answers, tables and recipes use for something else."""


@dataclass(frozen=True)
class Metric:
    """One way to score answers.

    Attributes:
        name: in recipes, tables and files; lower-case letters, digits and underscores.
        function: a pure function of the prediction and its references. None for the likelihood, which needs a model.
        better: which scores are better.
        description: one line for users.
        right_or_wrong: whether every score is 0 or 1.

    Raises RecipeError for a name of another form, or one that means something else in the files of a run.
    """

    name: str
    function: MetricFunction | None
    better: Literal["higher", "lower"]
    description: str
    right_or_wrong: bool = False

    def __post_init__(self) -> None:
        if not re.fullmatch("[a-z][a-z0-9_]*", self.name) or self.name in _TAKEN:
            why = "which means something else in a run" if self.name in _TAKEN else "use a-z, 0-9 and _"
            raise RecipeError(f"a metric cannot be named {self.name!r}; {why}; choose another name")

    def score(self, prediction: str, references: Sequence[str]) -> float:
        """The score of one answer. Raises DataError when the metric gives no finite number."""
        if self.function is None:
            raise TypeError(f"{self.name} is no function of texts")
        score = float(self.function(prediction, references))
        if not math.isfinite(score) or (self.right_or_wrong and score not in (0.0, 1.0)):
            expected = "0 or 1" if self.right_or_wrong else "a finite number"
            raise DataError(f"the metric {self.name} gives {score} for the answer {prediction!r:.60}, not {expected}")
        return score


def exact_match(prediction: str, reference: str) -> bool:
    """Whether two texts are equal, up to white space at the ends and runs of it inside."""
    return prediction.split() == reference.split()


def _nearest_rouge_l(prediction: str, references: Sequence[str]) -> float:
    return max(rouge_l(prediction, reference) for reference in references)


def _equals_one(prediction: str, references: Sequence[str]) -> float:
    return float(any(exact_match(prediction, reference) for reference in references))


NLL = Metric("nll", None, "lower", "Negative log-likelihood of the reference, in nats a token.")
ROUGE_L = Metric("rouge_l", _nearest_rouge_l, "higher", "ROUGE-L F-measure, of the nearest reference (Lin 2004).")
EXACT_MATCH = Metric("exact_match", _equals_one, "higher", "Equal to a reference, up to white space.", True)
BUILT_IN = (NLL, ROUGE_L, EXACT_MATCH)

METRICS: Table[Metric] = Table("metric", "spintune.metrics", [(metric.name, metric) for metric in BUILT_IN])


def register_metric(metric: Metric) -> None:
    """Makes a metric known under its name. Raises RecipeError when another has that name."""
    METRICS.register(metric.name, metric)


def answer_metrics() -> list[Metric]:
    """The metrics that score texts: built-in ones, then those of users and of installed packages."""
    return [metric for name in METRICS if (metric := METRICS[name]).function is not None]


def metric_inputs() -> dict[str, list[str]]:
    """What scored answers depend on, as inputs of a stage: the metrics that did not come with spintune."""
    added = [metric.name for metric in answer_metrics() if metric not in BUILT_IN]
    return {"metrics": added} if added else {}
