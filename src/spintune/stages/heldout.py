"""Evaluates iterates on the held-out examples: the likelihood of the references, and greedy answers beside them.

::

    likelihood/NAME/likelihood.jsonl      log-probability of every reference
    eval/heldout/NAME/answers.jsonl       greedy answers with their metrics
"""

from __future__ import annotations

from collections.abc import Sequence

from spintune.errors import DataError
from spintune.evaluation.heldout import (
    HeldoutAnswer,
    answer_heldout,
    heldout_differences,
    score_heldout,
    summarize_heldout,
)
from spintune.evaluation.scores import HeldoutLikelihood
from spintune.evaluation.statistics import Interval, bootstrap
from spintune.metrics import METRICS, metric_inputs
from spintune.records import Example, read_records, write_records
from spintune.results import EvaluationResults, LikelihoodCounts
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate
from spintune.stages.task_accuracy import judge_tasks
from spintune.tokens.rows import RowRenderer, TokenRow, fit
from spintune.typed_json import to_json

HELDOUT_TOKENS = 256
"""Maximum length of an answer when the recipe has no spin section."""


def likelihood_stage(context: RunContext, iterate: Iterate) -> list[HeldoutLikelihood]:
    """The log-probability of every held-out reference under an iterate."""
    stage = f"likelihood/{iterate.name}"
    path = context.run.folder / stage / "likelihood.jsonl"
    inputs = context.heldout_inputs(iterate)
    if context.run.finished(stage, inputs) is None:
        model = context.load(iterate, stage, inputs)
        _, rows = _rows_that_fit(context, model.renderer("last"))
        write_records(path, score_heldout(model.engine, rows, context.progress, iterate.name))
        context.run.finish(stage, inputs, [path], LikelihoodCounts(len(rows), len(context.heldout) - len(rows)))
    return read_records(path, HeldoutLikelihood)


def answer_stage(context: RunContext, iterate: Iterate) -> list[HeldoutAnswer]:
    """An iterate's greedy answers to the held-out prompts, with their metrics against the references."""
    likelihoods = likelihood_stage(context, iterate)
    stage = f"eval/heldout/{iterate.name}"
    path = context.run.folder / stage / "answers.jsonl"
    longest = context.recipe.spin.max_new_tokens if context.recipe.spin else HELDOUT_TOKENS
    inputs = context.heldout_inputs(iterate, max_new_tokens=longest, **metric_inputs())
    if context.run.finished(stage, inputs) is None:
        model = context.load(iterate, stage, inputs)
        examples, rows = _rows_that_fit(context, model.renderer("last"))
        answers = answer_heldout(model.generator, examples, rows, likelihoods, longest, context.progress, iterate.name)
        write_records(path, map(to_json, answers))
        context.run.finish(stage, inputs, [path], {"items": len(answers)})
    return read_records(path, HeldoutAnswer)


def heldout_results(
    context: RunContext, iterates: Sequence[Iterate], pairs: Sequence[tuple[str, str]], reference: str
) -> EvaluationResults:
    """Every iterate's measures, the paired differences of ``pairs``, and with a mixture the accuracy on its tasks."""
    answers = {iterate.name: answer_stage(context, iterate) for iterate in iterates}
    mixture = context.recipe.data.mixture
    return EvaluationResults(
        heldout={name: summarize_heldout(rows) for name, rows in answers.items()},
        differences={f"{one} - {other}": heldout_differences(answers[one], answers[other]) for one, other in pairs},
        tasks=judge_tasks(context, mixture, answers, reference) if mixture else None,
    )


def metric_difference(context: RunContext, metric: str, iterate: Iterate, other: Iterate) -> Interval:
    """How much better an iterate is than another on the same held-out examples; positive is better."""
    if metric == "nll":
        mine, theirs = (likelihood_stage(context, which) for which in (iterate, other))
        return bootstrap([b.nll - a.nll for a, b in zip(mine, theirs, strict=True)], [item.tokens for item in mine])
    better, worse = (iterate, other) if METRICS[metric].better == "higher" else (other, iterate)
    return heldout_differences(answer_stage(context, better), answer_stage(context, worse))[metric]


def _rows_that_fit(context: RunContext, renderer: RowRenderer) -> tuple[list[Example], list[TokenRow]]:
    """The held-out examples within the recipe's lengths, and their rows. Raises DataError when there is none."""
    data = context.recipe.data
    rows = renderer.rows(context.heldout)
    fitted = [fit(row, data.max_length, data.max_target_length, data.max_input_length) for row in rows]
    kept = [(example, row) for example, row in zip(context.heldout, fitted, strict=True) if isinstance(row, TokenRow)]
    if not kept:
        raise DataError("no held-out example fits data.max_length; raise it, or set data.eval_fraction to 0")
    return [example for example, _ in kept], [row for _, row in kept]
