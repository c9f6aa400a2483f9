"""Reads examples from files, built-in data and the Hugging Face hub, and accounts for every row.

::

    path --tables--> rows --format--> conversations --empty? duplicate? over limit?--> examples --weight--> collection

Damaged rows stop it with their lines and what to do, or are dropped, as the source says. A valid row that cannot be
used is dropped. All drops are counted:
``kept + dropped = read + repeated``, for each source and for all of them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from spintune import streams
from spintune.data.bad_rows import BadRows, OnBadRow
from spintune.data.columns import Columns, problem_of, roots_of
from spintune.data.file_rows import FileRow
from spintune.data.formats import AUTO, RowConversation, drop_reason
from spintune.data.row_reader import RowReader
from spintune.data.tables import RowTable, empty_source, open_tables
from spintune.errors import DataError
from spintune.number_files import FirstKeys, KeyFile, first_of_each
from spintune.progress import Progress, ProgressTask, Silent
from spintune.record_files import Joined, Masked, Spool
from spintune.records import Example, plain_example

_HEAD = 10  # rows whose keys decide the format
_STRIDE = 1000  # rows between two reports of progress
_SILENT = Silent()
_DUPLICATE, _OVER_LIMIT, _WEIGHT = "duplicate", "over_limit", "weight"


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes:
        path: ``builtin:NAME``, a data file, a folder or pattern of data files, or a hub id ``owner/name[@revision]``.
        format: a name of :mod:`spintune.data.formats`; "auto" recognizes it by the keys of the first rows.
        weight: how many times its kept rows are used, see :func:`read_sources`.
        limit: maximum number of distinct examples; the first ones are used.
        split: split of a hub data set, or of a folder that tells splits apart.
        config: configuration of a hub data set, or sheet of an .xlsx file.
        on_bad_row: what to do about rows that cannot be read: "stop", or "drop" and count them.
        columns: which keys of its rows hold what, see :mod:`spintune.data.columns`.
        stream: whether a hub data set is read where it is, and not downloaded before. With a limit, reading ends soon
            after it: what follows is not counted.
    """

    path: str
    format: str = AUTO
    weight: float = 1.0
    limit: int | None = None
    split: str = "train"
    config: str | None = None
    on_bad_row: OnBadRow = "stop"
    columns: Columns | None = None
    stream: bool = False


@dataclass(frozen=True)
class SourceResult:
    """The examples of one source, which stay on disk: ``len(examples) + dropped.total() == read + repeated``.

    Attributes:
        read: conversations found; a row of seed tasks holds one per instance.
        dropped: conversations left out, by reason: empty_prompt, empty_answer, duplicate, over_limit, weight, and rows
            that cannot be read, by theirs: invalid_json, missing_answer, wrong_type, unknown_role, ...
        repeated: conversations used again because the weight is above 1.
        trimmed: conversations that were cut after their last answer to train on.
        ignored: keys of rows and turns that had no use, with the number of those that had them.
    """

    source: Source
    format: str
    examples: Sequence[Example]
    read: int
    dropped: Counter[str]
    repeated: int = 0
    trimmed: int = 0
    ignored: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Collection:
    """The examples of all sources, in their order, with the counts of :class:`SourceResult`."""

    sources: tuple[SourceResult, ...]

    @cached_property
    def examples(self) -> Sequence[Example]:
        return Joined(result.examples for result in self.sources)

    @property
    def read(self) -> int:
        return sum(result.read for result in self.sources)

    @property
    def dropped(self) -> Counter[str]:
        return sum((result.dropped for result in self.sources), Counter[str]())

    @property
    def repeated(self) -> int:
        return sum(result.repeated for result in self.sources)

    @property
    def trimmed(self) -> int:
        return sum(result.trimmed for result in self.sources)

    @property
    def ignored(self) -> Counter[str]:
        return sum((result.ignored for result in self.sources), Counter[str]())


def read_sources(sources: Iterable[Source], seed: int, progress: Progress = _SILENT) -> Collection:
    """Reads all sources, drops duplicates within and between them, and applies the weights.

    A source of weight w contributes ``round(w * n)`` of its n distinct examples. Below 1 that is a sample, and the rest
    counts as dropped for ``weight``; above 1 every example comes ``floor(w)`` times, and a sample once more. The sample
    takes the examples with the smallest hash of (seed, example id), and keeps their order.

    Raises DataError like :func:`read_source`, and when nothing is left.
    """
    readings = [_read(source, progress) for source in sources]
    results = [_weigh(result, seed) for result in _distinct(readings)]
    collection = Collection(tuple(results))
    if not collection.examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(collection.dropped.items()))
        names = ", ".join(result.source.path for result in results) or "no data sources"
        raise DataError(f"{names}: no examples are left ({reasons or 'nothing was read'}); give data with answers")
    return collection


def read_source(source: Source, progress: Progress = _SILENT) -> SourceResult:
    """Reads one source, without its weight: the distinct usable examples, in file order.

    ``limit`` keeps the first N of them. Later rows are still read and checked, and count as ``over_limit``.

    Raises RecipeError for an unknown format name; DataError for a source that does not exist, cannot be read, is empty
    or of an unknown format, and for rows that cannot be read: invalid JSON or UTF-8, a missing key, a wrong type, an
    unknown role, no answer. It names the first ten of them; ``on_bad_row`` "drop" drops and counts them instead.
    """
    return _distinct([_read(source, progress)])[0]


