"""The share of each task in a mixture, and how much of it goes to each quadrant.

The rate of a task is min(rows, rate_maximum) ** (1 / temperature): examples-proportional mixing (Raffel et al. 2020,
arXiv 1910.10683, section 3.5.2). Flan 2022's caps are such rate maxima, "min(cap, n_examples) as weights"
(flan/v2/mixtures.py), and cut no rows; FLAN 2021 also cuts (``cap``). Every task is weighed by its own rows.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from spintune.errors import RecipeError
from spintune.mixtures.declarations import BUILTIN, PresetFile
from spintune.mixtures.selectors import matches, select
from spintune.mixtures.task_files import builtin_file
from spintune.mixtures.tasks import MixtureTask
from spintune.recipe.checking import read_section
from spintune.recipe.mixture import GroupSection, QuadrantName, QuadrantsSection, WeighingSection

Quadrants = Mapping[QuadrantName, float]

_ITERATIONS = 2000
_TOLERANCE = 1e-9


@dataclass(frozen=True)
class TaskShare:
    """The target share of a task.

    Attributes:
        task: its name.
        share: its share of the mixture; the shares of all tasks sum to 1.
        cap: maximum number of rows used; None for all.
        quadrants: shares of the mixture by quadrant; they sum to ``share``.
    """

    task: str
    share: float
    cap: int | None
    quadrants: Quadrants


@dataclass(frozen=True)
class MixturePlan:
    """The shares of a mixture.

    Attributes:
        tasks: one per task, in the tasks' order.
        quadrants: target shares of the mixture by quadrant; None without targets.
        absent: groups of a preset that no task belongs to; the other groups divide their share.
    """

    tasks: tuple[TaskShare, ...]
    quadrants: Quadrants | None
    absent: tuple[str, ...]


def load_preset(name: str) -> PresetFile:
    """A published mixture. Raises RecipeError when there is none of that name."""
    return read_section(builtin_file(BUILTIN / "presets", name, "mixture preset"), PresetFile, "preset")


def plan(
    tasks: Sequence[MixtureTask],
    rows: Mapping[str, int],
    supported: Mapping[str, Sequence[QuadrantName]],
    mixture: WeighingSection,
    overall: WeighingSection | None = None,
) -> MixturePlan:
    """Computes the shares.

    Args:
        tasks: the tasks to mix.
        rows: number of training rows of each task, for its rate.
        supported: the quadrants that each task has phrasings and exemplars for.
        mixture: how the tasks are weighted. Only a preset may have groups without tasks.
        overall: cap, rate_maximum, temperature and quadrants that replace those of the mixture and its groups.

    Where settings give target shares of quadrants, these and the shares of their tasks are fitted together: each task
    keeps its share, and the quadrants come as close to their targets as tasks without rationales allow. Without
    targets, a task's quadrants have equal shares.

    Raises RecipeError for unknown or repeated tasks, tasks in no group, weights or shares that sum to 0, and a quadrant
    that no task supports.
    """
    name = f"preset {mixture.name}" if isinstance(mixture, PresetFile) else "mixture"
    resolver = _Resolver(rows, overall, lenient=isinstance(mixture, PresetFile))
    resolver.resolve(mixture, list(tasks), 1.0, name, _Settings())
    leaves = resolver.leaves
    for task in tasks:
        if task.name not in leaves:
            raise RecipeError(
                f"{task.where}: task {task.name} (collection {task.collection}) is in no group of the {name} "
                f"({', '.join(resolver.seen)}); add it to one, or leave it out"
            )
    cells, targets = _quadrants(leaves, supported)
    shares = [
        TaskShare(task.name, leaves[task.name].share, leaves[task.name].settings.cap, cells[task.name])
        for task in tasks
    ]
    return MixturePlan(tuple(shares), targets, tuple(resolver.absent))


def _quadrants(
    leaves: Mapping[str, _Leaf], supported: Mapping[str, Sequence[QuadrantName]]
) -> tuple[dict[str, Quadrants], Quadrants | None]:
    """Each task's shares by quadrant, and the target shares of the mixture, if all its tasks have targets."""
    sections = {name: leaf.settings.quadrants for name, leaf in leaves.items()}
    targets: dict[QuadrantName, float] = {}
    cells: dict[str, Quadrants] = {}
    for section in dict.fromkeys(sections.values()):
        members = {name: leaf.share for name, leaf in leaves.items() if sections[name] == section}
        if section is None:
            for name, share in members.items():
                cells[name] = {key: share / len(supported[name]) for key in supported[name]}
        else:
            parts = _parts(section, members, supported)
            targets = {key: targets.get(key, 0.0) + part for key, part in parts.items()}
            cells |= fit(members, parts, supported)
    return cells, None if None in sections.values() else targets


