"""How good a model of the run is, by the run's own metric: one number for each example that chooses."""

from __future__ import annotations

from spintune.metrics import METRICS, NLL
from spintune.stages.context import RunContext
from spintune.stages.heldout import answer_stage, likelihood_stage
from spintune.stages.iterates import Iterate


def metric_of(context: RunContext) -> str:
    """The metric by which the models of the run are compared."""
    return context.recipe.spin.metric if context.recipe.spin else NLL.name


def decision_scores(context: RunContext, iterate: Iterate) -> dict[str, float]:
    """The score of each selection example by :func:`metric_of`; higher is better.

    A likelihood is divided by the mean length of the references, so that the mean is in nats per token.
    """
    chosen = {example.id for example in context.selection}
    metric = METRICS[metric_of(context)]
    if metric.name == NLL.name:
        rows = [row for row in likelihood_stage(context, iterate) if row.id in chosen]
        length = sum(row.tokens for row in rows) / len(rows) if rows else 1.0
        return {row.id: -row.nll / length for row in rows}
    sign = 1.0 if metric.better == "higher" else -1.0
    answers = answer_stage(context, iterate)
    return {answer.id: sign * answer.scores[metric.name] for answer in answers if answer.id in chosen}
