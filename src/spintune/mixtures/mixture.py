"""A mixture of tasks as a sequence of examples: element i is a pure function of the seed and i.

Resuming needs no saved state, and within a task every training row comes once before any comes twice.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from spintune import streams
from spintune.data.bad_rows import OnBadRow
from spintune.data.split import split_examples
from spintune.errors import DataError, RecipeError
from spintune.mixtures.interleaving import Interleaving, walk
from spintune.mixtures.options import OptionStyle, styles_for
from spintune.mixtures.phrasings import Kind, Phrasing
from spintune.mixtures.rendering import (
    FRAMES,
    QUADRANTS,
    ExemplarFrame,
    PromptBudget,
    RenderedPrompt,
    provenance,
    render,
)
from spintune.mixtures.selectors import select
from spintune.mixtures.shares import MixturePlan, load_preset, plan
from spintune.mixtures.tasks import MixtureTask, TaskItem, item_numbered, load_section
from spintune.recipe.mixture import MixtureSection, QuadrantName, WeighingSection
from spintune.record_files import LazySequence
from spintune.records import Example, Message

_HELD_OUT_TASK = 0.5  # share of the questions of a task that is only tested; the others serve as exemplars


@dataclass(frozen=True)
class Prompting:
    """How rows become prompts, see :class:`spintune.recipe.mixture.PromptingSection`.

    Attributes:
        inversion: share of inverted phrasings, where a task has some.
        no_options: share of prompts that hide the options, where a task allows it.
        shots: minimum and maximum number of exemplars in a few-shot prompt.
        budget: maximum length of a few-shot prompt; None for no limit.
    """

    inversion: float = 0.23
    no_options: float = 0.5
    shots: tuple[int, int] = (1, 5)
    budget: PromptBudget | None = None


@dataclass(frozen=True)
class TaskPool:
    """A task whose rows are split, as indices in an order that depends on the seed alone.

    Attributes:
        train: rows to train on, and to take exemplars from.
        heldout: rows that only tests ask.
        trained: False for a task that is only tested.
    """

    task: MixtureTask
    train: array[int]
    heldout: array[int]
    trained: bool

    @cached_property
    def quadrants(self) -> list[QuadrantName]:
        """The quadrants that it has phrasings for and, if few-shot, other rows that ask something else."""
        few = self._has_others if self.trained else len(self.train) > 0
        return [key for key in QUADRANTS if key.partition("_")[2] in self.task.kinds and (few or "zero" in key)]

    @cached_property
    def _has_others(self) -> bool:
        """Whether its training rows ask more than one question."""
        first = None
        for index in self.train:
            question = self.task.key(self.task.items[index])
            if first is not None and question != first:
                return True
            first = question
        return False


class _Questions(LazySequence[Example]):
    """What the rows of a task ask, as examples without answers."""

    def __init__(self, task: MixtureTask) -> None:
        self._task = task

    def __len__(self) -> int:
        return len(self._task.items)

    def __iter__(self) -> Iterator[Example]:
        return map(self._question, self._task.items)

    def _item(self, position: int) -> Example:
        return self._question(self._task.items[position])

    def _question(self, item: TaskItem) -> Example:
        return Example((Message("user", self._task.key(item)), Message("assistant", "")))


class Mixture:
    """Tasks with their shares.

    Args:
        tasks: the tasks, with unique names.
        seed: decides which rows are held out, and every draw.
        weighing: how tasks are weighted: groups, weights, caps, quadrants; a preset of :func:`load_preset` is one.
        overall: caps, temperature and quadrants that replace those of ``weighing`` and its groups.
        held_out: selectors of tasks that only :meth:`heldout` uses.
        eval_fraction: share of each task's distinct questions that is held out.
        unusable: files that gave no task, for the report.

    Raises RecipeError or DataError for shares that the tasks cannot have, see :func:`spintune.mixtures.shares.plan`.
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

        def planned() -> MixturePlan:
            supported = {pool.task.name: pool.quadrants for pool in self.training}
            return plan(trained, rows, supported, weighing or WeighingSection(), overall)

        self.plan = planned()
        capped = [share.cap is not None and share.cap < rows[share.task] for share in self.plan.tasks]
        self.training = [
            replace(pool, train=pool.train[: share.cap])
            for pool, share in zip(self.training, self.plan.tasks, strict=True)
        ]
        if any(capped):  # fewer rows may leave no exemplars
            self.plan = planned()
        # one cell for each quadrant of each task; those of a task are neighbors
        cells = [
            (place, quadrant, part)
            for place, share in enumerate(self.plan.tasks)
            for quadrant, part in share.quadrants.items()
            if part
        ]
        self._cells = [(place, quadrant) for place, quadrant, _ in cells]
        self._order = Interleaving([part for _, _, part in cells], streams.draw(seed, "stream"))
        self._spans: dict[int, tuple[int, int]] = {}
        for cell, (place, _) in enumerate(self._cells):
            self._spans[place] = (self._spans.get(place, (cell, cell))[0], cell)
        self._epochs: dict[str, tuple[int, array[int]]] = {}

    def element(self, position: int) -> RenderedPrompt:
        """Element ``position``, from 0."""
        place, quadrant = self._cells[self._order.part(position)]
        pool = self.training[place]
        visit = self._order.count(position, *self._spans[place])
        epoch, within = divmod(visit, len(pool.train))
        item = pool.task.items[pool.train[self._epoch(pool, epoch)[within]]]
        return self._render(pool, item, quadrant, self.prompting.inversion, self.prompting.no_options, "stream", visit)

    def heldout(self, rows: int | Mapping[str, int]) -> list[RenderedPrompt]:
        """Test prompts: up to ``rows`` held-out rows of each task, in every quadrant that the task has.

        ``rows`` may differ by selector: the first that matches a task counts, and a task that none matches is not
        tested. Prompts have straight phrasings and show the options. Exemplars come from training rows.

        Raises RecipeError for a selector that matches no task.
        """
        tasks = [pool.task for pool in self.pools]
        limits: dict[str, int] = {}
        for selector, count in {"*": rows}.items() if isinstance(rows, int) else rows.items():
            for task in select([selector], tasks, "heldout_rows"):
                limits.setdefault(task.name, count)
        return [
            self._render(pool, pool.task.items[index], quadrant, 0.0, 0.0, "heldout", place)
            for pool in self.pools
            for place, index in enumerate(pool.heldout[: limits.get(pool.task.name, 0)])
            for quadrant in pool.quadrants
        ]

    def question(self, example: Example) -> str | None:
        """What an example of this mixture asks, in whatever words; None for other examples."""
        found = provenance(example.source)
        task = self._tasks.get(found.task) if found else None
        item = item_numbered(task, found.row) if task and found else None
        return f"{task.name}: {task.key(item)}" if task and item else None

    @cached_property
    def _tasks(self) -> dict[str, MixtureTask]:
        return {pool.task.name: pool.task for pool in self.pools}

    def _epoch(self, pool: TaskPool, epoch: int) -> array[int]:
        """The order of a task's training rows in an epoch. The latest is kept for the next element."""
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
        shots = 0
        exemplars: list[TaskItem] = []
        if quadrant.startswith("few"):
            minimum, maximum = self.prompting.shots
            shots = minimum + streams.draw_below(maximum - minimum + 1, *name, "shots")
            exemplars = _exemplars(pool, item, way, shots, *name)
        hidden = pool.task.options_optional and streams.draw_uniform(*name, "options") < no_options
        style = None if hidden else _style(pool.task, [item, *exemplars], *name)
        frame: ExemplarFrame = FRAMES[streams.draw_below(len(FRAMES), *name, "frame")]
        return render(pool.task, item, way, style, frame, exemplars, shots, self.prompting.budget)