def _parts(
    quadrants: QuadrantsSection, tasks: Mapping[str, float], supported: Mapping[str, Sequence[QuadrantName]]
) -> dict[QuadrantName, float]:
    """Target shares of the mixture by quadrant. Raises RecipeError for a quadrant without a task."""
    given = quadrants.shares()
    scale = math.fsum(tasks.values()) / math.fsum(given.values())
    for key, share in given.items():
        if share and not any(key in supported[name] for name, part in tasks.items() if part):
            what = "with rationales" if key.endswith("_cot") else "with phrasings under direct"
            more = " and more than one row within its cap" if key.startswith("few") else ""
            raise RecipeError(
                f"quadrants: {key} has a share and no task for it; set it to 0, or add a task {what}{more}"
            )
    return {key: share * scale for key, share in given.items()}


@dataclass(frozen=True)
class _Settings:
    """Settings that a group passes on to the groups and tasks in it."""

    cap: int | None = None
    rate_maximum: int | None = None
    temperature: float = 1.0
    quadrants: QuadrantsSection | None = None

    def within(self, group: WeighingSection) -> _Settings:
        return _Settings(
            group.cap or self.cap,
            group.rate_maximum or self.rate_maximum,
            group.temperature or self.temperature,
            group.quadrants or self.quadrants,
        )

    def rate(self, rows: int) -> float:
        used = min(rows, self.cap or rows, self.rate_maximum or rows)
        return float(used ** (1 / self.temperature))


@dataclass(frozen=True)
class _Leaf:
    share: float
    settings: _Settings
    group: str


