"""Judges the models of a run by everything that the recipe's ``eval`` names, each model loaded once.

::

    each model  --> held-out examples, ifeval, questions, benchmarks --> scores, item by item --+
    the judge   --> pairs of answers, ratings                                                   +--> results
    train.jsonl --> which items stand in it ---------------------------------------------------+
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from spintune.data.contamination import text_of
from spintune.errors import DataError
from spintune.evaluation.comparison import compare
from spintune.evaluation.model_pairs import compared_pairs, start_of
from spintune.evaluation.scores import SCORES, ScoreTable, read_scores
from spintune.recipe import HELDOUT, MT_BENCH, QUESTIONS
from spintune.records import write_records
from spintune.results import EvaluationResults
from spintune.stages.contamination import contamination_stage
from spintune.stages.context import RunContext
from spintune.stages.heldout import heldout_results, judge_stage
from spintune.stages.iterates import Iterate
from spintune.stages.judge import judging_stage
from spintune.stages.registry import Evaluation, EvaluationOutcome
from spintune.storage import write_json_lines
from spintune.typed_json import from_json


def evaluate(
    context: RunContext, iterates: Sequence[Iterate], chosen: Sequence[Evaluation], best: str | None
) -> EvaluationResults:
    """What was found out about every model, as it stands in results.json.

    ``best`` is self-play's own choice among them. A benchmark that cannot be run is told of and left out.
    """
    recipe = context.recipe
    names = [iterate.name for iterate in iterates]
    heldout = HELDOUT in recipe.eval and bool(context.heldout)
    if HELDOUT in recipe.eval and not context.heldout:
        context.progress.note("no example is held out, so none is judged; set data.eval_fraction above 0")
    scores: dict[str, dict[str, ScoreTable]] = {evaluation.name: {} for evaluation in chosen}
    failed: list[str] = []
    for iterate in iterates:
        if heldout:
            judge_stage(context, iterate)
        for evaluation in chosen:
            if evaluation.name not in failed and not _evaluated(context, iterate, evaluation, scores):
                failed.append(evaluation.name)
    for evaluation in chosen:
        for rival, outcome in evaluation.rivals.items():
            _keep(context, evaluation, rival, {**evaluation.inputs, "rival": rival}, outcome)
            scores[evaluation.name][rival] = read_scores(context.run.folder / "eval" / evaluation.name / rival)

    pairs = compared_pairs(names, best)
    results: dict[str, Any] = {}
    if heldout:
        results |= heldout_results(context, iterates, pairs, start_of(names))
    if recipe.judge:
        judged = _judged_pairs(chosen, names, pairs, best, heldout)
        results["judge"] = judging_stage(context, recipe.judge, names, judged)
        # those that were rated now: ratings of earlier judges may lie beside
        rated = [
            name for name in results["judge"]["ratings"] if (context.run.folder / "eval" / MT_BENCH / name).exists()
        ]
        scores[MT_BENCH] = {name: read_scores(context.run.folder / "eval" / MT_BENCH / name) for name in rated}
    scores = {name: models for name, models in scores.items() if any(one.items for one in models.values())}
    if scores:
        results["benchmarks"] = {name: _summaries(models) for name, models in scores.items()}
        results["conclusions"] = _conclusions(scores, names)
    if failed:
        results["failed"] = failed
    if context.train and (scores or heldout):
        _add_contamination(context, scores, heldout, results)
    return from_json(EvaluationResults, results, context.run.folder)


# Stages -------------------------------------------------------------------------------------------------------------


def _evaluated(
    context: RunContext, iterate: Iterate, evaluation: Evaluation, scores: dict[str, dict[str, ScoreTable]]
) -> bool:
    """One evaluation of one model, done now or before; False where it cannot be done."""
    stage = f"eval/{evaluation.name}/{iterate.name}"
    inputs = context.model_inputs(iterate, **evaluation.inputs)
    facts = context.run.finished(stage, inputs)
    if facts is None:
        outcome = evaluation.judge(context, context.load(iterate))
        if outcome is None:
            return False
        _keep(context, evaluation, iterate.name, inputs, outcome)
        facts = context.run.finished(stage, inputs) or {}
    if facts.get("measures") is not None:
        scores[evaluation.name][iterate.name] = read_scores(context.run.folder / stage)
    return True


def _keep(
    context: RunContext, evaluation: Evaluation, name: str, inputs: dict[str, Any], outcome: EvaluationOutcome
) -> None:
    """Writes what an evaluation gave, once."""
    stage = f"eval/{evaluation.name}/{name}"
    if context.run.finished(stage, inputs) is not None:
        return
    folder = context.run.folder / stage
    files = []
    for file, rows in outcome.files.items():
        files.append(folder / file)
        write_json_lines(folder / file, rows)
    facts = dict(outcome.facts)
    if outcome.scores:
        files.append(folder / SCORES)
        write_records(folder / SCORES, outcome.scores.items)
        facts |= {"items": len(outcome.scores.items), "measures": outcome.scores.to_facts()}
    context.run.finish(stage, inputs, files, facts)


def _judged_pairs(
    chosen: Sequence[Evaluation],
    names: Sequence[str],
    pairs: Sequence[tuple[str, str]],
    best: str | None,
    heldout: bool,
) -> dict[str, list[tuple[str, str]]]:
    """Of each evaluation with answers: the pairs that are compared anyway, and the run's choice with each rival."""
    wanted: dict[str, list[tuple[str, str]]] = {}
    if heldout:
        wanted[HELDOUT] = list(pairs)
    for evaluation in chosen:
        if evaluation.name == QUESTIONS:
            choice = best if best in names else names[-1]
            wanted[QUESTIONS] = [*pairs, *((str(choice), rival) for rival in evaluation.rivals)]
    return {name: found for name, found in wanted.items() if found}


# Results ------------------------------------------------------------------------------------------------------------


def _summaries(models: Mapping[str, ScoreTable]) -> dict[str, Any]:
    first = next(iter(models.values()))
    return {
        "items": {name: len(scores.items) for name, scores in models.items()},
        "measures": first.to_facts(),
        "scores": {
            name: {measure: interval.to_json() for measure, interval in scores.summary().items()}
            for name, scores in models.items()
        },
    }


def _conclusions(scores: Mapping[str, Mapping[str, ScoreTable]], names: Sequence[str]) -> list[str]:
    """What all benchmarks together say of each model beside where self-play starts, as sentences."""
    start = start_of(names)
    tables = {
        name: {
            key: table
            for evaluation, models in scores.items()
            if name in models
            for key, table in models[name].table(f"{evaluation} ").items()
        }
        for name in names
    }
    if len(names) < 2:
        return []
    try:
        compared = compare(tables, against=start)
    except DataError as error:
        return [str(error)]
    return [*compared.conclusions, *compared.notes]


def _add_contamination(
    context: RunContext, scores: Mapping[str, Mapping[str, ScoreTable]], heldout: bool, results: dict[str, Any]
) -> None:
    """Says how many items stand in the training data, and what the scores are without them."""
    items = {
        name: {item.id: item.text for one in models.values() for item in one.items} for name, models in scores.items()
    }
    if heldout:
        items[HELDOUT] = {example.id: text_of(example) for example in context.heldout}
    facts, clean = contamination_stage(context, items)
    results["contamination"] = facts
    for name, models in scores.items():
        if len(clean[name]) < len(items[name]):
            results["benchmarks"][name]["clean"] = {
                model: {measure: found.to_json() for measure, found in one.summary(clean[name]).items()}
                for model, one in models.items()
            }
