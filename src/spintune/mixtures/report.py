"""Draws the first examples of a mixture, and reports what they are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spintune.errors import DataError
from spintune.mixtures.mixture import Mixture, Prompting
from spintune.mixtures.rendering import QUADRANTS, RenderedPrompt
from spintune.mixtures.tasks import MixtureTask
from spintune.progress import Progress, Silent
from spintune.recipe.mixture import QuadrantName
from spintune.records import Example

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
    """The first elements of a mixture as examples, and what they are made of."""

    examples: list[Example]
    report: MixtureReport


def materialize(mixture: Mixture, count: int, progress: Progress = _SILENT) -> MaterializedMixture:
    """The first ``count`` elements; a larger ``count`` begins with the same ones.

    Raises DataError when few-shot prompts are planned and no exemplar fits into any of them.
    """
    elements: list[RenderedPrompt] = []
    with progress.task("mixing", count, "examples") as task:
        for position in range(count):
            elements.append(mixture.element(position))
            if (position + 1) % _STRIDE == 0:
                task.advance(_STRIDE)
        task.advance(count % _STRIDE)
    few = [element for element in elements if element.requested_shots]
    budget = mixture.prompting.budget
    if budget and any(element.available_shots for element in few) and not any(element.shots for element in few):
        raise DataError(
            f"mixture: in none of {len(few)} few-shot prompts does an exemplar fit into {budget.tokens} tokens beside "
            "the question; raise few_shot_tokens (and data.max_length), or set the few-shot quadrants to 0"
        )
    return MaterializedMixture([element.example() for element in elements], report(mixture, elements))


def report(mixture: Mixture, elements: Sequence[RenderedPrompt]) -> MixtureReport:
    """Target and actual shares of the elements, and what became of exemplars, rows and files."""
    count = max(1, len(elements))
    by_task = Counter(element.task for element in elements)
    trained = {pool.task.name: pool for pool in mixture.training}
    tasks = {}
    for share in mixture.plan.tasks:
        pool, examples = trained[share.task], by_task[share.task]
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
    return MixtureReport(
        examples=len(elements),
        distinct=len({(element.prompt, element.target) for element in elements}),
        tasks=tasks,
        quadrants=_quadrants(mixture, elements),
        exemplars=_exemplars(elements),
        inverted=sum(element.inverted for element in elements) / count,
        labelled_answers=sum(element.labeled for element in elements) / count,
        hidden_options=sum(element.hides_options for element in elements) / count,
        held_out_tasks=[pool.task.name for pool in mixture.pools if not pool.trained],
        absent_groups=list(mixture.plan.absent),
        files_without_rows=dict(mixture.unusable),
    )


def _quadrants(mixture: Mixture, elements: Sequence[RenderedPrompt]) -> dict[QuadrantName, QuadrantReport]:
    counts = Counter(element.quadrant for element in elements)
    planned = {key: sum(share.quadrants.get(key, 0.0) for share in mixture.plan.tasks) for key in QUADRANTS}
    target = mixture.plan.quadrants or planned
    count = max(1, len(elements))
    return {key: QuadrantReport(target[key], planned[key], counts[key] / count) for key in QUADRANTS}


def _exemplars(elements: Sequence[RenderedPrompt]) -> ExemplarReport:
    few = [element for element in elements if element.requested_shots]
    requested = sum(element.requested_shots for element in few)
    available = sum(element.available_shots for element in few)
    used = sum(element.shots for element in few)
    return ExemplarReport(
        asked_for=requested,
        used=used,
        over_budget=available - used,
        none_other=requested - available,
        prompts_left_without=sum(not element.shots for element in few),
    )


def show(task: MixtureTask, count: int, seed: int, prompting: Prompting | None = None) -> list[RenderedPrompt]:
    """The first ``count`` elements of a mixture of one task."""
    return list(map(Mixture([task], seed, prompting=prompting).element, range(count)))