def _pool(task: MixtureTask, trained: bool, fraction: float, seed: int) -> TaskPool:
    """Splits a task's rows, so that no held-out question is trained on."""
    import numpy as np

    try:
        _, out = split_examples(_Questions(task), fraction if trained else max(fraction, _HELD_OUT_TASK), seed)
    except DataError as error:
        raise DataError(f"task {task.name}: {error}") from error
    held = np.unpackbits(out.bits, count=len(task.items)).astype(bool)
    if not out and not trained:
        held[:] = True  # a task that is only tested and has one question needs it for the test
    order = np.frombuffer(streams.permutation(len(task.items), seed, "rows", task.name), np.uint32)
    sides = [array("I", order[held[order] == side].tobytes()) for side in (False, True)]
    return TaskPool(task, sides[0], sides[1], trained)


def _exemplars(pool: TaskPool, item: TaskItem, way: Phrasing, shots: int, *name: object) -> list[TaskItem]:
    """Up to ``shots`` training rows that ask something else than ``item`` does, drawn without repetition."""
    count = len(pool.train)
    if not count:
        return []
    place, stride = walk(count, *name, "exemplars")
    found: list[TaskItem] = []
    for _ in range(min(count, 64 + 8 * shots)):
        other = pool.task.items[pool.train[place]]
        if not _asks_the_same(pool.task, way, item, other):
            found.append(other)
            if len(found) == shots:
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
    on_bad_row: OnBadRow = "stop",
) -> Mixture:
    """The mixture of a recipe.

    Args:
        eval_fraction: share of each task's distinct questions that is held out.
        max_length: maximum number of tokens of prompt and response together.
        count_tokens: gives the number of tokens of a text.
        on_bad_row: what to do about rows of tasks that cannot be read.

    Raises RecipeError or DataError, one line with file and key for each thing that is wrong.
    """
    found = load_section(section, on_bad_row)
    preset = load_preset(section.preset) if section.preset else None
    own, base, default = section, preset or section, Prompting()
    limit = max_length * 3 // 4
    published = preset.few_shot_tokens if preset else None
    tokens = own.few_shot_tokens or min(published or limit, limit)
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
