"""Reads a run folder, finished or not, without changing it.

A stage counts when its manifest is there. ``results.json`` adds intervals, conclusions and the judge's findings; all
else comes from what the stages wrote, so that a run that goes on, or was stopped, can be shown like a finished one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import TypeVar

from spintune.errors import RunError
from spintune.evaluation.scores import MEASURES_FOLDER, HeldoutLikelihood, read_scores
from spintune.evaluation.selection import selection_of
from spintune.records import Example, read_records
from spintune.report.evaluations import evaluations_of, read_evaluations, rivals_of
from spintune.report.facts import Answers, ModelFacts, RunFacts, checked_answer, number_of
from spintune.report.missing import expected_models, missing_evaluations, missing_parts, missing_verdicts
from spintune.results import (
    ContaminationFacts,
    DataFacts,
    DiagnosisFacts,
    IterationFacts,
    LikelihoodCounts,
    PairFacts,
    RunResults,
    SftFacts,
    SynthFacts,
)
from spintune.run_folder import BASE, BASELINE, MANIFEST, SFT, check_is_run, iterations_of, read_manifest, read_recipe
from spintune.run_models import read_best, stage_of
from spintune.storage import read_json, read_json_lines
from spintune.training.rate_facts import RateFacts
from spintune.typed_json import JsonObject, from_json

_Record = TypeVar("_Record")

_STAGES: dict[str, type] = {
    "synth": SynthFacts,
    "data": DataFacts,
    "sft/rates": RateFacts,
    "spin/*/rates": RateFacts,
    "sft": SftFacts,
    "spin/iterate-*/pairs": PairFacts,
    "spin/iterate-*": IterationFacts,
    "spin/iterate-*/diagnosis": DiagnosisFacts,
    "spin/heldout/*": dict,
    "spin/baseline-sft": SftFacts,
    "likelihood/*": LikelihoodCounts,
    "eval/*/*": dict,
    "contamination": ContaminationFacts,
}
_NO_SCORES = frozenset(
    "id prompt reference answer finish_reason answer_tokens reference_tokens reference_bytes nll".split()  # noqa: SIM905
)
"""Keys of held-out answers that are no metric."""


@dataclass(frozen=True)
class _SourceShape:
    path: str


@dataclass(frozen=True)
class _DataShape:
    train: list[_SourceShape]
    eval_fraction: float | None


@dataclass(frozen=True)
class _SpinShape:
    iterations: int
    loss: str | list[str]
    baseline: str
    metric: str | None = None  # of versions without evaluation.metric


@dataclass(frozen=True)
class _EvaluationShape:
    rivals: list[str] = field(default_factory=list)
    metric: str | None = None
    checker: str | dict[str, str] | None = None
    samples: int = 0


@dataclass(frozen=True)
class _RecipeShape:
    """What a page or card reads of a recipe. Recipes of other versions have other keys beside these."""

    model: str
    seed: int
    data: _DataShape
    sft: JsonObject | None
    spin: _SpinShape | None
    lora: JsonObject | None
    eval: list[str]
    evaluation: _EvaluationShape | None = None
    judge: JsonObject | None = None
    synth: JsonObject | None = None


def read_run(folder: Path) -> RunFacts:
    """Reads a run folder, finished or not.

    Raises RunError when it is none, or when a file in it is damaged or has another version's form.
    """
    check_is_run(folder)
    try:
        return _read(folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(folder, f"{type(error).__name__}: {error}") from error


def stage_manifests(folder: Path) -> dict[Path, type]:
    """The manifests of a run's finished stages, each with the type of its facts."""
    return {path: kind for pattern, kind in _STAGES.items() for path in sorted(folder.glob(f"{pattern}/{MANIFEST}"))}


def _foreign(path: Path, why: str) -> RunError:
    return RunError(f"{path}: not as this version of spintune writes it ({why}); run the recipe again")


def _read(folder: Path) -> RunFacts:
    claim = read_recipe(folder)
    recipe = claim.recipe
    from_json(_RecipeShape, recipe, folder / "recipe.json")
    manifests = {
        str(path.parent.relative_to(folder)): (path, kind, read_manifest(path.parent))
        for path, kind in stage_manifests(folder).items()
    }
    last = iterations_of(recipe)
    leftover = sorted({number_of(name) for name in manifests if number_of(name) > last})
    manifests = {name: found for name, found in manifests.items() if number_of(name) <= last}
    stages: dict[str, object] = {
        name: from_json(kind, manifest.facts, path) for name, (path, kind, manifest) in manifests.items()
    }
    results = folder / "results.json"
    heldout = tuple(read_records(folder / "data/heldout.jsonl", Example)) if "data" in stages else ()
    examples = {example.id: example for example in heldout}
    best = read_best(folder)
    splits = best is not None and best.selection > 0
    run = RunFacts(
        folder=folder,
        name=folder.resolve().name,
        version=claim.spintune,
        stage_versions=frozenset(manifest.spintune for _, _, manifest in manifests.values()),
        recipe=recipe,
        stages=stages,
        missing=(),
        metrics={stage: rows for stage, rows in _metrics(folder / "metrics.jsonl").items() if number_of(stage) <= last},
        heldout=heldout,
        selection=frozenset(example.id for example in selection_of(heldout)) if splits else frozenset(),
        models=tuple(_model(folder, name, recipe, examples, stages.get(SFT)) for name in _names(recipe, stages)),
        best=best,
        results=_record(results, RunResults) if results.is_file() else RunResults(),
        evaluations=(),
        rivals=rivals_of(recipe),
        leftover=tuple(leftover),
    )
    evaluations = dict.fromkeys([*evaluations_of(recipe), *run.results.benchmarks])
    models = [*(model.name for model in run.models), *run.rivals]
    return _checked(replace(run, evaluations=read_evaluations(folder, list(evaluations), models)))


