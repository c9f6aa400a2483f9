"""Tasks: a YAML file and the rows it names, with each row's fields, options and answer worked out and checked."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import orjson

from spintune.data.sources import Source
from spintune.errors import DataError, RecipeError
from spintune.mixtures.declarations import (
    BUILTIN,
    Check,
    PhrasingsFile,
    TaskFile,
)
from spintune.mixtures.phrasings import ANSWER, OPTIONS, RATIONALE, Kind, Phrasing, phrasing, unknown_field
from spintune.mixtures.task_files import BUILTIN_PREFIX, read_builtin, read_choice, read_field, rows_or_none, sources_of
from spintune.recipe.checking import read_section


@dataclass(frozen=True)
class TaskItem:
    """A row of a task.

    Attributes:
        number: line or row of its file, from 1.
        fields: by name, as phrasings call them; "answer" is the option's text where there are options.
        options: the answers to choose from; empty where there are none.
        choice: which option is right; None where there are none.
    """

    number: int
    fields: Mapping[str, str]
    options: tuple[str, ...] = ()
    choice: int | None = None

    @property
    def answer(self) -> str:
        return self.fields[ANSWER]


@dataclass(frozen=True)
class MixtureTask:
    """Rows and the ways to ask about them.

    Attributes:
        name: unique in a mixture; a file of a folder of tasks is FOLDER_TASK/FILE.
        collection: which group of a preset it belongs to.
        cluster: tasks that are held out together.
        check: how answers are compared, see :mod:`spintune.mixtures.answers`.
        read: rows of the file; ``len(items) + dropped.total() == read``.
        dropped: rows left out, by reason: empty_answer, empty_FIELD.
        letters: options are listed as A, B, C, ... only, because the rationales name those.
        options_optional: the question can be answered without seeing the options.
        where: its YAML file.
    """

    name: str
    collection: str
    cluster: str
    family: str
    check: Check
    phrasings: tuple[Phrasing, ...]
    items: tuple[TaskItem, ...]
    read: int
    dropped: Mapping[str, int]
    letters: bool = False
    options_optional: bool = False
    where: str = ""

    def ways(self, kind: Kind, inverted: bool = False) -> list[Phrasing]:
        """Its phrasings of a kind, straight or turned around."""
        return [phrasing for phrasing in self.phrasings if (phrasing.kind, phrasing.inverted) == (kind, inverted)]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """What it can answer with: direct, cot, or both. Turned-around phrasings alone do not make a task."""
        kinds: tuple[Kind, ...] = ("direct", "cot")
        return tuple(kind for kind in kinds if self.ways(kind))

    def key(self, item: TaskItem) -> str:
        """What is asked, whatever the phrasing: rows with equal keys ask the same."""
        return orjson.dumps([[item.fields[name] for name in self._asked], list(item.options)]).decode()

    @cached_property
    def _asked(self) -> list[str]:
        """Fields that straight phrasings ask with."""
        names = {name for way in self.phrasings if not way.inverted for name in way.input.fields}
        return sorted(names - {OPTIONS})

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides its prompts and targets."""
        sha = hashlib.sha256(repr((self.name, self.check, self.letters, self.options_optional)).encode())
        for way in self.phrasings:
            sha.update(repr((way.input, way.cue, way.target, way.kind, way.inverted)).encode())
        for item in self.items:
            sha.update(orjson.dumps([item.number, dict(item.fields), list(item.options), item.choice]))
        return sha.hexdigest()


@dataclass(frozen=True)
class TaskSet:
    """Tasks that were read, and files of folders of tasks that have no usable row, with the reason."""

    tasks: tuple[MixtureTask, ...]
    unusable: Mapping[str, str]


def builtin_tasks() -> list[str]:
    """Names of the tasks that ship with the package, as ``builtin:NAME``."""
    return [BUILTIN_PREFIX + path.stem for path in sorted(BUILTIN.glob("*.yaml"))]


