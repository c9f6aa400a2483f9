"""How good a model of the run is, by the run's own metric: one number for each example that chooses."""

from __future__ import annotations

from spintune.checkers import Verdicts
from spintune.errors import DataError
from spintune.evaluation.metric_choice import MetricChoice, better_of, choose_metric, measure_of
from spintune.evaluation.selection import prompt_text
from spintune.metrics import NLL
from spintune.recipe import HELDOUT, HOLD_OUT
from spintune.records import Example
from spintune.stages.context import RunContext
from spintune.stages.heldout import likelihood_stage, measured_answers
from spintune.stages.iterates import Iterate
from spintune.stages.task_accuracy import checker_of
from spintune.text.reasoning import scored_answer, without_reasoning


def metric_choice(context: RunContext) -> MetricChoice:
    """The metric by which the models of the run are compared, and why it is that one."""
    section = context.recipe.evaluation
    return choose_metric(section.metric, section.checker, [example.answer for example in context.heldout])


def metric_of(context: RunContext) -> str:
    """The metric by which the models of the run are compared, as ``evaluation.metric`` names it."""
    return metric_choice(context).name


def decision_scores(context: RunContext, iterate: Iterate) -> dict[str, float]:
    """The score of each selection example by :func:`metric_of`; higher is better."""
    metric = metric_of(context)
    if metric == NLL.name:
        return {id: -loss for id, loss in decision_losses(context, iterate).items()}
    chosen = {example.id for example in context.selection}
    sign = 1.0 if better_of(metric) == "higher" else -1.0
    answers = [answer for answer in measured_answers(context, iterate) if answer.id in chosen]
    return {answer.id: sign * answer.scores[measure_of(metric)] for answer in answers}


def decision_losses(context: RunContext, iterate: Iterate) -> dict[str, float]:
    """The loss on each selection example, over the mean length of the references: the mean is in nats per token."""
    chosen = {example.id for example in context.selection}
    rows = [row for row in likelihood_stage(context, iterate) if row.id in chosen]
    length = sum(row.tokens for row in rows) / len(rows) if rows else 1.0
    return {row.id: row.nll / length for row in rows}


def check_measure(context: RunContext) -> None:
    """Tells which metric decides, and tries the checker on the held-out references, before anything is trained.

    Raises DataError when there is nothing to judge by, or when the checker accepts no reference.
    """
    progress = context.progress
    if not (context.recipe.spin or HELDOUT in context.recipe.eval):
        return
    if not context.heldout:
        if asked := context.recipe.evaluation.needs_heldout:
            raise DataError(f"evaluation.{asked} needs held-out examples; {HOLD_OUT}")
        return
    checker = checker_of(context.recipe)
    if checker and (rejected := _rejected(checker, context.heldout)):
        progress.note(rejected)
    progress.note(metric_choice(context).line())


def _rejected(checker: Verdicts, examples: list[Example]) -> str | None:
    """How many references the checker rejects as answers to their own prompts, in words; None when it accepts all."""
    rejected = [example for example in examples if not _accepts(checker, example)]
    if not rejected:
        return None
    first, total = rejected[0].source or rejected[0].id, f"{len(examples):,} held-out references"
    if len(rejected) == len(examples):
        raise DataError(
            f"evaluation.checker: {checker.name} finds {checker.reads} in none of the {total} (the first: {first}); "
            "use another checker, or leave it out"
        )
    return (
        f"evaluation.checker: {checker.name} rejects {len(rejected):,} of the {total} (the first: {first}); no answer "
        "to these can be right"
    )


def _accepts(checker: Verdicts, example: Example) -> bool:
    texts = scored_answer(example.answer), without_reasoning(example.answer)
    return checker.verdict(*texts, prompt_text(example), example.source or example.id) > 0