def _checked(run: RunFacts) -> RunFacts:
    """The run with what is missing, and without results that later commands have made untrue."""
    results = run.results
    trained = sum(model.name.startswith("iterate-") for model in run.models)
    if results.stopped and len(results.spin) != trained:
        results = replace(results, stopped=None)  # self-play has gone on since
    if not run.recipe.get("judge"):
        results = replace(results, judge=None)
    run = replace(run, results=results)
    undone = missing_evaluations(run, expected_models(run))
    run = replace(run, results=replace(results, failed=[name for name in results.failed if name in undone]))
    if missing := tuple(missing_parts(run)):
        run = replace(run, results=replace(run.results, tasks=None, conclusions=[]))
    return replace(run, missing=(*missing, *missing_verdicts(run)))


def _record(path: Path, kind: type[_Record]) -> _Record:
    return from_json(kind, read_json(path), path)


def _names(recipe: JsonObject, stages: Mapping[str, object]) -> list[str]:
    """Models that exist, in the order in which they were made."""
    names = [BASE] + [SFT] * ("sft" in stages)
    for number in range(1, recipe["spin"]["iterations"] + 1) if recipe["spin"] else ():
        if f"spin/iterate-{number}" not in stages:
            break
        names.append(f"iterate-{number}")
    return names + [BASELINE] * ("spin/baseline-sft" in stages)


def _metrics(path: Path) -> dict[str, list[JsonObject]]:
    by_stage: dict[str, list[JsonObject]] = {}
    for number, row in enumerate(read_json_lines(path) if path.is_file() else [], 1):
        stage = row["stage"]
        trained = stage in (SFT, "spin/baseline-sft") or stage == f"spin/iterate-{number_of(stage)}"
        for key in ("step", "tokens", "seconds") if trained else ("step",):
            if key not in row:
                raise _foreign(path, f"line {number} has no {key}")
        # a value that is not finite is written as null
        allowed = {key: (int, float) if key == "step" else (int, float, NoneType) for key in row if key != "stage"}
        if wrong := [key for key, types in allowed.items() if not isinstance(row[key], types)]:
            raise _foreign(path, f"line {number}: {wrong[0]} is no number")
        by_stage.setdefault(stage, []).append(row)
    return by_stage


# Models -------------------------------------------------------------------------------------------------------------


def _model(
    folder: Path, name: str, recipe: JsonObject, examples: Mapping[str, Example], sft: object | None
) -> ModelFacts:
    """``examples`` are the held-out ones by id. Measurements on others are of earlier data, and are left out."""

    def rows(stage: str, file: str) -> list[JsonObject]:
        path = folder / stage / file
        if not (folder / stage / MANIFEST).is_file():
            return []
        written = read_manifest(folder / stage).files.get(file)
        if written and path.is_file() and path.stat().st_size != written.bytes:
            raise RunError(f"{path}: was changed after the run wrote it; run the recipe again")
        return read_json_lines(path)

    def measured(stage: str, file: str) -> list[JsonObject]:
        found = rows(stage, file)
        return found if all(row["id"] in examples for row in found) else []

    further = _further(folder, name, recipe)
    kept = sft.kept_step if isinstance(sft, SftFacts) else None
    return ModelFacts(
        name=name,
        place=str(recipe["model"]) if name == BASE else f"{stage_of(name)}/model",
        likely={
            row["id"]: from_json(HeldoutLikelihood, row, folder / "likelihood" / name)
            for row in measured(f"likelihood/{name}", "likelihood.jsonl")
        },
        judged={
            row["id"]: checked_answer(
                folder / "eval/heldout" / name,
                texts=(row["answer"],),
                finished=row["finish_reason"] == "stop",
                tokens=row["answer_tokens"],
                scores={
                    **{key: value for key, value in row.items() if key not in _NO_SCORES},
                    **further.get(row["id"], {}),
                },
            )
            for row in measured(f"eval/heldout/{name}", "answers.jsonl")
        },
        sampled={
            row["example_id"]: checked_answer(
                folder / "spin/heldout" / name,
                texts=(answer["text"],),
                finished=answer["complete"],
                tokens=len(answer["ids"]),
            )
            for row in rows(f"spin/heldout/{name}", "answers.jsonl")
            if row["example_id"] in examples
            for answer in row["generated"][:1]
        },
        during=_during(folder / "sft" / "samples.jsonl", name, examples, kept),
    )


def _further(folder: Path, name: str, recipe: JsonObject) -> dict[str, dict[str, float]]:
    """What the checker says of held-out answers, and the scores of sampled ones, by example."""
    section, stage = recipe.get("evaluation") or {}, folder / "eval" / MEASURES_FOLDER / name
    asked = section.get("checker") is not None or section.get("samples")
    if not asked or not (stage / MANIFEST).is_file():
        return {}
    return {item.id: item.scores for item in read_scores(stage).items}


def _during(path: Path, name: str, examples: Mapping[str, Example], kept: int | None) -> Answers:
    """Answers among SFT's samples: those of step 0 are the recipe's model's, those of the kept step SFT's.

    ``kept`` is that step; None where all are kept, for the last one.
    """
    rows = read_json_lines(path) if name in (BASE, SFT) and path.is_file() else []
    last = rows[-1]["step"] if rows else 0
    step = 0 if name == BASE else last if kept is None else kept
    # the samples name no example, but show its prompt and reference
    ids = {(example.prompt[-1].content, example.answer): id for id, example in examples.items()}
    keyed = [(ids.get((row["prompt"], row["reference"])), row) for row in rows if row["step"] == step]
    return {id: checked_answer(path, texts=(row["answer"],)) for id, row in keyed if id is not None}
