"""Tasks: a YAML file and the rows it names, with each row's fields, options and answer worked out and checked."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import orjson

from spintune.data.formats import Row, kind_of
from spintune.data.sources import Source, rows_of
from spintune.errors import DataError, RecipeError
from spintune.mixtures.declarations import (
    BUILTIN,
    Check,
    FieldSection,
    OptionsSection,
    PhrasingsFile,
    TaskFile,
    read_declaration,
)
from spintune.mixtures.phrasings import ANSWER, OPTIONS, RATIONALE, Kind, Phrasing, phrasing, unknown_field

_PREFIX = "builtin:"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Item:
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
class Task:
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
    items: tuple[Item, ...]
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

    def key(self, item: Item) -> str:
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

    tasks: tuple[Task, ...]
    unusable: Mapping[str, str]


def builtin_tasks() -> list[str]:
    """Names of the tasks that ship with the package, as ``builtin:NAME``."""
    return [_PREFIX + path.stem for path in sorted(BUILTIN.glob("*.yaml"))]


def load_tasks(names: Sequence[str], folder: Path | None = None) -> TaskSet:
    """Reads tasks: ``builtin:NAME`` or the path of a YAML file each.

    A task's file is looked for beside its YAML file (not for built-in ones), then in ``folder`` and its subfolders of
    first order.

    Raises RecipeError for a declaration that is wrong and for names that stand twice; DataError, with the row, for data
    that lacks a field, and for a task without a usable row. In a folder of tasks a file without a usable row is left
    out and reported.
    """
    tasks: dict[str, Task] = {}
    unusable: dict[str, str] = {}
    for name in names:
        path = _declaration_path(name)
        declared = read_declaration(path, TaskFile, "task")
        ways = _phrasings(declared, path)
        for task_name, source, cluster, family in _sources(declared, path, folder):
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


def _tally(task: Task) -> str:
    reasons = "".join(f", {count} {reason}" for reason, count in task.dropped.items())
    return f"{task.read} read{reasons}"


# --- declarations ---


def _declaration_path(name: str) -> Path:
    return _builtin(BUILTIN, name, "task") if name.startswith(_PREFIX) else Path(name).expanduser()


def _builtin(folder: Path, name: str, what: str) -> Path:
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    stem = name.removeprefix(_PREFIX)
    if stem in known:
        return known[stem]
    close = difflib.get_close_matches(stem, known, 1)
    hint = f"did you mean {_PREFIX}{close[0]}?" if close else "use one of: " + ", ".join(_PREFIX + n for n in known)
    raise RecipeError(f"there is no built-in {what} {name}; {hint}")


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
        if name.startswith(_PREFIX):
            shared = _builtin(BUILTIN / "phrasings", name, "phrasings")
        else:
            shared = path.parent / Path(name).expanduser()
        yield shared, read_declaration(shared, PhrasingsFile, "phrasings"), True


# --- where the rows are ---


def _sources(declared: TaskFile, path: Path, folder: Path | None) -> Iterator[tuple[str, Source, str, str]]:
    """Name, source, cluster and family of each task that a file declares."""
    cluster = declared.cluster or declared.name
    family = declared.family or cluster
    own = [] if path.is_relative_to(BUILTIN) else [path.parent]
    if declared.hub is not None:
        yield declared.name, Source(declared.hub, split=declared.split), cluster, family
    elif declared.file is not None:
        yield declared.name, Source(str(_find(declared.file, path, own, folder))), cluster, family
    else:
        pattern = declared.files or ""
        for file in _find_all(pattern, declared.subfolder, path, own, folder):
            matches = [kind for glob, kind in declared.groups.items() if fnmatch.fnmatchcase(file.stem, glob)]
            if declared.groups and not matches:
                raise RecipeError(f"{path}: groups: no pattern fits {file.name}; add one, with cluster and family")
            kind = matches[0] if matches else None
            yield (
                f"{declared.name}/{file.stem}",
                Source(str(file)),
                kind.cluster if kind else cluster,
                kind.family if kind else family,
            )


def _find(name: str, path: Path, own: list[Path], folder: Path | None) -> Path:
    wanted = Path(name).expanduser()
    places = [*own, *([folder] if folder else [])]
    if not places:
        raise RecipeError(f"{path}: file {name} is to be given by you; set folder to where it is")
    for place in places:
        if (place / wanted).is_file():
            return place / wanted
    below = sorted(folder.glob(f"*/{wanted}")) if folder and not wanted.is_absolute() else []
    if len(below) == 1:
        return below[0]
    where = ", ".join(map(str, places))
    if below:
        found = ", ".join(map(str, below))
        raise DataError(f"{path}: file {name} is there more than once ({found}); set folder to the one that is meant")
    raise DataError(f"{path}: file {name} is not in {where}; set folder to where it is")


def _find_all(pattern: str, subfolder: str | None, path: Path, own: list[Path], folder: Path | None) -> list[Path]:
    places = [*own, *([folder] if folder else [])]
    if not places:
        raise RecipeError(f"{path}: files {pattern} are to be given by you; set folder to where they are")
    for place in places:
        inner = place / subfolder if subfolder and (place / subfolder).is_dir() else place
        if found := sorted(file for file in inner.glob(pattern) if file.is_file()):
            return found
    where = ", ".join(map(str, places))
    raise DataError(f"{path}: no files {pattern} in {where}; set folder to where they are")


def _rows(source: Source, columns: list[str] | None) -> Iterator[tuple[int, Row]]:
    if Path(source.path).suffix.lower() != ".tsv":
        yield from _numbered(rows_of(source))
        return
    yield from _tsv(Path(source.path), columns)


def _numbered(rows: Iterator[Row]) -> Iterator[tuple[int, Row]]:
    """Rows with their line, which ``where`` ends in."""
    for count, row in enumerate(rows, 1):
        number = re.search(r"(\d+)\Z", row.where)
        yield int(number[1]) if number else count, row


def _tsv(path: Path, columns: list[str] | None) -> Iterator[tuple[int, Row]]:
    """Tab-separated rows as the Flan collection writes them: no quoting, a literal ``\\n`` for a line break."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    names = columns
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        values = line.split("\t")
        if names is None:
            names = values
            continue
        if len(values) != len(names):
            raise DataError(
                f"{path}:{number}: {len(values)} columns where {len(names)} are named ({', '.join(names)}); "
                "mend the row, or columns in the task"
            )
        cells = {name: value.replace("\\n", "\n") for name, value in zip(names, values, strict=True)}
        yield number, Row(cells, f"{path}:{number}")


