"""Runs a recipe's stages in order.

    synth -> data -> sft -> spin/iterate-1/pairs -> spin/iterate-1 -> spin/iterate-2/pairs ... -> eval, judge

A stage that is finished for the same inputs does not run again, so one command starts, resumes and repeats a run.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Literal, cast

from spintune.checkers import TASKS, build_checker
from spintune.data.preferences import read_answers
from spintune.errors import DataError, ModelError, RecipeError, RunError
from spintune.generation.build import GENERATORS
from spintune.kernels.allocator import give_back_memory
from spintune.memory import memory_errors
from spintune.models.loading import (
    autocast_type,
    check_model,
    check_template_options,
    default_device,
    model_identity,
)
from spintune.models.quantized import require_bitsandbytes
from spintune.progress import Progress, Silent, StoppableProgress, StopRequest
from spintune.ranks.team import Team, commanding, processes
from spintune.recipe import Recipe
from spintune.records import Example
from spintune.remedies import out_of_memory
from spintune.results import EvaluationResults, RunResults, TrainingResults
from spintune.run_folder import BASE, RunFolder
from spintune.run_models import check_inside_run
from spintune.sibling_runs import SiblingRuns
from spintune.stages import schedule
from spintune.stages.answer_length import settle_answer_length
from spintune.stages.context import RunContext
from spintune.stages.data import data_stage
from spintune.stages.decision import check_patience, final_decision, is_unmeasured, measure_for_decision
from spintune.stages.endpoints import check_judge
from spintune.stages.evaluate import evaluate, evaluate_model
from spintune.stages.followers import compare_ranks, enroll
from spintune.stages.iterates import Iterate, LoadedIterate
from spintune.stages.measure import check_measure
from spintune.stages.outcome import evaluation_numbers, outcome_facts
from spintune.stages.registry import Evaluation, evaluations_of
from spintune.stages.schedule import (
    DataSize,
    check_data_files,
    data_size,
    expected_stages,
    guessed_lengths,
    token_lengths,
)
from spintune.stages.selfplay import selfplay_stage
from spintune.stages.sft import sft_stage
from spintune.stages.synth import synth_stage
from spintune.storage import digest_json, read_json, write_json_if_changed
from spintune.tracking import Metrics
from spintune.training.muon import check_muon
from spintune.typed_json import JsonObject, from_json, to_json

log = logging.getLogger(__name__)

Stage = Literal["synth", "sft", "spin", "eval"]


def run_recipe(
    recipe: Recipe,
    cache: Path,
    progress: Progress,
    until: Stage = "eval",
    environment: Mapping[str, str] = MappingProxyType({}),
    stop: StopRequest | None = None,
    siblings: Sequence[Path] = (),
) -> RunResults:
    """Runs the stages of a recipe up to ``until`` and returns what they found out, as in ``results.json``.

    Args:
        cache: folder of models, tokens and compiled code that runs share.
        environment: where the API keys of endpoints are looked up.
        stop: ends the run at its next safe point, with what it was asked to raise. A training stage then has a
            checkpoint, and calling this again goes on.
        siblings: folders of other runs, from which stages with the same inputs are copied.

    Raises SpintuneError for every problem that the user can solve.
    """
    told = partial(out_of_memory, recipe=recipe)
    with memory_errors(told):
        evaluations = check_recipe(recipe, until)
    with memory_errors(told), _folder_of(recipe) as run:
        recipe = run.recipe
        metrics = Metrics(run.folder, recipe.tracking, recipe.identity())
        try:
            stop = stop or StopRequest()
            context = RunContext(recipe, run, cache, StoppableProgress(progress, stop), metrics, environment, stop)
            if team := commanding():
                compare_ranks(team, context)
            if siblings:
                run.siblings = SiblingRuns(siblings, run.folder, metrics, context.progress.note)
            for place in metrics.places():
                context.progress.note(place)
            with _engines(context):
                results = _run_stages(context, until, evaluations)
            if until == "eval":
                results = replace(results, recipe=digest_json(recipe.identity()))
            metrics.finish(evaluation_numbers(results), outcome_facts(results))
        finally:
            metrics.close()
            give_back_memory()  # of a process that goes on: a sweep, a notebook
        _write_results(run.folder / "results.json", results)
    return results


@contextlib.contextmanager
def _engines(context: RunContext) -> Iterator[None]:
    """Inside, the run has the engine that its recipe names; servers that it started end with it."""
    section = context.recipe.generate
    if section is None or not section.is_served:
        yield
        return
    from spintune.generation.served.pool import EnginePool

    context.engines = EnginePool(section, context.environment, context.progress, context.stop.check)
    try:
        yield
    finally:
        context.engines.release()


def follow_recipe(recipe: Recipe, cache: Path, environment: Mapping[str, str], team: Team) -> None:
    """Takes part in a run as another rank than the first, until the run is over."""
    nothing = cast(Metrics, None)  # the first rank logs
    run = _folder_of(recipe)
    enroll(team, RunContext(run.as_bound(), run, cache, Silent(), nothing, environment))
    team.follow()


def check_recipe(recipe: Recipe, until: Stage = "eval") -> list[Evaluation]:
    """Raises SpintuneError for what can be found wrong before a stage runs: settings, files, the run folder.

    Returns the evaluations that the recipe names. Writes nothing.
    """
    if recipe.compile and default_device().type != "cuda":
        raise ModelError("compile works on GPUs only; a CPU has compiled layers without it, so leave it out")
    if recipe.offload and default_device().type != "cuda":
        raise ModelError("offload moves what a GPU has no room for, and there is no GPU here; leave it out")
    for name, section in (("sft", recipe.sft), ("spin", recipe.spin)):
        if section and section.optimizer == "adamw8bit":
            require_bitsandbytes(f"{name}.optimizer: adamw8bit")
        if section and section.optimizer == "muon":
            check_muon(f"{name}.optimizer: muon", default_device())
    if recipe.lora and recipe.lora.base:
        require_bitsandbytes("lora.base: nf4")
    if recipe.generator and recipe.generator not in GENERATORS:
        raise RecipeError(f"generator: {GENERATORS.unknown(recipe.generator)}")
    # files are read before training starts, so that a mistake in one shows at once
    check_data_files(recipe)
    if recipe.spin and recipe.spin.generated:
        read_answers(recipe.spin.generated)
    if recipe.evaluation.checker not in (None, TASKS):
        build_checker(recipe.evaluation.checker)
    evaluations = evaluations_of(recipe) if until == "eval" else []
    if recipe.parallel == "shard":
        from spintune.engine.sharded import check_parallel

        check_parallel(recipe, processes())
    _folder_of(recipe).check()
    return evaluations


def _folder_of(recipe: Recipe) -> RunFolder:
    return RunFolder(recipe, lambda precision: str(autocast_type(precision, default_device())))


def _run_stages(context: RunContext, until: Stage, evaluations: Sequence[Evaluation]) -> RunResults:
    recipe = context.recipe
    if recipe.judge and until == "eval":
        check_judge(context, recipe.judge)
    check_inside_run(recipe.model)
    check_model(recipe.model, cache=context.cache)  # before a teacher is paid
    if recipe.data.template_options:
        check_template_options(recipe.model, recipe.data.template, recipe.data.template_options, cache=context.cache)
    base = Iterate(BASE, recipe.model, model_identity(recipe.model, context.cache))
    iterates = [base]
    context.progress.expect(expected_stages(recipe, until))
    synth = None
    if recipe.synth:
        with context.progress.stage(schedule.WRITE):
            synth = synth_stage(context, recipe.synth, base)
    if recipe.synth and until == "synth":
        return RunResults(synth=synth)
    with context.progress.stage(schedule.DATA):
        data = data_stage(context)
        settle_answer_length(context)
        recipe = context.recipe
        context.progress.expect(expected_stages(recipe, until, _size_of(context)))
    context.when_loaded = partial(_expect_tokens, context, until)
    check_measure(context)
    sft = None
    if (recipe.sft or recipe.spin) and context.cannot_choose:
        context.progress.note(f"no model can be chosen by what is measured: {context.cannot_choose}")
    if recipe.sft or (recipe.spin and until != "sft"):
        with context.progress.stage(schedule.MEASURE):
            measure_for_decision(context, base)
            if until != "sft":
                check_patience(context, base)
    if recipe.sft:
        with context.progress.stage(schedule.SFT_TRAINING):
            iterate, sft = sft_stage(context, recipe.sft, base)
            measure_for_decision(context, iterate)
        iterates.append(iterate)
    training = TrainingResults()
    if recipe.spin and until != "sft":

        def evaluate_early(iterate: Iterate) -> None:
            if recipe.eval and until == "eval":
                context.when_loaded = None  # outside of a stage it would begin to count them again
                evaluate_model(context, iterate, evaluations, {}, [])

        further, training = selfplay_stage(context, recipe.spin, iterates, evaluate_early)
        iterates = [*iterates, *further]
    if len(iterates) > 1 and (until != "sft" or not recipe.spin):
        training = replace(training, best=final_decision(context, iterates))
    evaluated = EvaluationResults()
    if recipe.eval and until == "eval":
        with context.progress.stage(schedule.EVALUATION):
            evaluated = evaluate(context, iterates, evaluations, training.best.name if training.best else None)
    return RunResults(
        **vars(replace(training, synth=synth, data=data, sft=sft)),
        **vars(evaluated),
        models={iterate.name: iterate.location for iterate in iterates if not iterate.is_discarded},
    )


def _expect_tokens(context: RunContext, until: Stage, player: LoadedIterate) -> None:
    """Says again how long stages take, once a tokenizer says how many tokens the examples have."""
    recipe = context.recipe
    if not recipe.sft and not recipe.spin:
        return  # nothing is trained, so nobody reads the examples of training
    with contextlib.suppress(DataError, ModelError):  # the stage that reads the example says so
        size = _size_of(context, partial(token_lengths, player.renderer("last")))
        context.progress.expect(expected_stages(recipe, until, size))


def _size_of(
    context: RunContext, lengths: Callable[[Sequence[Example]], tuple[float, float]] = guessed_lengths
) -> DataSize | None:
    """The size of a run's data, for how long its stages take."""
    if not context.train:
        return None
    chooses, measured = context.cannot_choose is None, not is_unmeasured(context)
    longest = context.recipe.data.max_length
    return data_size(context.seen, context.played, len(context.heldout), longest, chooses, measured, lengths)


def _write_results(path: Path, results: RunResults) -> None:
    """Writes results.json. If all else is unchanged, it keeps what an earlier command found in later stages."""
    found = to_json(results)
    known = _known_results(path)
    if all(known.get(key) == value for key, value in found.items() if key not in ("models", "recipe")):
        kept = {name: place for name, place in known.get("models", {}).items() if Path(place).exists()}
        models = {**kept, **found.get("models", {})}
        found = {**known, **found}
        if models:
            found["models"] = models
    write_json_if_changed(path, found)


def _known_results(path: Path) -> JsonObject:
    """What results.json holds; nothing where it is damaged, since it is written anew."""
    if not path.is_file():
        return {}
    try:
        known = read_json(path)
        from_json(RunResults, known, path)
    except RunError as error:
        log.warning("%s; it is written anew, with what this command finds", error)
        return {}
    parts = {field.name for field in fields(RunResults)}
    return {key: value for key, value in known.items() if key in parts}  # no key that damage made
