"""The facts of a run folder that a report is made of, as typed records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from spintune.evaluation.decision import BestModel
from spintune.evaluation.scores import HeldoutLikelihood, ScoreTable
from spintune.records import Example
from spintune.results import ContaminationFacts, DiagnosisFacts, IterationFacts, PairFacts, RunResults
from spintune.run_folder import BASE, SFT
from spintune.typed_json import JsonObject, from_json

T = TypeVar("T")


@dataclass(frozen=True)
class ReportedAnswer:
    """A model's answer to a prompt, or its answers to the turns of a dialogue. What was not measured is None or empty.

    Attributes:
        texts: one per turn.
        turns: what was asked; empty for held-out examples, whose prompts are in the data.
        finished: whether it ended by itself and was not cut.
        tokens: length.
        scores: by metric.
        followed: IFEval's instructions, and whether the answer follows each one strictly.
        ratings: the judge's, by turn; None where it gave none.
    """

    texts: tuple[str, ...]
    turns: tuple[str, ...] = ()
    reference: str | None = None
    finished: bool | None = None
    tokens: int | None = None
    scores: Mapping[str, float] = field(default_factory=dict)
    followed: tuple[tuple[str, bool], ...] = ()
    ratings: tuple[int | None, ...] = ()


def checked_answer(where: object, **values: object) -> ReportedAnswer:
    """An answer from values that were read. Raises RunError, which names ``where``, for values of another shape."""
    return from_json(ReportedAnswer, values, where)


Answers = Mapping[str, ReportedAnswer]
"""By the id of the example or item."""


@dataclass(frozen=True)
class ModelFacts:
    """A model of the run, and what was measured of it on held-out examples, by example id.

    Attributes:
        name: base, sft, iterate-1, ..., sft-more.
        place: its folder inside the run folder; for ``base``, what the recipe calls it.
        likely: likelihood of the references.
        judged: greedy answers with their measures.
        sampled: answers drawn at the recipe's temperature, in self-play.
        during: greedy answers to a few prompts while SFT went on.
    """

    name: str
    place: str
    likely: Mapping[str, HeldoutLikelihood]
    judged: Answers
    sampled: Answers
    during: Answers


@dataclass(frozen=True)
class EvaluationResult:
    """One evaluation apart from the held-out examples, for every model and rival that has it.

    Attributes:
        scores: item by item, by model.
        replies: by model; empty where answers are not kept.
        place: the folder of the answers inside the run folder.
    """

    name: str
    scores: Mapping[str, ScoreTable]
    replies: Mapping[str, Answers] = field(default_factory=dict)
    place: str = ""


@dataclass(frozen=True)
class IterationStages:
    """The finished stages of one iteration of self-play; None for those that are not finished."""

    number: int
    pairs: PairFacts | None
    training: IterationFacts | None
    diagnosis: DiagnosisFacts | None


@dataclass(frozen=True)
class RunFacts:
    """A run folder.

    Attributes:
        name: of the folder.
        version: of spintune, which wrote the recipe.
        stage_versions: those that wrote the stages.
        recipe: the resolved recipe, as plain values.
        stages: facts of finished stages by name (``sft``, ``spin/iterate-1/pairs``, ...).
        missing: what the recipe asks for and is not there, in words; empty for a finished run.
        metrics: rows of metrics.jsonl by stage, in order.
        heldout: the held-out examples.
        selection: ids of those by which the run chose its model; they do not report on it.
        models: those that exist, in the order in which they were made.
        best: the run's decision which model to use; None before there is one.
        results: the part of results.json that is still true of the folder.
        evaluations: apart from the held-out examples, in the recipe's order.
        rivals: names of those whose stored answers are compared with the models'.
        leftover: iterations in the folder beyond those that the recipe asks for, which are left out.
    """

    folder: Path
    name: str
    version: str
    stage_versions: frozenset[str]
    recipe: JsonObject
    stages: Mapping[str, object]
    missing: tuple[str, ...]
    metrics: Mapping[str, Sequence[JsonObject]]
    heldout: tuple[Example, ...]
    selection: frozenset[str]
    models: tuple[ModelFacts, ...]
    best: BestModel | None
    results: RunResults
    evaluations: tuple[EvaluationResult, ...]
    rivals: tuple[str, ...]
    leftover: tuple[int, ...] = ()

    @property
    def start(self) -> str:
        """The model that self-play starts from, and that models are compared with."""
        return SFT if self.recipe["sft"] else BASE

    @property
    def longest_answer(self) -> int | str | None:
        """Maximum length of answers; also a number for auto, once pairs were made. None without self-play."""
        known = next((one.pairs.max_new_tokens for one in self.iterations if one.pairs), None)
        return known or (self.recipe["spin"] or {}).get("max_new_tokens")

    @property
    def iterations(self) -> list[IterationStages]:
        """Iterations of self-play that have begun."""
        numbers = [number_of(name) for name in (*self.stages, *self.metrics)]
        found = []
        for number in range(1, max(numbers, default=0) + 1):
            stage = f"spin/iterate-{number}"
            pairs, diagnosis = self.facts(f"{stage}/pairs", PairFacts), self.facts(f"{stage}/diagnosis", DiagnosisFacts)
            found.append(IterationStages(number, pairs, self.facts(stage, IterationFacts), diagnosis))
        return found

    @property
    def contamination(self) -> ContaminationFacts | None:
        """Overlaps of evaluations with the training data."""
        return self.facts("contamination", ContaminationFacts)

    def facts(self, stage: str, kind: type[T]) -> T | None:
        """The facts of a stage; None when it is not finished."""
        found = self.stages.get(stage)
        return found if isinstance(found, kind) else None

    def model(self, name: str) -> ModelFacts:
        """The model of that name, which must exist."""
        return next(model for model in self.models if model.name == name)


def number_of(stage: str) -> int:
    """The iteration that a stage belongs to, 2 for ``spin/iterate-2/pairs``; 0 for other stages."""
    number = stage.removeprefix("spin/iterate-").partition("/")[0]
    return int(number) if number.isdigit() and stage.startswith("spin/iterate-") else 0