def load_tasks(names: Sequence[str], folder: Path | None = None) -> TaskSet:
    """Reads tasks: ``builtin:NAME`` or the path of a YAML file each.

    A task's file is looked for beside its YAML file (not for built-in ones), then in ``folder`` and its subfolders of
    first order.

    Raises RecipeError for a declaration that is wrong and for names that stand twice; DataError, with the row, for data
    that lacks a field, and for a task without a usable row. In a folder of tasks a file without a usable row is left
    out and reported.
    """
    tasks: dict[str, MixtureTask] = {}
    unusable: dict[str, str] = {}
    for name in names:
        path = _declaration_path(name)
        declared = read_section(path, TaskFile, "task")
        ways = _phrasings(declared, path)
        for task_name, source, cluster, family in sources_of(declared, path, folder):
            if task_name in tasks or task_name in unusable:
                other = tasks[task_name].where if task_name in tasks else "a file without usable rows"
                raise RecipeError(f"{path}: name: there is already a task {task_name} ({other}); rename one")
            task = _task(declared, ways, path, task_name, source, cluster, family)
            if task.items:
                tasks[task_name] = task
            elif declared.files is None:
                raise DataError(f"{source.path}: task {task_name} has no usable rows ({_tally(task)})")
            else:
                unusable[task_name] = _tally(task)
    if not tasks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(unusable.items())[:3]) or "none was named"
        raise DataError(f"no tasks with usable rows ({reasons}); give data with answers")
    return TaskSet(tuple(tasks.values()), unusable)


def _tally(task: MixtureTask) -> str:
    reasons = "".join(f", {count} {reason}" for reason, count in task.dropped.items())
    return f"{task.read} read{reasons}"


# --- declarations ---


def _declaration_path(name: str) -> Path:
    return read_builtin(BUILTIN, name, "task") if name.startswith(BUILTIN_PREFIX) else Path(name).expanduser()


def _phrasings(declared: TaskFile, path: Path) -> tuple[Phrasing, ...]:
    """Its own phrasings, then the shared ones it can use: those with a rationale only where it has rationales."""
    known = {*declared.fields, *([OPTIONS] if declared.options else [])}
    ways: list[Phrasing] = []
    for origin, section, shared in _phrasing_files(declared, path):
        kinds: tuple[tuple[str, Kind | None], ...] = (("direct", "direct"), ("cot", "cot"), ("inverted", None))
        for key, kind in kinds:
            for number, spec in enumerate(getattr(section, key)):
                inverted = kind is None
                rational = RATIONALE in spec.input + spec.target if inverted else kind == "cot"
                if shared and rational and RATIONALE not in known:
                    continue
                place: Kind = "cot" if rational else "direct"
                count = sum(1 for way in ways if (way.kind, way.inverted) == (place, inverted))
                way = phrasing(
                    spec.input,
                    spec.cue,
                    spec.target,
                    kind=place,
                    inverted=inverted,
                    number=count,
                    where=f"{origin}: {key}.{number}",
                )
                if problem := unknown_field(way, known):
                    raise RecipeError(problem + (f" (task {path})" if shared else ""))
                ways.append(way)
    if not any(not way.inverted for way in ways):
        raise RecipeError(f"{path}: no phrasing asks for the answer; write some under direct or cot")
    return tuple(ways)


def _phrasing_files(declared: TaskFile, path: Path) -> Iterator[tuple[Path, TaskFile | PhrasingsFile, bool]]:
    yield path, declared, False
    for name in declared.phrasings:
        if name.startswith(BUILTIN_PREFIX):
            shared = read_builtin(BUILTIN / "phrasings", name, "phrasings")
        else:
            shared = path.parent / Path(name).expanduser()
        yield shared, read_section(shared, PhrasingsFile, "phrasings"), True


# --- where the rows are ---


# --- rows to items ---


def _task(
    declared: TaskFile,
    ways: tuple[Phrasing, ...],
    path: Path,
    name: str,
    source: Source,
    cluster: str,
    family: str,
) -> MixtureTask:
    needed = sorted({ANSWER}.union(*(way.fields for way in ways)) - {OPTIONS})
    items: list[TaskItem] = []
    dropped: Counter[str] = Counter()
    read = 0
    for number, row in rows_or_none(source, declared):
        read += 1
        fields = {field: read_field(spec, field, row) for field, spec in declared.fields.items()}
        empty = next((field for field in needed if not fields[field]), None)
        if empty is not None:
            dropped[f"empty_{empty}"] += 1
            continue
        options, choice = read_choice(declared.options, declared.fields[ANSWER], fields[ANSWER], row)
        if choice is not None:
            fields[ANSWER] = options[choice]
        items.append(TaskItem(number, fields, options, choice))
    return MixtureTask(
        name=name,
        collection=declared.collection,
        cluster=cluster,
        family=family,
        check=declared.check or ("option" if declared.options else "text"),
        phrasings=ways,
        items=tuple(items),
        read=read,
        dropped=dict(dropped),
        letters=declared.options is not None and declared.options.labels == "letters",
        options_optional=declared.options is not None and declared.options.optional,
        where=str(path),
    )
