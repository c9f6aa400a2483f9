"""A recipe's stages, in order.

    synth -> data -> sft -> spin/iterate-1/pairs -> spin/iterate-1 -> spin/iterate-2/pairs ... -> eval, judge

A stage whose manifest names the same inputs is not run again, so one command starts, resumes and repeats a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from spintune.data.preferences import read_answers
from spintune.errors import ModelError
from spintune.models.loading import default_device, model_identity
from spintune.progress import Progress
from spintune.recipe import Recipe
from spintune.run_folder import RunFolder
from spintune.stages.context import Iterate, RunContext
from spintune.stages.data import data_stage
from spintune.stages.endpoints import check_judge
from spintune.stages.evaluate import evaluate
from spintune.stages.registry import Evaluation, evaluations_of
from spintune.stages.selfplay import selfplay_stage
from spintune.stages.sft import sft_stage
from spintune.stages.synth import synth_stage
from spintune.storage import read_json, write_json_if_changed
from spintune.tracking import Metrics

Stage = Literal["synth", "sft", "spin", "eval"]


def run_recipe(
    recipe: Recipe,
    cache: Path,
    progress: Progress,
    until: Stage = "eval",
    environment: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Runs the stages of a recipe up to ``until``; what was found, as it stands in ``results.json``.

    ``environment`` holds the keys of endpoints.

    Raises SpintuneError for everything that is the user's to mend.
    """
    if recipe.compile and default_device().type == "cpu":
        raise ModelError("compile is of GPUs alone, a CPU has compiled layers without it; leave it out")
    if recipe.spin and recipe.spin.generated:
        read_answers(recipe.spin.generated)  # a mistake in it shows now, not after SFT
    chosen = evaluations_of(recipe) if until == "eval" else []  # the same holds for benchmarks
    with RunFolder(recipe) as run:
        metrics = Metrics(run.folder, recipe.tracking)
        try:
            return _execute(RunContext(recipe, run, cache, progress, metrics, environment), until, chosen)
        finally:
            metrics.close()


def _execute(context: RunContext, until: Stage, chosen: list[Evaluation]) -> dict[str, Any]:
    recipe = context.recipe
    if recipe.judge and until == "eval":
        check_judge(context, recipe.judge)
    base = Iterate("base", recipe.model, model_identity(recipe.model, context.cache))
    iterates = [base]
    results: dict[str, Any] = {}
    if recipe.synth:
        results["synth"] = synth_stage(context, recipe.synth, base)
        if until == "synth":
            return _remember(context.run.folder / "results.json", results)
    results["data"] = data_stage(context)
    if recipe.sft:
        iterate, results["sft"] = sft_stage(context, recipe.sft, base)
        iterates.append(iterate)
    if recipe.spin and until != "sft":
        outcome = selfplay_stage(context, recipe.spin, iterates[-1])
        iterates += outcome.iterates
        results |= {"spin": outcome.iterations, "best": outcome.best, "stopped": outcome.stopped}
        if outcome.baseline:
            results["baseline"] = outcome.baseline
    if recipe.eval and until == "eval":
        results |= evaluate(context, iterates, chosen, results.get("best", {}).get("name"))
    results["models"] = {iterate.name: iterate.location for iterate in iterates}
    return _remember(context.run.folder / "results.json", results)


def _remember(path: Path, results: dict[str, Any]) -> dict[str, Any]:
    """Writes results.json. What an earlier command found in later stages stays while it follows from the same."""
    known = read_json(path) if path.is_file() else {}
    merged = results
    if all(known.get(key) == value for key, value in results.items() if key != "models"):
        merged = {**known, **results}
        if models := {**known.get("models", {}), **results.get("models", {})}:
            merged["models"] = models
    write_json_if_changed(path, merged)
    return results


def final_model(folder: Path) -> str:
    """The model of a run folder to use: its best iterate, or, while self-play goes on, the last finished model.

    Raises ModelError when the run has written none yet.
    """
    if (folder / "spin" / "best.json").is_file():
        best = str(read_json(folder / "spin" / "best.json")["model"])
        return str(folder / best) if (folder / best).is_dir() else best  # the recipe's own model is not in the folder
    iterates = sorted(folder.glob("spin/iterate-*/model"), key=lambda path: int(path.parent.name.rpartition("-")[2]))
    for path in [*reversed(iterates), folder / "sft" / "model"]:
        if (path.parent / "manifest.json").is_file():
            return str(path)
    raise ModelError(f"run {folder} has no finished model yet; run its recipe again to go on")
