"""A run folder as plain facts: what is finished, what was measured, and what is not there yet. Reads files only.

A stage counts when its manifest is there. ``results.json`` lends its intervals; all else comes from what the stages
wrote, so that a run that is under way, or was stopped, can be looked at like one that ended.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType
from typing import Any

from spintune.errors import RunError
from spintune.evaluation.statistics import Interval
from spintune.recipe import HELDOUT
from spintune.records import Example, read_records
from spintune.report.evaluated import (
    BenchmarkOverlap,
    EvaluationResult,
    JudgeReport,
    missing_evaluations,
    missing_verdicts,
    read_evaluations,
    read_judging,
    read_overlaps,
    rivals_of,
)
from spintune.run_folder import BASE, BASELINE, MANIFEST, SFT
from spintune.storage import read_json, read_json_lines

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class LikelihoodFacts:
    """How likely a model finds the reference of a held-out example: minus log p, in nats, over so many tokens."""

    nll: float
    tokens: int


@dataclass(frozen=True)
class AnswerFacts:
    """A model's answer to a held-out prompt; what was measured of it is None where nobody measured.

    Attributes:
        finished: it ended by itself, and was not cut.
        tokens: its length.
    """

    text: str
    finished: bool | None = None
    tokens: int | None = None
    rouge_l: float | None = None
    exact_match: bool | None = None


@dataclass(frozen=True)
class ModelFacts:
    """A model of the run, with what was measured of it on held-out examples, by example id.

    Attributes:
        name: base, sft, iterate-1, ..., sft-more.
        place: its folder inside the run folder; of ``base``, what the recipe calls it.
        likely: likelihood of the references.
        judged: greedy answers with their measures.
        sampled: answers drawn at the recipe's temperature, in self-play.
        during: greedy answers to a few prompts while SFT went on.
    """

    name: str
    place: str
    likely: Mapping[str, LikelihoodFacts]
    judged: Mapping[str, AnswerFacts]
    sampled: Mapping[str, AnswerFacts]
    during: Mapping[str, AnswerFacts]


@dataclass(frozen=True)
class StageFacts:
    """A finished stage: what it says of itself, the files it wrote, and the version that wrote them."""

    facts: Facts
    files: Mapping[str, Facts]
    version: str


@dataclass(frozen=True)
class RunFacts:
    """A run folder.

    Attributes:
        name: of the folder.
        recipe: the resolved recipe, as plain values.
        stages: finished stages by name (``sft``, ``spin/iterate-1/pairs``, ...).
        missing: what the recipe asks for and is not there, in words; empty for a finished run.
        metrics: rows of metrics.jsonl by stage, in order.
        heldout: the held-out examples.
        models: those that are there, in the order in which they came about.
        best: self-play's own choice: name, model, why; None without self-play.
        stopped: why self-play ended early, or None.
        estimates: intervals of results.json, by (model, measure).
        differences: paired ones of results.json, by (model, other model, measure).
        tasks: accuracies on the tasks of a mixture, of results.json; None without one, or while the run goes on.
        evaluations: what else judges the models, in the recipe's order.
        rivals: names of those whose stored answers stand beside the models'.
        conclusions: what all evaluations together say, as sentences of results.json; empty while the run goes on.
        failed: evaluations that could not be done.
        judging: what the judge said; None without one, or while the run goes on.
        overlaps: of evaluations with the training data.
    """

    folder: Path
    name: str
    version: str
    recipe: Facts
    stages: Mapping[str, StageFacts]
    missing: tuple[str, ...]
    metrics: Mapping[str, Sequence[Facts]]
    heldout: tuple[Example, ...]
    models: tuple[ModelFacts, ...]
    best: Facts | None
    stopped: str | None
    estimates: Mapping[tuple[str, str], Interval]
    differences: Mapping[tuple[str, str, str], Interval]
    tasks: Facts | None
    evaluations: tuple[EvaluationResult, ...]
    rivals: tuple[str, ...]
    conclusions: tuple[str, ...]
    failed: tuple[str, ...]
    judging: JudgeReport | None
    overlaps: tuple[BenchmarkOverlap, ...]

    @property
    def start(self) -> str:
        """Where self-play starts, and what models are compared with."""
        return SFT if self.recipe["sft"] else BASE

    @property
    def iterations(self) -> int:
        """Iterations of self-play of which anything is there."""
        numbers = [int(part[0]) for name in (*self.stages, *self.metrics) if (part := _iteration_of(name))]
        return max(numbers, default=0)

    def facts_of(self, stage: str) -> Facts | None:
        """What a finished stage says of itself."""
        return self.stages[stage].facts if stage in self.stages else None

    def model(self, name: str) -> ModelFacts:
        return next(model for model in self.models if model.name == name)


def read_run(folder: Path) -> RunFacts:
    """Reads a run folder, finished or not.

    Raises RunError when it is none, or when a file in it is damaged or of another version.
    """
    if not folder.is_dir():
        raise RunError(f"{folder} does not exist or is no folder; give the folder of a run (its recipe's out)")
    if not (folder / "recipe.json").is_file():
        raise RunError(f"{folder} is no run folder, for it has no recipe.json; give the folder of a run")
    try:
        return _read(folder)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _foreign(folder, f"{type(error).__name__}: {error}") from error


def _foreign(path: Path, why: str) -> RunError:
    return RunError(f"{path}: not as this version of spintune writes it ({why}); run the recipe again")


def _read(folder: Path) -> RunFacts:
    claim = read_json(folder / "recipe.json")
    recipe = claim["recipe"]
    stages = {name: _stage(folder, name) for name in _finished(folder)}
    metrics = _metrics(folder / "metrics.jsonl")
    results = read_json(folder / "results.json") if (folder / "results.json").is_file() else {}
    best = folder / "spin" / "best.json"
    heldout = tuple(read_records(folder / "data/heldout.jsonl", Example)) if "data" in stages else ()
    names = _names(recipe, stages)
    stopped = results.get("stopped")
    if stopped and len(results["spin"]) != sum(f"spin/{name}" in stages for name in names):
        stopped = None  # of an earlier command; self-play has gone on since
    examples = {example.id: example for example in heldout}
    models = tuple(_model(folder, name, recipe, stages, examples) for name in names)
    answered = {model.name for model in models if model.judged}
    expected = _expected(recipe, stages, bool(stopped))
    unanswered = [name for name in expected if name not in answered]
    undone = missing_evaluations(recipe, stages, expected)
    failed = [name for name in results.get("failed", []) if name in undone]
    missing = [
        *_missing(recipe, stages, metrics, bool(heldout), unanswered, expected),
        *(f"{name} of {', '.join(without)}" for name, without in undone.items() if name not in failed),
    ]
    contamination = stages.get("contamination")
    return RunFacts(
        folder=folder,
        name=folder.resolve().name,
        version=claim["spintune"],
        recipe=recipe,
        stages=MappingProxyType(stages),
        missing=(*missing, *missing_verdicts(recipe, results)),
        metrics=MappingProxyType(metrics),
        heldout=heldout,
        models=models,
        best=read_json(best) if recipe["spin"] and best.is_file() else None,
        stopped=stopped,
        estimates=MappingProxyType(
            {
                (name, measure): Interval(**interval)
                for name, measures in results.get("heldout", {}).items()
                for measure, interval in measures.items()
            }
        ),
        differences=MappingProxyType(
            {
                (*_pair(names), measure): Interval(**interval)
                for names, measures in results.get("differences", {}).items()
                for measure, interval in measures.items()
            }
        ),
        tasks=None if missing else results.get("tasks"),
        evaluations=read_evaluations(folder, recipe, results, stages, names),
        rivals=tuple(rivals_of(recipe)),
        conclusions=() if missing else tuple(results.get("conclusions", [])),
        failed=tuple(failed),
        judging=read_judging(results["judge"]) if recipe.get("judge") and "judge" in results else None,
        overlaps=read_overlaps(contamination.facts) if contamination else (),
    )


def _pair(names: str) -> tuple[str, str]:
    one, _, other = names.partition(" - ")
    return one, other


# Stages -------------------------------------------------------------------------------------------------------------

_PATTERNS = (
    "synth",
    "data",
    "sft",
    "spin/iterate-*/pairs",
    "spin/iterate-*",
    "spin/iterate-*/diagnosis",
    "spin/heldout/*",
    "spin/baseline-sft",
    "likelihood/*",
    "eval/*/*",
    "contamination",
)


def _finished(folder: Path) -> list[str]:
    found = [sorted(folder.glob(f"{pattern}/{MANIFEST}")) for pattern in _PATTERNS]
    return [str(path.parent.relative_to(folder)) for paths in found for path in paths]


_NEEDED = {
    "synth": ("funnel", "cost/requests", "cost/completion_tokens", "cost/dollars", "seconds/write"),
    "data": ("read", "repeated", "dropped", "train", "heldout"),
    "sft": ("rows", "dropped", "truncated", "seconds/train", "hardware/share_of_peak", "hardware/joules"),
    "spin/iterate-*/pairs": (
        *(f"train/{key}" for key in ("prompts", "played", "kept", "answers", "dropped", "replayed")),
        "train/real_cut",
        "train/generated_cut",
        "warnings",
        "seconds/score",
    ),
    "spin/iterate-*": ("steps", "seconds/train", "hardware/share_of_peak", "hardware/joules"),
    "spin/iterate-*/diagnosis": ("kl_opponent", "kl_base", "answers/tokens", "real/tokens"),
    "spin/baseline-sft": ("rows", "dropped", "truncated", "seconds/train", "hardware/share_of_peak", "hardware/joules"),
    "likelihood/*": ("items", "left_out"),
    "contamination": ("training_rows", "sets"),
}
"""What the page needs of each stage's facts."""


