"""A mixture of tasks as a stream of examples: element i is a pure function of the seed and i.

Nothing is saved to resume, rank r of w takes every w-th element, and within a task every training row comes once before
any comes twice.
"""

from __future__ import annotations

import bisect
import itertools
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from spintune import streams
from spintune.data.split import split_examples
from spintune.errors import DataError, RecipeError
from spintune.mixtures import draws
from spintune.mixtures.options import OptionStyle, styles_for
from spintune.mixtures.phrasings import Kind, Phrasing
from spintune.mixtures.rendering import FRAMES, QUADRANTS, ExemplarFrame, PromptBudget, RenderedPrompt, render
from spintune.mixtures.shares import MixturePlan, load_preset, plan, select
from spintune.mixtures.tasks import MixtureTask, TaskItem, load_tasks
from spintune.progress import Progress, Silent
from spintune.recipe.mixture import MixtureSection, QuadrantName, WeighingSection
from spintune.records import Example, Message

_SILENT = Silent()
_STRIDE = 200  # examples between two reports of progress
_HELD_OUT_TASK = 0.5  # rows of a task that is only tested: half are asked, half are there to be exemplars


@dataclass(frozen=True)
class Prompting:
    """How rows are put into words, see :class:`spintune.recipe.mixture.MixtureSection`.

    inversion, no_options:  shares in [0, 1]
    shots:                  fewest and most exemplars of a few-shot prompt
    budget:                 tokens of a few-shot prompt; None for no limit
    """

    inversion: float = 0.23
    no_options: float = 0.5
    shots: tuple[int, int] = (1, 5)
    budget: PromptBudget | None = None


@dataclass(frozen=True)
class TaskPool:
    """A task with its rows on either side, as indices in an order that depends on the seed alone.

    train:    rows to train on, and to take exemplars from
    heldout:  rows that are only asked in tests
    trained:  False for a task that is only tested
    """

    task: MixtureTask
    train: array[int]
    heldout: array[int]
    trained: bool

    @cached_property
    def quadrants(self) -> list[QuadrantName]:
        """What it has phrasings for, and, for the few-shot quadrants, rows that ask something else."""
        questions = {self.task.key(self.task.items[index]) for index in self.train}
        few = len(questions) > (1 if self.trained else 0)
        return [key for key in QUADRANTS if key.partition("_")[2] in self.task.kinds and (few or "zero" in key)]


