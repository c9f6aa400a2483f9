"""Tasks: a YAML file and the rows it names, with each row's fields, options and answer read and checked."""

from __future__ import annotations

import bisect
import hashlib
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import orjson

from spintune.data.bad_rows import BadRows, OnBadRow
from spintune.data.file_rows import FileRow
from spintune.errors import DataError, RecipeError, RowError
from spintune.mixtures.declarations import BUILTIN, Check, PhrasingsFile, TaskFile
from spintune.mixtures.fields import lacks_options, missing_fields, read_choice, read_field
from spintune.mixtures.phrasings import ANSWER, OPTIONS, RATIONALE, Kind, Phrasing, phrasing, unknown_field
from spintune.mixtures.task_files import BUILTIN_PREFIX, TaskSource, builtin_file, sources_of
from spintune.progress import Silent
from spintune.recipe.checking import read_section
from spintune.recipe.mixture import MixtureSection
from spintune.record_files import Spool

_RECENT = 4096  # rows in memory, of all tasks


@dataclass(frozen=True)
class TaskItem:
    """A row of a task, which stays on disk until it is asked for.

    Attributes:
        number: line or row of its file, from 1.
        fields: texts by the names that phrasings use; with options, "answer" is the text of the right one.
        options: the answers to choose from, if any.
        choice: which option is right; None without options.
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
        collection: group of a preset that it belongs to.
        cluster: name of the tasks that are held out together.
        family: kind of task, such as classification.
        check: how answers are compared, see :mod:`spintune.text.answers`.
        read: rows of the file; ``len(items) + dropped.total() == read``.
        dropped: rows left out, by reason: empty_answer, empty_FIELD, and those that cannot be read, by theirs. A value
            that is null or missing is empty.
        letters: whether options are listed as A, B, C, ... only, because the rationales name those.
        options_optional: whether the question can be answered without seeing the options.
        where: its YAML file.
    """

    name: str
    collection: str
    cluster: str
    family: str
    check: Check
    phrasings: tuple[Phrasing, ...]
    items: Sequence[TaskItem]
    read: int
    dropped: Mapping[str, int]
    letters: bool = False
    options_optional: bool = False
    where: str = ""

    def ways(self, kind: Kind, inverted: bool = False) -> list[Phrasing]:
        """Its phrasings of a kind, straight or inverted."""
        return [phrasing for phrasing in self.phrasings if (phrasing.kind, phrasing.inverted) == (kind, inverted)]

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of straight phrasings it has: direct, cot, or both."""
        kinds: tuple[Kind, ...] = ("direct", "cot")
        return tuple(kind for kind in kinds if self.ways(kind))

    def key(self, item: TaskItem) -> str:
        """What a row asks, whatever the phrasing: rows with equal keys ask the same."""
        return orjson.dumps([[item.fields[name] for name in self._asked], list(item.options)]).decode()

    @cached_property
    def _asked(self) -> list[str]:
        """The fields in the inputs of straight phrasings."""
        names = {name for way in self.phrasings if not way.inverted for name in way.input.fields}
        return sorted(names - {OPTIONS})

    @cached_property
    def numbers(self) -> array[int]:
        """The number of each row, in ascending order."""
        return array("I", (item.number for item in self.items))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that decides its prompts and targets."""
        sha = hashlib.sha256(repr((self.name, self.check, self.letters, self.options_optional)).encode())
        for way in self.phrasings:
            sha.update(repr((way.input, way.cue, way.target, way.kind, way.inverted)).encode())
        for item in self.items:
            sha.update(orjson.dumps([item.number, dict(item.fields), list(item.options), item.choice]))
        return sha.hexdigest()


def item_numbered(task: MixtureTask, number: int) -> TaskItem | None:
    """The row of a task that has this number in its file; None for a row that was left out."""
    place = bisect.bisect_left(task.numbers, number)
    return task.items[place] if place < len(task.numbers) and task.numbers[place] == number else None


@dataclass(frozen=True)
class TaskSet:
    """Tasks that were read, and the files of folders of tasks that have no usable row, each with the reason."""

    tasks: tuple[MixtureTask, ...]
    unusable: Mapping[str, str]


def load_section(section: MixtureSection, on_bad_row: OnBadRow = "stop") -> TaskSet:
    """The tasks that a recipe's mixture names, see :func:`load_tasks`."""
    return load_tasks(section.tasks, Path(section.folder).expanduser() if section.folder else None, on_bad_row)