def _stage(folder: Path, name: str) -> StageFacts:
    path = folder / name / MANIFEST
    manifest = read_json(path)
    facts = manifest["facts"]
    for pattern, needed in _NEEDED.items():
        if name.count("/") == pattern.count("/") and fnmatchcase(name, pattern):
            for key in needed:
                outer, _, inner = key.partition("/")
                found = facts.get(outer)
                if outer not in facts or (inner and not (isinstance(found, dict) and inner in found)):
                    raise _foreign(path, f"no {key}")
    return StageFacts(facts, manifest["files"], manifest["spintune"])


def _iteration_of(stage: str) -> tuple[str, str] | None:
    """The number of an iteration and what of it, of ``spin/iterate-2/pairs``: ("2", "/pairs")."""
    if not stage.startswith("spin/iterate-"):
        return None
    number, slash, rest = stage.removeprefix("spin/iterate-").partition("/")
    return (number, slash + rest) if number.isdigit() else None


def _names(recipe: Facts, stages: Mapping[str, StageFacts]) -> list[str]:
    """Models that are there, in the order in which they came about."""
    names = [BASE] + [SFT] * ("sft" in stages)
    if recipe["spin"]:
        for number in range(1, recipe["spin"]["iterations"] + 1):
            if f"spin/iterate-{number}" not in stages:
                break
            names.append(f"iterate-{number}")
    return names + [BASELINE] * ("spin/baseline-sft" in stages)