class Mixture:
    """Tasks with their shares.

    Args:
        tasks: what is mixed; names are unique.
        seed: decides which rows are held out, and the stream.
        weighing: how tasks are weighed: groups, weights, caps, quadrants; a preset of :func:`load_preset` is one.
        overall: what goes before the caps, temperature and quadrants of ``weighing`` and its groups.
        held_out: selectors of tasks that are not in the stream, only in :meth:`heldout`.
        eval_fraction: part of each task's distinct questions that is held out. [share]
        unusable: files that gave no task, for the report.

    Raises RecipeError or DataError for shares that cannot be had, see :func:`spintune.mixtures.shares.plan`.
    """

    def __init__(
        self,
        tasks: Sequence[MixtureTask],
        seed: int,
        weighing: WeighingSection | None = None,
        prompting: Prompting | None = None,
        overall: WeighingSection | None = None,
        held_out: Sequence[str] = (),
        eval_fraction: float = 0.0,
        unusable: Mapping[str, str] | None = None,
    ) -> None:
        names = Counter(task.name for task in tasks)
        if repeated := [name for name, count in names.items() if count > 1]:
            raise RecipeError(f"mixture: there are {names[repeated[0]]} tasks named {repeated[0]}; rename one")
        out = {task.name for task in select(held_out, tasks, "held_out")}
        trained = [task for task in tasks if task.name not in out]
        if not trained:
            raise RecipeError("held_out: every task is held out, so none is left to train on; hold out fewer")
        self.seed = seed
        self.prompting = prompting or Prompting()
        self.unusable = dict(unusable or {})
        self.pools = [_pool(task, task.name not in out, eval_fraction, seed) for task in tasks]
        self.training = [pool for pool in self.pools if pool.trained]
        rows = {pool.task.name: len(pool.train) for pool in self.training}
        supported = {pool.task.name: pool.quadrants for pool in self.training}
        self.plan: MixturePlan = plan(trained, rows, supported, weighing or WeighingSection.model_validate({}), overall)
        self.training = [
            replace(pool, train=pool.train[: share.cap])
            for pool, share in zip(self.training, self.plan.tasks, strict=True)
        ]
        self._start = streams.draw(seed, "stream")
        self._lay_out()
        self._epochs: dict[str, tuple[int, array[int]]] = {}

    def _lay_out(self) -> None:
        """Shares the circle of 2**64 out: an interval a task, and in it one a quadrant."""
        cells = [
            (place, quadrant, part)
            for place, share in enumerate(self.plan.tasks)
            for quadrant, part in share.quadrants.items()
            if part
        ]
        total = sum(part for _, _, part in cells)
        filled = list(itertools.accumulate(part for _, _, part in cells))
        self._cells = [(place, quadrant) for place, quadrant, _ in cells]
        self._ends = [round(end / total * draws.CIRCLE) for end in filled[:-1]] + [draws.CIRCLE]
        self._intervals: dict[int, tuple[int, int]] = {}
        for (place, _), low, high in zip(self._cells, [0, *self._ends], self._ends, strict=False):
            self._intervals[place] = (self._intervals.get(place, (low, low))[0], high)

    def element(self, position: int) -> RenderedPrompt:
        """Element ``position`` of the stream, from 0."""
        point = draws.point(position, self._start)
        place, quadrant = self._cells[bisect.bisect_right(self._ends, point)]
        pool = self.training[place]
        visit = draws.visits(position, self._start, *self._intervals[place])
        epoch, within = divmod(visit, len(pool.train))
        item = pool.task.items[pool.train[self._order(pool, epoch)[within]]]
        return self._render(pool, item, quadrant, self.prompting.inversion, self.prompting.no_options, "stream", visit)

    def stream(self, start: int = 0, rank: int = 0, world: int = 1) -> Iterator[RenderedPrompt]:
        """The elements of one of ``world`` ranks, from its ``start``-th on: rank, rank + world, rank + 2 world, ..."""
        position = rank + start * world
        while True:
            yield self.element(position)
            position += world

    def heldout(self, rows: int | Mapping[str, int]) -> list[RenderedPrompt]:
        """Test prompts: of each task up to ``rows`` rows that are not trained on, in every quadrant the task has.

        ``rows`` may differ by selector: the first that means a task counts, and a task that none means is not asked.
        Straight phrasings only, with the options. Exemplars come from rows that are not asked.

        Raises RecipeError for a selector that means no task.
        """
        tasks = [pool.task for pool in self.pools]
        wanted: dict[str, int] = {}
        for selector, count in {"*": rows}.items() if isinstance(rows, int) else rows.items():
            for task in select([selector], tasks, "heldout_rows"):
                wanted.setdefault(task.name, count)
        return [
            self._render(pool, pool.task.items[index], quadrant, 0.0, 0.0, "heldout", place)
            for pool in self.pools
            for place, index in enumerate(pool.heldout[: wanted.get(pool.task.name, 0)])
            for quadrant in pool.quadrants
        ]

    def _order(self, pool: TaskPool, epoch: int) -> array[int]:
        """The order of a task's training rows in an epoch; the last one is kept, as the stream asks for it again."""
        name = pool.task.name
        kept = self._epochs.get(name)
        if kept is None or kept[0] != epoch:
            kept = self._epochs[name] = (epoch, streams.permutation(len(pool.train), self.seed, "epoch", name, epoch))
        return kept[1]

    def _render(
        self,
        pool: TaskPool,
        item: TaskItem,
        quadrant: QuadrantName,
        inversion: float,
        no_options: float,
        *stream: object,
    ) -> RenderedPrompt:
        name = (self.seed, pool.task.name, quadrant, *stream)
        kind: Kind = "cot" if quadrant.endswith("cot") else "direct"
        ways = pool.task.ways(kind)
        inverted = pool.task.ways(kind, inverted=True)
        if inverted and streams.draw_uniform(*name, "inversion") < inversion:
            ways = inverted
        way = ways[streams.draw_below(len(ways), *name, "phrasing")]
        wanted = 0
        exemplars: list[TaskItem] = []
        if quadrant.startswith("few"):
            fewest, most = self.prompting.shots
            wanted = fewest + streams.draw_below(most - fewest + 1, *name, "shots")
            exemplars = _exemplars(pool, item, way, wanted, *name)
        hidden = pool.task.options_optional and streams.draw_uniform(*name, "options") < no_options
        style = None if hidden else _style(pool.task, [item, *exemplars], *name)
        frame: ExemplarFrame = FRAMES[streams.draw_below(len(FRAMES), *name, "frame")]
        return render(pool.task, item, way, style, frame, exemplars, wanted, self.prompting.budget)