class _Resolver:
    """Walks from the groups down to the tasks."""

    def __init__(self, rows: Mapping[str, int], overall: WeighingSection | None, lenient: bool) -> None:
        self.rows, self.overall, self.lenient = rows, overall, lenient
        self.leaves: dict[str, _Leaf] = {}
        self.seen: list[str] = []
        self.absent: list[str] = []

    def resolve(
        self, group: WeighingSection, inside: list[MixtureTask], share: float, name: str, outer: _Settings
    ) -> None:
        """Divides the group's share among its tasks."""
        settings = outer.within(group)
        if group.groups is None:
            self._leaves(group, self._members(group, inside, name), share, name, settings)
            return
        if len({child.share is None for child in group.groups.values()}) > 1:
            missing = next(key for key, child in group.groups.items() if child.share is None)
            raise RecipeError(f"{name}: group {missing} has no share and others beside it have; give it one")
        members = {key: self._members(child, inside, f"{name}: group {key}") for key, child in group.groups.items()}
        self.seen += members
        self.absent += [key for key, found in members.items() if not found]
        weights = {
            key: self._weight(group.groups[key], found, settings.within(group.groups[key]))
            for key, found in members.items()
            if found
        }
        total = math.fsum(weights.values())
        if weights and not total:
            raise RecipeError(f"{name}: the shares of {', '.join(group.groups)} sum to 0; give at least one above 0")
        for key, weight in weights.items():
            self.resolve(group.groups[key], inside, share * weight / total, f"{name}: group {key}", settings)

    def _members(self, group: WeighingSection, inside: list[MixtureTask], name: str) -> list[MixtureTask]:
        if group.groups is not None:
            return [task for child in group.groups.values() for task in self._members(child, inside, name)]
        if not isinstance(group, GroupSection) or group.tasks is None:
            return inside
        if self.lenient:
            return [task for task in inside if any(matches(selector, task) for selector in group.tasks)]
        return select(group.tasks, inside, f"{name}: tasks")

    def _weight(self, group: GroupSection, members: list[MixtureTask], settings: _Settings) -> float:
        if group.share is not None:
            return group.share
        return math.fsum(self._final(settings).rate(self.rows[task.name]) for task in members)

    def _final(self, settings: _Settings) -> _Settings:
        return settings.within(self.overall) if self.overall else settings

    def _leaves(
        self, group: WeighingSection, members: list[MixtureTask], share: float, name: str, settings: _Settings
    ) -> None:
        settings = self._final(settings)
        if group.weights is None:
            weights = {task.name: settings.rate(self.rows[task.name]) for task in members}
        else:
            weights = self._fixed(group.weights, members, name)
        total = math.fsum(weights.values())
        if not total:
            raise RecipeError(f"{name}: the weights of its tasks sum to 0; give at least one above 0")
        for task in members:
            if task.name in self.leaves:
                raise RecipeError(f"{name}: task {task.name} is in {self.leaves[task.name].group} too; name it once")
            self.leaves[task.name] = _Leaf(share * weights[task.name] / total, settings, name)

    def _fixed(self, weights: Mapping[str, float], members: list[MixtureTask], name: str) -> dict[str, float]:
        fixed: dict[str, float] = {}
        for selector, weight in weights.items():
            for task in select([selector], members, f"{name}: weights"):
                if task.name in fixed:
                    raise RecipeError(
                        f"{name}: weights: {selector} matches task {task.name}, which has one already; name it once"
                    )
                fixed[task.name] = weight
        for task in members:
            if task.name not in fixed:
                raise RecipeError(f"{name}: weights: task {task.name} has none; give it one, or 0")
        return fixed


def fit(
    tasks: Mapping[str, float], quadrants: Quadrants, supported: Mapping[str, Sequence[QuadrantName]]
) -> dict[str, Quadrants]:
    """Shares of each (task, quadrant), by iterative proportional fitting (Deming and Stephan 1940).

    Their sums over quadrants are the tasks' shares; their sums over tasks are as close to the quadrants' shares as the
    support allows. A task whose quadrants all have target 0 keeps its share, spread evenly over those it supports.

        >>> fit({"maths": 0.5, "news": 0.5}, {"zero_direct": 0.75, "zero_cot": 0.25},
        ...     {"maths": ["zero_direct", "zero_cot"], "news": ["zero_direct"]})["maths"]["zero_cot"]
        0.25
    """
    cells: dict[str, dict[QuadrantName, float]] = {}
    for name, share in tasks.items():
        usable = [key for key in supported[name] if quadrants.get(key)] or list(supported[name])
        cells[name] = {key: share / len(usable) for key in usable}
    for _ in range(_ITERATIONS):
        sums = {key: math.fsum(row.get(key, 0.0) for row in cells.values()) for key in quadrants}
        scaled = {
            name: {
                key: cell * quadrants[key] / sums[key] if quadrants.get(key) and sums[key] else cell
                for key, cell in row.items()
            }
            for name, row in cells.items()
        }
        change = 0.0
        for name, row in scaled.items():
            total = math.fsum(row.values())
            for key in row:
                row[key] *= tasks[name] / total if total else 0.0
                change = max(change, abs(row[key] - cells[name][key]))
        cells = scaled
        if change < _TOLERANCE:
            break
    return dict(cells)