# --- rows to items ---


def _task(
    declared: TaskFile,
    ways: tuple[Phrasing, ...],
    path: Path,
    name: str,
    source: Source,
    cluster: str,
    family: str,
) -> Task:
    needed = sorted({ANSWER}.union(*(way.fields for way in ways)) - {OPTIONS})
    items: list[Item] = []
    dropped: Counter[str] = Counter()
    read = 0
    for number, row in _rows_or_none(source, declared):
        read += 1
        fields = {field: _field(spec, field, row) for field, spec in declared.fields.items()}
        empty = next((field for field in needed if not fields[field]), None)
        if empty is not None:
            dropped[f"empty_{empty}"] += 1
            continue
        options, choice = _choice(declared.options, declared.fields[ANSWER], fields[ANSWER], row)
        if choice is not None:
            fields[ANSWER] = options[choice]
        items.append(Item(number, fields, options, choice))
    return Task(
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


def _rows_or_none(source: Source, declared: TaskFile) -> Iterator[tuple[int, Row]]:
    """The rows; none for an empty file, of which the caller says which task it leaves without rows."""
    if not Path(source.path).is_file() or Path(source.path).read_bytes().strip():
        yield from _rows(source, declared.columns)


def _field(spec: FieldSection, name: str, row: Row) -> str:
    text = _text(_value(spec.from_, name, row), spec.from_, row)
    if spec.pattern is not None:
        match = re.search(spec.pattern, text)
        if match is None:
            raise DataError(
                f"{row.where}: fields.{name}: pattern {spec.pattern!r} is not in '{spec.from_}'; mend row or task"
            )
        text = (match[1] if match.re.groups else match[0]) or ""
    if spec.remove is not None:
        text = re.sub(spec.remove, "", text)
    text = text.strip()
    if spec.map is not None:
        if text not in spec.map:
            known = ", ".join(spec.map)
            raise DataError(f"{row.where}: fields.{name}: map has no entry for {text!r:.60}; it has: {known}")
        text = spec.map[text]
    return text


def _value(key: str, name: str, row: Row) -> Any:
    """The value under a dotted key."""
    values: Any = row.values
    if key in values:
        return values[key]
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            close = difflib.get_close_matches(key, row.values, 1)
            hint = f"did you mean {close[0]}?" if close else f"the row has: {', '.join(map(str, row.values))}"
            raise DataError(f"{row.where}: no '{key}' for field {name}; {hint}")
        values = values[part]
    return values


def _text(value: Any, key: str, row: Row) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a text; name a key that holds text")


def _choice(
    spec: OptionsSection | None, answer: FieldSection, text: str, row: Row
) -> tuple[tuple[str, ...], int | None]:
    """The options of a row, and which of them the answer means."""
    if spec is None:
        return (), None
    labels, options = _options(spec, row)
    if not options:
        raise DataError(f"{row.where}: no options found in '{spec.from_}'; mend the row, or options in the task")
    if not all(options):
        raise DataError(f"{row.where}: an option in '{spec.from_}' is empty; mend the row, or options in the task")
    if answer.is_ == "index":
        known = [str(place) for place in range(len(options))]
    elif answer.is_ == "label":
        known = labels
    else:
        known = options
    if text not in known:
        raise DataError(
            f"{row.where}: the answer {text!r:.60} is none of the options' "
            f"{ {'index': 'places', 'label': 'labels', 'text': 'texts'}[answer.is_] }: {', '.join(known):.120}"
        )
    return tuple(options), known.index(text)


def _options(spec: OptionsSection, row: Row) -> tuple[list[str], list[str]]:
    """Labels and texts. Options without labels of their own have A, B, C, ... or, past Z, numbers from 1."""
    if spec.fixed is not None:
        texts = [text.strip() for text in spec.fixed]
        return _position_labels(len(texts)), texts
    key = spec.from_ or ""
    value = _value(key, OPTIONS, row)
    if isinstance(value, list):
        texts = [_text(option, key, row).strip() for option in value]
        return _position_labels(len(texts)), texts
    if spec.each is None:
        raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a list; say in options.each how to cut it up")
    matches = [match.groupdict() for match in re.finditer(spec.each, _text(value, key, row))]
    texts = [(match["text"] or "").strip() for match in matches]
    if matches and "label" in matches[0]:
        return [(match["label"] or "").strip() for match in matches], texts
    return _position_labels(len(texts)), texts


def _position_labels(count: int) -> list[str]:
    return list(_LETTERS[:count]) if count <= len(_LETTERS) else [str(place + 1) for place in range(count)]