def load_tasks(names: Sequence[str], folder: Path | None = None, on_bad_row: OnBadRow = "stop") -> TaskSet:
    """Reads tasks: ``builtin:NAME`` or the path of a YAML file each.

    A task's file is searched beside its YAML file (not for built-in ones), then in ``folder`` and its direct
    subfolders.

    Raises RecipeError for a wrong declaration and for a name that occurs twice; DataError, with the row, for data that
    lacks a field, for rows that cannot be read, which ``on_bad_row`` "drop" drops and counts instead, and for a task
    without a usable row. In a folder of tasks a file without a usable row is left out and reported.
    """
    tasks: dict[str, MixtureTask] = {}
    unusable: dict[str, str] = {}
    places: dict[str, slice] = {}
    items = Spool(TaskItem)  # one for all: a collection has thousands of tasks
    for name in names:
        path = builtin_file(BUILTIN, name, "built-in task") if _is_builtin(name) else Path(name).expanduser()
        declared = read_section(path, TaskFile, "task")
        phrasings = _phrasings(declared, path)
        for source in sources_of(declared, path, folder):
            if source.name in tasks or source.name in unusable:
                other = tasks[source.name].where if source.name in tasks else "a file without usable rows"
                raise RecipeError(f"{path}: name: there is already a task {source.name} ({other}); rename one")
            begin = len(items)
            task = _read_task(declared, phrasings, source, str(path), items, on_bad_row)
            if len(items) > begin:
                tasks[task.name] = task
                places[task.name] = slice(begin, len(items))
            elif declared.files is None:
                raise DataError(f"{source.path}: task {task.name} has no usable rows ({_row_counts(task)})")
            else:
                unusable[task.name] = _row_counts(task)
    if not tasks:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in list(unusable.items())[:3]) or "none was named"
        raise DataError(f"no tasks with usable rows ({reasons}); give data with answers")
    rows = items.records(_RECENT)
    return TaskSet(tuple(replace(task, items=rows[places[name]]) for name, task in tasks.items()), unusable)


def _is_builtin(name: str) -> bool:
    return name.startswith(BUILTIN_PREFIX)


def _row_counts(task: MixtureTask) -> str:
    reasons = "".join(f", {count} {reason}" for reason, count in task.dropped.items())
    return f"{task.read} read{reasons}"


def _read_task(
    declared: TaskFile,
    phrasings: tuple[Phrasing, ...],
    source: TaskSource,
    where: str,
    spool: Spool[TaskItem],
    on_bad_row: OnBadRow,
) -> MixtureTask:
    """A task without its rows, which ``spool`` collects."""
    needed = sorted({ANSWER}.union(*(way.fields for way in phrasings)) - {OPTIONS})
    dropped: Counter[str] = Counter()
    bad = BadRows(source.path)
    read = 0
    first: FileRow | None = None
    unseen = {name: spec.from_ for name, spec in declared.fields.items()}
    if declared.options and declared.options.from_:
        unseen[OPTIONS] = declared.options.from_
    for row in source.rows():
        read += 1
        if isinstance(row, RowError):
            bad.add(row)
            continue
        first, unseen = first or row, missing_fields(unseen, row)
        try:
            item = _read_item(declared, needed, row)
        except DataError as error:
            bad.add(error)
            continue
        if isinstance(item, TaskItem):
            spool.add(item)
        else:
            dropped[item] += 1
    if first is not None:
        for name, key in unseen.items():
            first.lookup(key, f"field {name}")  # raises: no row has it
    bad.settle(read, on_bad_row, Silent())
    return MixtureTask(
        name=source.name,
        collection=declared.collection,
        cluster=source.cluster,
        family=source.family,
        check=declared.check or ("option" if declared.options else "text"),
        phrasings=phrasings,
        items=(),
        read=read,
        dropped=dict(dropped + bad.dropped),
        letters=declared.options is not None and declared.options.labels == "letters",
        options_optional=declared.options is not None and declared.options.optional,
        where=where,
    )


def _read_item(declared: TaskFile, needed: Sequence[str], row: FileRow) -> TaskItem | str:
    """A row's fields, options and answer, or the reason to drop it. Raises DataError for one that cannot be read."""
    fields = {field: read_field(spec, field, row) for field, spec in declared.fields.items()}
    empty = next((field for field in needed if not fields[field]), None)
    if empty is None and lacks_options(declared.options, row):
        empty = OPTIONS
    if empty is not None:
        return f"empty_{empty}"
    options, choice = read_choice(declared.options, declared.fields[ANSWER], fields[ANSWER], row)
    if choice is not None:
        fields[ANSWER] = options[choice]
    return TaskItem(row.number, fields, options, choice)


def _phrasings(declared: TaskFile, path: Path) -> tuple[Phrasing, ...]:
    """A task's own phrasings, then the shared ones; of those, phrasings with a rationale need a task that has one."""
    known = {*declared.fields, *([OPTIONS] if declared.options else [])}
    found: list[Phrasing] = []
    numbers: Counter[tuple[Kind, bool]] = Counter()
    for origin, section in _phrasing_files(declared, path):
        shared = origin != path
        for key, specs in (("direct", section.direct), ("cot", section.cot), ("inverted", section.inverted)):
            for place, spec in enumerate(specs):
                inverted = key == "inverted"
                rational = RATIONALE in spec.input + spec.target if inverted else key == "cot"
                if shared and rational and RATIONALE not in known:
                    continue
                kind: Kind = "cot" if rational else "direct"
                way = phrasing(spec, kind, inverted, numbers[kind, inverted], f"{origin}: {key}.{place}")
                numbers[kind, inverted] += 1
                if problem := unknown_field(way, known):
                    raise RecipeError(problem + (f" (task {path})" if shared else ""))
                found.append(way)
    if all(way.inverted for way in found):
        raise RecipeError(f"{path}: no phrasing asks for the answer; write some under direct or cot")
    return tuple(found)


def _phrasing_files(declared: TaskFile, path: Path) -> Iterator[tuple[Path, TaskFile | PhrasingsFile]]:
    yield path, declared
    for name in declared.phrasings:
        if _is_builtin(name):
            shared = builtin_file(BUILTIN / "phrasings", name, "built-in phrasings")
        else:
            shared = path.parent / Path(name).expanduser()
        yield shared, read_section(shared, PhrasingsFile, "phrasings")
