"""Evaluates the models of a run by everything that the recipe's ``eval`` names; each model is loaded once.

::

    each model  --> held-out examples, ifeval, questions, benchmarks --> scores, item by item --+
    the judge   --> pairs of answers, ratings                                                   +--> results
    train.jsonl --> which items are in it -----------------------------------------------------+
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from spintune.data.contamination import text_of
from spintune.errors import DataError, DeletedModelError
from spintune.evaluation.comparison import compare
from spintune.evaluation.model_pairs import compared_pairs, measured_pairs, start_of
from spintune.evaluation.scores import SCORES, ScoreTable, common_scales, read_scores
from spintune.recipe import HELDOUT, HOLD_OUT, MT_BENCH, QUESTIONS
from spintune.records import write_records
from spintune.results import BenchmarkResults, ContaminationFacts, EvaluationResults
from spintune.stages.contamination import contamination_stage
from spintune.stages.context import RunContext
from spintune.stages.heldout import heldout_results, measured_answers
from spintune.stages.iterates import Iterate
from spintune.stages.judge import ModelPairs, judging_stage
from spintune.stages.registry import Evaluation, EvaluationOutcome
from spintune.storage import write_json_lines
from spintune.typed_json import JsonObject, to_json

Scores = dict[str, dict[str, ScoreTable]]
"""By evaluation, then by model."""


def evaluate(
    context: RunContext, iterates: Sequence[Iterate], chosen: Sequence[Evaluation], best: str | None
) -> EvaluationResults:
    """What the evaluations find out about every model.

    ``best`` is the model to use. An evaluation that cannot be run is skipped; its reason is printed.
    """
    recipe = context.recipe
    heldout = HELDOUT in recipe.eval and bool(context.heldout)
    if HELDOUT in recipe.eval and not context.heldout:
        context.progress.note(f"no example is held out, so none is judged; {HOLD_OUT}")
    scores, failed, lacking = _evaluate_models(context, iterates, chosen)
    iterates = [iterate for iterate in iterates if iterate.name not in lacking]
    names = [iterate.name for iterate in iterates]
    pairs = compared_pairs(names, best)
    results = EvaluationResults()
    if heldout:
        results = heldout_results(context, iterates, measured_pairs(names, best), start_of(names))
    if recipe.judge:
        judge = judging_stage(context, recipe.judge, names, _judged_pairs(chosen, names, pairs, best, heldout))
        results = replace(results, judge=judge)
        scores[MT_BENCH] = _rated(context, judge.ratings)
    scores = {name: models for name, models in scores.items() if any(one.items for one in models.values())}
    contamination = _contamination(context, scores, heldout) if context.train and (scores or heldout) else None
    return replace(
        results,
        benchmarks=_benchmarks(scores, contamination),
        conclusions=_conclusions(scores, names) if scores else [],
        failed=failed,
        contamination=contamination,
    )


# Models --------------------------------------------------------------------------------------------------------------


def evaluate_model(
    context: RunContext, iterate: Iterate, chosen: Sequence[Evaluation], scores: Scores, failed: list[str]
) -> None:
    """Does all evaluations of one model that are not done yet, and adds to ``scores`` and ``failed`` what comes of it.

    Raises DeletedModelError when the model was deleted before, RunError when an evaluation from before that was lost.
    """
    if HELDOUT in context.recipe.eval and context.heldout:
        measured_answers(context, iterate)
    for evaluation in chosen:
        if evaluation.name not in failed and not _evaluate_model(context, iterate, evaluation, scores):
            failed.append(evaluation.name)


def _evaluate_models(
    context: RunContext, iterates: Sequence[Iterate], chosen: Sequence[Evaluation]
) -> tuple[Scores, list[str], set[str]]:
    """The scores of all models and rivals, evaluations that could not be done, and models deleted before one was."""
    scores: Scores = {evaluation.name: {} for evaluation in chosen}
    failed: list[str] = []
    lacking: set[str] = set()
    for iterate in sorted(iterates, key=context.is_served, reverse=True):  # it would be loaded again later
        try:
            evaluate_model(context, iterate, chosen, scores, failed)
        except DeletedModelError:
            lacking.add(iterate.name)
            context.progress.note(f"{iterate.name} was deleted (spin.keep) before it was evaluated; left out")
    for name, found in scores.items():
        scores[name] = {iterate.name: found[iterate.name] for iterate in iterates if iterate.name in found}
    for evaluation in chosen:
        for rival, outcome in evaluation.rivals.items():
            _write_outcome(context, evaluation, rival, {**evaluation.inputs, "rival": rival}, outcome)
            scores[evaluation.name][rival] = read_scores(context.run.folder / "eval" / evaluation.name / rival)
    return scores, failed, lacking


def _evaluate_model(context: RunContext, iterate: Iterate, evaluation: Evaluation, scores: Scores) -> bool:
    """One evaluation of one model, now or earlier; False when it cannot be done."""
    stage = f"eval/{evaluation.name}/{iterate.name}"
    inputs = context.model_inputs(iterate, **evaluation.inputs)
    facts = context.run.finished(stage, inputs)
    if facts is None:
        outcome = evaluation.run(context, context.load(iterate, stage, inputs))
        if outcome is None:
            return False
        facts = _write_outcome(context, evaluation, iterate.name, inputs, outcome)
    if "measures" in facts:
        scores.setdefault(evaluation.name, {})[iterate.name] = read_scores(context.run.folder / stage)
    return True


def _write_outcome(
    context: RunContext, evaluation: Evaluation, name: str, inputs: JsonObject, outcome: EvaluationOutcome
) -> JsonObject:
    """Writes the outcome of an evaluation, unless that is done. Returns the facts of its manifest."""
    stage = f"eval/{evaluation.name}/{name}"
    if (facts := context.run.finished(stage, inputs)) is not None:
        return facts
    folder = context.run.folder / stage
    for file, rows in outcome.files.items():
        write_json_lines(folder / file, rows)
    files, facts = [folder / file for file in outcome.files], dict(outcome.facts)
    if outcome.scores:
        write_records(folder / SCORES, outcome.scores.items)
        files.append(folder / SCORES)
        facts |= to_json(outcome.scores.facts())
    context.run.finish(stage, inputs, files, facts)
    return facts


def _judged_pairs(
    chosen: Sequence[Evaluation], names: Sequence[str], pairs: ModelPairs, best: str | None, heldout: bool
) -> dict[str, ModelPairs]:
    """The pairs that the judge compares, by evaluation; on questions the best model also meets each rival."""
    judged: dict[str, ModelPairs] = {HELDOUT: pairs} if heldout else {}
    for evaluation in chosen:
        if evaluation.name == QUESTIONS:
            judged[QUESTIONS] = [*pairs, *((best or names[-1], rival) for rival in evaluation.rivals)]
    return {name: found for name, found in judged.items() if found}


def _rated(context: RunContext, names: Iterable[str]) -> dict[str, ScoreTable]:
    """The scores of models that were rated now; the folder may hold ratings of earlier judges too."""
    folders = {name: context.run.folder / "eval" / MT_BENCH / name for name in names}
    return {name: read_scores(folder) for name, folder in folders.items() if folder.exists()}


# Results -------------------------------------------------------------------------------------------------------------


def _contamination(context: RunContext, scores: Scores, heldout: bool) -> ContaminationFacts:
    """How many items of each evaluation are in the training data."""
    items = {
        name: {item.id: item.text for one in models.values() for item in one.items} for name, models in scores.items()
    }
    if heldout:
        items[HELDOUT] = {example.id: text_of(example) for example in context.heldout}
    return contamination_stage(context, items)


def _benchmarks(scores: Scores, contamination: ContaminationFacts | None) -> dict[str, BenchmarkResults]:
    unclean = {name: found.unclean for name, found in contamination.sets.items()} if contamination else {}
    results = {}
    for evaluation, models in scores.items():
        without = set(unclean.get(evaluation, ()))
        results[evaluation] = BenchmarkResults(
            items={name: len(one.items) for name, one in models.items()},
            measures=common_scales(one.scales for one in models.values()),
            scores={name: one.summary() for name, one in models.items()},
            clean={name: one.summary(without) for name, one in models.items()} if without else {},
        )
    return results


def _conclusions(scores: Scores, names: Sequence[str]) -> list[str]:
    """What all evaluations together say about each model compared with the one self-play starts from, as sentences."""
    if len(names) < 2:
        return []
    tables = {
        name: {
            measure: items
            for evaluation, models in scores.items()
            if name in models
            for measure, items in models[name].table(f"{evaluation} ").items()
        }
        for name in names
    }
    try:
        compared = compare(tables, against=start_of(names))
    except DataError as error:
        return [str(error)]
    return [*compared.conclusions, *compared.notes]
