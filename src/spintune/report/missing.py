"""What a recipe asks for and its run folder does not have yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from spintune.evaluation.scores import MEASURES_FOLDER
from spintune.recipe import HELDOUT
from spintune.report.evaluations import answers_folder, evaluations_of
from spintune.report.facts import RunFacts
from spintune.run_folder import BASE, BASELINE, SFT


def missing_parts(run: RunFacts) -> Iterator[str]:
    """In words, in the order in which a run makes them. Failed evaluations are not missing."""
    expected = expected_models(run)
    if run.recipe.get("synth") and "synth" not in run.stages:
        yield "written data"
    if "data" not in run.stages and any(run.recipe["data"].get(key) for key in ("train", "heldout", "mixture")):
        yield "the data"
    for name in expected:
        yield from _training(run, name)
    judged = run.heldout if "data" in run.stages else run.recipe["data"]["eval_fraction"] != 0
    answered = {model.name for model in run.models if model.judged}
    unanswered = [name for name in expected if name not in answered]
    if HELDOUT in run.recipe["eval"] and judged and unanswered:
        yield f"the held-out answers of {', '.join(unanswered)}"
    asked = run.recipe.get("evaluation") or {}
    further = [one for one in expected if one in answered and f"eval/{MEASURES_FOLDER}/{one}" not in run.stages]
    if HELDOUT in run.recipe["eval"] and (asked.get("checker") is not None or asked.get("samples")) and further:
        yield f"the checked or sampled answers of {', '.join(further)}"
    for name, models in missing_evaluations(run, expected).items():
        if name not in run.results.failed:
            yield f"{name} of {', '.join(models)}"


def missing_verdicts(run: RunFacts) -> Iterator[str]:
    """What is missing of a judge's verdicts, in words."""
    if run.recipe.get("judge") and run.results.judge is None:
        yield "the judge's verdicts"
    elif run.results.judge and run.results.judge.problems:
        yield "a part of the judge's verdicts"


def expected_models(run: RunFacts) -> list[str]:
    """The models that a finished run of this recipe has."""
    names = [BASE] + [SFT] * bool(run.recipe["sft"])
    if spin := run.recipe["spin"]:
        iterates = [f"iterate-{number}" for number in range(1, spin["iterations"] + 1)]
        names += [name for name in iterates if not run.results.stopped or f"spin/{name}" in run.stages]
        names += [BASELINE] * (spin["baseline"] == "sft")
    return names


def missing_evaluations(run: RunFacts, models: Sequence[str]) -> dict[str, list[str]]:
    """For each evaluation that some models lack: those models."""
    found = {}
    for name in evaluations_of(run.recipe):
        place = answers_folder(name) or f"eval/{name}"
        if without := [model for model in models if f"{place}/{model}" not in run.stages]:
            found[name] = without
    return found


def _training(run: RunFacts, name: str) -> Iterator[str]:
    if name == SFT and "sft" not in run.stages:
        yield "SFT" + _step(run, "sft")
    elif name == BASELINE and "spin/baseline-sft" not in run.stages:
        yield "the baseline of more SFT" + _step(run, "spin/baseline-sft")
    elif name.startswith("iterate-"):
        stage, number = f"spin/{name}", name.removeprefix("iterate-")
        if f"{stage}/pairs" not in run.stages:
            yield f"the pairs and the training of iteration {number}"
        elif stage not in run.stages:
            yield f"the training of iteration {number}{_step(run, stage)}"
        elif run.heldout and f"{stage}/diagnosis" not in run.stages:
            yield f"the diagnosis of iteration {number}"


def _step(run: RunFacts, stage: str) -> str:
    steps = run.metrics.get(stage)
    return f", which has come to step {steps[-1]['step']}" if steps else ""