def _expected(recipe: Facts, stages: Mapping[str, StageFacts], stopped: bool) -> list[str]:
    """The models that a finished run has, and judges."""
    names = [BASE] + [SFT] * bool(recipe["sft"])
    if recipe["spin"]:
        numbers = range(1, recipe["spin"]["iterations"] + 1)
        names += [f"iterate-{n}" for n in numbers if not stopped or f"spin/iterate-{n}" in stages]
        names += [BASELINE] * (recipe["spin"]["baseline"] == "sft")
    return names


def _missing(
    recipe: Facts,
    stages: Mapping[str, StageFacts],
    metrics: Mapping[str, Sequence[Facts]],
    heldout: bool,
    unanswered: Sequence[str],
    expected: Sequence[str],
) -> Iterator[str]:
    """``unanswered`` are the expected models whose answers to the held-out prompts are not there."""

    def begun(stage: str) -> str:
        steps = metrics.get(stage)
        return f", which has come to step {steps[-1]['step']}" if steps else ""

    if recipe.get("synth") and "synth" not in stages:
        yield "written data"
    if "data" not in stages and (recipe["data"]["train"] or recipe["data"].get("mixture")):
        yield "the data"
    for name in expected:
        if name == SFT and "sft" not in stages:
            yield "SFT" + begun("sft")
        elif name == BASELINE and "spin/baseline-sft" not in stages:
            yield "the baseline of further SFT" + begun("spin/baseline-sft")
        elif name.startswith("iterate-"):
            stage, number = f"spin/{name}", name.removeprefix("iterate-")
            if f"{stage}/pairs" not in stages:
                yield f"the pairs and the training of iteration {number}"
            elif stage not in stages:
                yield f"the training of iteration {number}{begun(stage)}"
            elif heldout and f"{stage}/diagnosis" not in stages:
                yield f"the diagnosis of iteration {number}"
    judged = heldout if "data" in stages else recipe["data"]["eval_fraction"]
    if HELDOUT in recipe["eval"] and judged and unanswered:
        yield f"the held-out answers of {', '.join(unanswered)}"