def _pool(task: MixtureTask, trained: bool, fraction: float, seed: int) -> TaskPool:
    """Splits a task's rows by what they ask."""
    questions = [Example((Message("user", task.key(item)), Message("assistant", ""))) for item in task.items]
    try:
        _, out = split_examples(questions, fraction if trained else max(fraction, _HELD_OUT_TASK), seed)
    except DataError as error:
        raise DataError(f"task {task.name}: {error}") from error
    # a task of one question that is only tested has no other to spare
    held = {question.id for question in (out if out or trained else questions)}
    sides: tuple[array[int], array[int]] = (array("I"), array("I"))
    for index in streams.permutation(len(task.items), seed, "rows", task.name):
        sides[questions[index].id in held].append(index)
    return TaskPool(task, sides[0], sides[1], trained)


def _exemplars(pool: TaskPool, item: TaskItem, way: Phrasing, wanted: int, *name: object) -> list[TaskItem]:
    """Up to ``wanted`` training rows that ask something else than ``item`` does, drawn without repetition."""
    count = len(pool.train)
    if not count:
        return []
    place, stride = draws.walk(count, *name, "exemplars")
    found: list[TaskItem] = []
    for _ in range(min(count, 64 + 8 * wanted)):
        other = pool.task.items[pool.train[place]]
        if not _asks_the_same(pool.task, way, item, other):
            found.append(other)
            if len(found) == wanted:
                break
        place = (place + stride) % count
    return found


def _asks_the_same(task: MixtureTask, way: Phrasing, a: TaskItem, b: TaskItem) -> bool:
    if way.inverted and all(a.fields.get(field) == b.fields.get(field) for field in way.input.fields):
        return True
    return task.key(a) == task.key(b)


def _style(task: MixtureTask, items: Sequence[TaskItem], *name: object) -> OptionStyle:
    styles = styles_for(max(len(item.options) for item in items), task.letters)
    return styles[streams.draw_below(len(styles), *name, "style")]


def load_mixture(
    section: MixtureSection,
    seed: int,
    eval_fraction: float,
    max_length: int,
    count_tokens: Callable[[str], int],
) -> Mixture:
    """The mixture that a recipe asks for.

    Args:
        eval_fraction: part of each task's distinct questions that is held out. [share]
        max_length: prompt and response together. [tokens]
        count_tokens: tokens of a text.

    Raises RecipeError or DataError, one line with file and key for each thing that is wrong.
    """
    found = load_tasks(section.tasks, Path(section.folder).expanduser() if section.folder else None)
    preset = load_preset(section.preset) if section.preset else None
    own, base, default = section, preset or section, Prompting()
    room = max_length * 3 // 4
    published = preset.few_shot_tokens if preset else None
    tokens = own.few_shot_tokens or min(published or room, room)
    return Mixture(
        found.tasks,
        seed,
        weighing=base,
        prompting=Prompting(
            inversion=_first(own.inversion, base.inversion, default.inversion),
            no_options=_first(own.no_options, base.no_options, default.no_options),
            shots=own.shots or base.shots or default.shots,
            budget=PromptBudget(tokens, count_tokens),
        ),
        overall=section if preset else None,
        held_out=section.held_out,
        eval_fraction=eval_fraction,
        unusable=found.unusable,
    )


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


