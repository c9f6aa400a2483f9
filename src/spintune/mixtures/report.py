"""Draws the first examples of a mixture, and reports what they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from spintune.errors import DataError
from spintune.mixtures.mixture import Mixture, Prompting
from spintune.mixtures.rendering import QUADRANTS, RenderedPrompt
from spintune.mixtures.tasks import MixtureTask
from spintune.number_files import KeyFile
from spintune.progress import Progress, Silent
from spintune.recipe.mixture import QuadrantName
from spintune.record_files import Spool
from spintune.records import Example
from spintune.streams import DIGEST_BYTES, digest

_SILENT = Silent()
_STRIDE = 200  # examples between two reports of progress


@dataclass(frozen=True)
class TaskReport:
    """A task's part of a mixture.

    Attributes:
        wanted, realised: its target share and its actual one.
        examples: how many of the mixture's examples it gave.
        rows, heldout: rows to train on, and rows held out.
        passes: examples per training row.
        read, dropped: rows of its file, and those dropped, by reason.
    """

    wanted: float
    realised: float
    examples: int
    rows: int
    heldout: int
    passes: float
    read: int
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class QuadrantReport:
    """A quadrant's part of a mixture: the target, what the tasks' rationales allow of it, and the actual share."""

    wanted: float
    planned: float
    realised: float


@dataclass(frozen=True)
class ExemplarReport:
    """Exemplars of few-shot prompts: ``asked_for == used + over_budget + none_other``.

    Attributes:
        over_budget: did not fit into the token budget.
        none_other: no other row asked something else.
        prompts_left_without: few-shot prompts without a single exemplar.
    """

    asked_for: int
    used: int
    over_budget: int
    none_other: int
    prompts_left_without: int


@dataclass(frozen=True)
class MixtureReport:
    """What the examples of a mixture are made of.

    Attributes:
        distinct: how many of the examples differ in prompt or target.
        inverted, labelled_answers, hidden_options: shares of the examples.
        held_out_tasks: tasks that are only tested.
        absent_groups: groups of a preset without a task.
        files_without_rows: files that gave no task, each with the reason.
    """

    examples: int
    distinct: int
    tasks: dict[str, TaskReport]
    quadrants: dict[QuadrantName, QuadrantReport]
    exemplars: ExemplarReport
    inverted: float
    labelled_answers: float
    hidden_options: float
    held_out_tasks: list[str]
    absent_groups: list[str]
    files_without_rows: dict[str, str]


@dataclass(frozen=True)
class MaterializedMixture:
    """The first elements of a mixture as examples, which stay on disk, and what they are made of."""

    examples: Sequence[Example]
    report: MixtureReport


def materialize(mixture: Mixture, count: int, progress: Progress = _SILENT) -> MaterializedMixture:
    """The first ``count`` elements; a larger ``count`` begins with the same ones.

    Raises DataError when few-shot prompts are planned and no exemplar fits into any of them.
    """
    examples, counts = Spool(Example), _Counts()
    with progress.task("mixing", count, "examples") as task:
        for position in range(count):
            element = mixture.element(position)
            counts.add(element)
            examples.add(element.example())
            if (position + 1) % _STRIDE == 0:
                task.advance(_STRIDE)
        task.advance(count % _STRIDE)
    budget = mixture.prompting.budget
    if budget and counts.available_shots and not counts.shots:
        raise DataError(
            f"mixture: in none of {counts.few_shot} few-shot prompts does an exemplar fit into {budget.tokens} tokens "
            "beside the question; raise few_shot_tokens (and data.max_length), or set the few-shot quadrants to 0"
        )
    return MaterializedMixture(examples.records(), _report(mixture, counts))


class _Counts:
    """Counts what the elements of a mixture are made of."""

    def __init__(self) -> None:
        self.examples = 0
        self.tasks: Counter[str] = Counter()
        self.quadrants: Counter[QuadrantName] = Counter()
        self.texts = KeyFile(DIGEST_BYTES)
        self.inverted = self.labeled = self.hides_options = 0
        self.few_shot = self.without_shots = self.requested_shots = self.available_shots = self.shots = 0

    def add(self, element: RenderedPrompt) -> None:
        self.examples += 1
        self.tasks[element.task] += 1
        self.quadrants[element.quadrant] += 1
        self.texts.add(digest(orjson.dumps([element.prompt, element.target])))
        self.inverted += element.inverted
        self.labeled += element.labeled
        self.hides_options += element.hides_options
        if element.requested_shots:
            self.few_shot += 1
            self.without_shots += not element.shots
            self.requested_shots += element.requested_shots
            self.available_shots += element.available_shots
            self.shots += element.shots


def _report(mixture: Mixture, counts: _Counts) -> MixtureReport:
    """Target and actual shares of the elements, and what became of exemplars, rows and files."""
    count = max(1, counts.examples)
    trained = {pool.task.name: pool for pool in mixture.training}
    tasks = {}
    for share in mixture.plan.tasks:
        pool, examples = trained[share.task], counts.tasks[share.task]
        tasks[share.task] = TaskReport(
            wanted=share.share,
            realised=examples / count,
            examples=examples,
            rows=len(pool.train),
            heldout=len(pool.heldout),
            passes=examples / len(pool.train),
            read=pool.task.read,
            dropped=dict(pool.task.dropped),
        )
    planned = {key: sum(share.quadrants.get(key, 0.0) for share in mixture.plan.tasks) for key in QUADRANTS}
    target = mixture.plan.quadrants or planned
    return MixtureReport(
        examples=counts.examples,
        distinct=counts.texts.distinct(),
        tasks=tasks,
        quadrants={key: QuadrantReport(target[key], planned[key], counts.quadrants[key] / count) for key in QUADRANTS},
        exemplars=ExemplarReport(
            asked_for=counts.requested_shots,
            used=counts.shots,
            over_budget=counts.available_shots - counts.shots,
            none_other=counts.requested_shots - counts.available_shots,
            prompts_left_without=counts.without_shots,
        ),
        inverted=counts.inverted / count,
        labelled_answers=counts.labeled / count,
        hidden_options=counts.hides_options / count,
        held_out_tasks=[pool.task.name for pool in mixture.pools if not pool.trained],
        absent_groups=list(mixture.plan.absent),
        files_without_rows=dict(mixture.unusable),
    )


def show(task: MixtureTask, count: int, seed: int, prompting: Prompting | None = None) -> list[RenderedPrompt]:
    """The first ``count`` elements of a mixture of one task."""
    return list(map(Mixture([task], seed, prompting=prompting).element, range(count)))