# Metrics ------------------------------------------------------------------------------------------------------------


def _metrics(path: Path) -> dict[str, list[Facts]]:
    by_stage: dict[str, list[Facts]] = {}
    for number, row in enumerate(read_json_lines(path) if path.is_file() else [], 1):
        stage = row["stage"]
        trained = stage in (SFT, "spin/baseline-sft") or (_iteration_of(stage) or ("", "-"))[1] == ""
        for key in ("step", "tokens", "seconds") if trained else ("step",):
            if key not in row:
                raise _foreign(path, f"line {number} has no {key}")
        by_stage.setdefault(stage, []).append(row)
    return by_stage


# Models -------------------------------------------------------------------------------------------------------------

_PLACES = {SFT: "sft/model", BASELINE: "spin/baseline-sft/model"}


def _model(
    folder: Path, name: str, recipe: Facts, stages: Mapping[str, StageFacts], examples: Mapping[str, Example]
) -> ModelFacts:
    """``examples`` are the held-out ones by id; what was judged on others is of earlier data, and left out."""

    def of(stage: str, file: str) -> Sequence[Facts]:
        rows = read_json_lines(folder / stage / file) if stage in stages else []
        return rows if all(row["id"] in examples for row in rows) else []

    sampled = f"spin/heldout/{name}"
    answers = read_json_lines(folder / sampled / "answers.jsonl") if sampled in stages else []
    return ModelFacts(
        name=name,
        place=str(recipe["model"]) if name == BASE else _PLACES.get(name, f"spin/{name}/model"),
        likely={
            row["id"]: LikelihoodFacts(row["nll"], row["tokens"])
            for row in of(f"likelihood/{name}", "likelihood.jsonl")
        },
        judged={
            row["id"]: AnswerFacts(
                row["answer"], row["finish_reason"] == "stop", row["answer_tokens"], row["rouge_l"], row["exact_match"]
            )
            for row in of(f"eval/heldout/{name}", "answers.jsonl")
        },
        sampled={
            row["example_id"]: AnswerFacts(answer["text"], answer["complete"], len(answer["ids"]))
            for row in answers
            if row["example_id"] in examples
            for answer in row["generated"][:1]
        },
        during=_during(folder / "sft" / "samples.jsonl", name, examples),
    )


def _during(path: Path, name: str, examples: Mapping[str, Example]) -> dict[str, AnswerFacts]:
    """Answers in SFT's samples: those of step 0 are the recipe's model's, those of the last step SFT's."""
    rows = read_json_lines(path) if name in (BASE, SFT) and path.is_file() else []
    if not rows:
        return {}
    step = rows[-1]["step"] if name == SFT else 0
    # the samples name no example, but show its prompt and reference
    ids = {(example.prompt[-1].content, example.answer): id for id, example in examples.items()}
    keyed = [(ids.get((row["prompt"], row["reference"])), row) for row in rows if row["step"] == step]
    return {id: AnswerFacts(row["answer"]) for id, row in keyed if id is not None}