@dataclass(frozen=True)
class MaterialisedMixture:
    """The first elements of a mixture as examples, and what they are made of."""

    examples: list[Example]
    report: dict[str, Any]


def materialise(mixture: Mixture, count: int, progress: Progress = _SILENT) -> MaterialisedMixture:
    """The first ``count`` elements. More elements later begin with the same ones.

    Raises DataError when few-shot prompts are wanted and no exemplar fits in any of them.
    """
    elements: list[RenderedPrompt] = []
    with progress.task("mixing", count, "examples") as task:
        for position in range(count):
            elements.append(mixture.element(position))
            if (position + 1) % _STRIDE == 0:
                task.advance(_STRIDE)
        task.advance(count % _STRIDE)
    few = [element for element in elements if element.wanted_shots]
    budget = mixture.prompting.budget
    if budget and any(element.found_shots for element in few) and not any(element.shots for element in few):
        raise DataError(
            f"mixture: in none of {len(few)} few-shot prompts does an exemplar fit into {budget.tokens} tokens beside "
            "the question; raise few_shot_tokens (and data.max_length), or set the few-shot quadrants to 0"
        )
    return MaterialisedMixture([element.example() for element in elements], report(mixture, elements))


def report(mixture: Mixture, elements: Sequence[RenderedPrompt]) -> dict[str, Any]:
    """Wanted and realised shares, and what became of exemplars, rows and files; plain data.

    ``planned`` quadrants are what the tasks' rationales allow of the ``wanted`` ones.
    ``exemplars``: asked for = used + over_budget + none_other, where no other row asked something else.
    """
    count = max(1, len(elements))
    by_task = Counter(element.task for element in elements)
    by_quadrant = Counter(element.quadrant for element in elements)
    planned = {key: sum(share.quadrants.get(key, 0.0) for share in mixture.plan.tasks) for key in QUADRANTS}
    wanted = mixture.plan.quadrants or planned
    few = [element for element in elements if element.wanted_shots]
    asked, found, used = (
        sum(getattr(element, name) for element in few) for name in ("wanted_shots", "found_shots", "shots")
    )
    trained = {pool.task.name: pool for pool in mixture.training}
    return {
        "examples": len(elements),
        "distinct": len({(element.prompt, element.target) for element in elements}),
        "tasks": {
            share.task: {
                "wanted": share.share,
                "realised": by_task[share.task] / count,
                "examples": by_task[share.task],
                "rows": len(trained[share.task].train),
                "heldout": len(trained[share.task].heldout),
                "passes": by_task[share.task] / len(trained[share.task].train),
                "read": trained[share.task].task.read,
                "dropped": dict(trained[share.task].task.dropped),
            }
            for share in mixture.plan.tasks
        },
        "quadrants": {
            key: {"wanted": wanted[key], "planned": planned[key], "realised": by_quadrant[key] / count}
            for key in QUADRANTS
        },
        "exemplars": {
            "asked_for": asked,
            "used": used,
            "over_budget": found - used,
            "none_other": asked - found,
            "prompts_left_without": sum(not element.shots for element in few),
        },
        "inverted": sum(element.inverted for element in elements) / count,
        "labelled_answers": sum(element.labelled for element in elements) / count,
        "hidden_options": sum(element.optionless for element in elements) / count,
        "held_out_tasks": [pool.task.name for pool in mixture.pools if not pool.trained],
        "absent_groups": list(mixture.plan.absent),
        "files_without_rows": dict(mixture.unusable),
    }


def show(task: MixtureTask, count: int, seed: int, prompting: Prompting | None = None) -> Iterator[dict[str, Any]]:
    """Examples of a task for a reader: ``count`` elements of a mixture of it alone."""
    mixture = Mixture([task], seed, prompting=prompting)
    for position in range(count):
        element = mixture.element(position)
        yield {
            "prompt": element.prompt,
            "target": element.target,
            "quadrant": element.quadrant,
            "inverted": element.inverted,
            "shots": element.shots,
            "phrasing": element.phrasing,
            "row": element.row,
            "source": element.source,
        }