def _read(source: Source, progress: Progress) -> _Reading:
    _check(source)
    reading = _Reading(source)
    row_keys = roots_of(source.columns or {})
    openers = open_tables(source.path, source.split, source.config, progress.note, row_keys, source.stream)
    if len(openers) == 1:
        table = openers[0]()
        with progress.task(f"reading {source.path}", table.total, "rows") as task:
            reading.read(table, task)
    else:
        with progress.task(f"reading {source.path}", len(openers), "files") as task:
            for open_table in openers:
                reading.read(open_table(), None)
                task.advance()
    reading.finish(progress)
    return reading


def _distinct(readings: Sequence[_Reading]) -> list[SourceResult]:
    """The usable examples of sources, each where it comes first."""
    if not readings:
        return []
    found = first_of_each([reading.ids for reading in readings], [reading.source.limit for reading in readings])
    return [reading.result(first) for reading, first in zip(readings, found, strict=True)]


class _Reading:
    """Reads the tables of one source."""

    def __init__(self, source: Source) -> None:
        self.source, self.ids = source, KeyFile(8)
        self._reader = RowReader(source.path, source.format, source.columns)
        self._examples = Spool(Example)  # usable ones, those that repeat others too
        self._dropped: Counter[str] = Counter()
        self._bad = BadRows(source.path)
        self._rows = self._trimmed = 0
        self._limit = self._look_at = source.limit or 0  # at so many examples it is seen whether the limit is reached
        self._is_full = False
        self._ignored: Counter[str] = Counter()

    def read(self, table: RowTable, task: ProgressTask | None) -> None:
        """Reads one table, and reports every thousand rows."""
        if not table.total:
            return
        self._reader.begin(table.path, [FileRow(values, table.path) for values in table.sample(_HEAD)])
        done = 0
        for done, (number, value) in enumerate(table.rows(self._reader.keys), 1):
            try:
                # the whole row before any of it is kept
                row = table.row(number, value)
                conversations = self._reader.conversations(row)
            except DataError as error:
                self._bad.add(error)
            else:
                for conversation in conversations:
                    self._add(conversation, row.where if table.lines else f"{table.path}:{number}")
            if task and done % _STRIDE == 0:
                task.advance(_STRIDE)
            if table.streamed and self._is_full:
                break
        if task:
            task.advance(done % _STRIDE)
        self._reader.passed_over(table.columns, done)
        self._rows += done

    def _add(self, found: RowConversation, where: str) -> None:
        messages, tools = found.messages, found.tools
        example = Example(messages, where, tools) if tools else plain_example(messages, where)
        reason = found.unused or drop_reason(example.messages)
        if reason:
            self._dropped[reason] += 1
            return
        self.ids.add(bytes.fromhex(example.id))
        if not self._is_full:
            self._examples.add(example)
            if len(self.ids) == self._look_at:
                self._is_full = self.ids.distinct() >= self._limit
                self._look_at *= 2

    def finish(self, progress: Progress) -> None:
        """Ends reading. Raises DataError for a source without rows, or with rows that cannot be read."""
        if not self._rows:
            raise empty_source(self.source.path)
        self._bad.settle(self._rows, self.source.on_bad_row, progress)
        self._trimmed, self._ignored = self._reader.settle(progress)

    def result(self, first: FirstKeys) -> SourceResult:
        """What was read, without examples that repeat others."""
        counts = {_DUPLICATE: first.repeated, _OVER_LIMIT: first.over}
        dropped = self._dropped + self._bad.dropped + Counter(counts)
        usable = self._examples.records()
        kept = usable if first.kept == len(usable) else Masked(usable, first.marks)
        read = len(kept) + dropped.total()
        name = self._reader.format.name
        return SourceResult(self.source, name, kept, read, dropped, trimmed=self._trimmed, ignored=self._ignored)


def _check(source: Source) -> None:
    if not (math.isfinite(source.weight) and source.weight > 0):
        raise DataError(f"{source.path}: a weight of {source.weight} cannot be used; give a number above 0")
    if source.limit is not None and source.limit < 1:
        raise DataError(f"{source.path}: a limit of {source.limit} cannot be used; give 1 or more, or leave it out")
    if problem := problem_of(source.columns or {}):
        raise DataError(f"{source.path}: {problem}")


def _weigh(result: SourceResult, seed: int) -> SourceResult:
    """Uses the examples ``weight`` times, see :func:`read_sources`."""
    distinct = len(result.examples)
    target = round(result.source.weight * distinct)
    copies, rest = divmod(target, distinct) if distinct else (0, 0)
    left_out = Counter({_WEIGHT: distinct - target} if target < distinct else {})
    return replace(
        result,
        examples=Joined([*[result.examples] * copies, _sample(result.examples, rest, seed)]),
        dropped=result.dropped + left_out,
        repeated=max(0, target - distinct),
    )


def _sample(examples: Sequence[Example], size: int, seed: int) -> Sequence[Example]:
    if not size:
        return ()
    hashes = KeyFile(streams.DIGEST_BYTES)
    for example in examples:
        hashes.add(streams.digest(f"weight:{seed}:{example.id}"))
    return Masked(examples, hashes.up_to(hashes.smallest(size)))
