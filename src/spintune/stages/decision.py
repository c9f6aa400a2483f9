"""Decides which model of the run to use, and writes it with the reason to ``best.json``.

Base, SFT, the baseline at equal compute and every iterate compete by one rule (:mod:`spintune.evaluation.decision`) on
the held-out examples that choose. While self-play goes on, those that are there so far do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from spintune.errors import DataError, DeletedModelError
from spintune.evaluation.decision import BEST, OLD_BEST, BestModel, Candidate, decide
from spintune.evaluation.metric_choice import better_of
from spintune.evaluation.model_pairs import simplest_first
from spintune.evaluation.selection import MIN_SELECTION, too_few
from spintune.run_folder import BASE, BASELINE
from spintune.stages.context import RunContext
from spintune.stages.iterates import Iterate
from spintune.stages.measure import decision_losses, decision_scores, metric_of
from spintune.storage import write_json_if_changed
from spintune.typed_json import to_json


def measure_for_decision(context: RunContext, iterate: Iterate) -> None:
    """Measures a model that is in memory now, so that it need not be loaded again when the run decides."""
    if not _unmeasured(context):
        decision_scores(context, iterate)
        decision_losses(context, iterate)


def check_patience(context: RunContext, base: Iterate) -> None:
    """Raises DataError where ``spin.stop.patience`` asks for better models and too few examples can choose one."""
    if context.recipe.spin and context.recipe.spin.stop.patience is not None:
        reason = context.cannot_choose or too_few(len(decision_scores(context, base)), len(context.heldout))
        if reason:
            raise DataError(f"spin.stop.patience: {reason}")


def decide_model(context: RunContext, models: Sequence[Iterate], deleted: Collection[str]) -> BestModel:
    """The model to use among ``models``, in the order in which they were made.

    Args:
        deleted: names of those whose weights are gone: they are measured, and cannot be chosen.
    """
    selection = len(context.heldout) - len(context.reporting)
    if reason := _unmeasured(context):
        newest = _newest(models, deleted)
        return BestModel(newest.name, _location(context, newest), reason, selection=selection)
    by_name = {iterate.name: iterate for iterate in models}
    found = [_candidate(context, by_name[name], name in deleted) for name in simplest_first(list(by_name))]
    candidates = [one for one in found if one is not None]
    items = len(set.intersection(*(set(one.scores) for one in candidates)))
    if items < MIN_SELECTION:  # the others are too long for the recipe's lengths
        newest = _newest(models, deleted)
        reason = _nothing_measured(too_few(items, len(context.heldout)))
        return BestModel(newest.name, _location(context, newest), reason, selection=selection)
    metric = metric_of(context)
    decision = decide(candidates, metric, lower_is_better=better_of(metric) == "lower")
    location = _location(context, by_name[decision.name])
    return BestModel(decision.name, location, decision.why, metric, selection, decision.candidates)


def final_decision(context: RunContext, models: Sequence[Iterate]) -> BestModel:
    """The decision of a run that has trained all its models, written to ``best.json``."""
    best = decide_model(context, models, {iterate.name for iterate in models if iterate.is_discarded})
    write_decision(context, best)
    return best


def write_decision(context: RunContext, best: BestModel) -> None:
    """Writes ``best.json``, in place of the choice of an older version."""
    folder = context.run.folder
    write_json_if_changed(folder / BEST, to_json(best))
    (folder / OLD_BEST).unlink(missing_ok=True)


def is_unmeasured(context: RunContext) -> bool:
    """Whether the run takes its newest model without measuring any."""
    return _unmeasured(context) is not None


def _unmeasured(context: RunContext) -> str | None:
    """Why the newest model is taken without measuring any; None where the models are measured."""
    spin = context.recipe.spin
    if spin and spin.keep == "last":
        return "it is the newest (spin.keep: last)"
    return _nothing_measured(context.cannot_choose) if context.cannot_choose else None


def _nothing_measured(reason: str | None) -> str:
    return f"it is the newest trained model; none was chosen by a measure, since {reason}"


def _newest(models: Sequence[Iterate], deleted: Collection[str]) -> Iterate:
    """The last model that was trained, which the baseline is only compared with."""
    there = [iterate for iterate in models if iterate.name not in deleted]
    return next((iterate for iterate in reversed(there) if iterate.name not in (BASE, BASELINE)), there[-1])


def _candidate(context: RunContext, iterate: Iterate, deleted: bool) -> Candidate | None:
    """A model with its scores; None for one that was deleted before it was measured."""
    try:
        scores, losses = decision_scores(context, iterate), decision_losses(context, iterate)
    except DeletedModelError:
        return None
    return Candidate(iterate.name, scores, losses, deleted)


def _location(context: RunContext, iterate: Iterate) -> str:
    """Relative to the run folder, because that may be moved; what the recipe calls the model for its own."""
    folder, model = context.run.folder, Path(iterate.location)
    return str(model.relative_to(folder)) if model.is_relative_to(folder) else iterate.location
