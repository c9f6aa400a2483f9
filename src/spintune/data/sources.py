"""Reads examples from files, built-in data and the Hugging Face hub, and accounts for every row.

::

    path --table--> rows --format--> conversations --empty? duplicate? over limit?--> examples --weight--> collection

A damaged row stops the reading with its line and what to do. A valid row that cannot be used is dropped and counted:
``kept + dropped = read + repeated``, for each source and for all of them.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from spintune import streams
from spintune.data.formats import AUTO, BUILTIN_FORMATS, FORMATS, Format, all_formats, drop_reason, recognize
from spintune.data.tables import Numbered, open_table
from spintune.errors import DataError
from spintune.progress import Progress, Silent
from spintune.record_files import Joined, Selection, Spool
from spintune.records import Example

_HEAD = 10  # rows whose keys decide the format
_STRIDE = 1000  # rows between two reports of progress
_SILENT = Silent()
_DUPLICATE, _OVER_LIMIT, _WEIGHT = "duplicate", "over_limit", "weight"


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    Attributes:
        path: ``builtin:NAME``, a .json, .jsonl or .parquet file, or a hub id ``owner/name[@revision]``.
        format: a name of :mod:`spintune.data.formats`; "auto" recognizes it by the keys of the first rows.
        weight: how many times its kept rows are used, see :func:`read_sources`.
        limit: maximum number of distinct examples; the first ones are used.
        split: split of a hub data set.
    """

    path: str
    format: str = AUTO
    weight: float = 1.0
    limit: int | None = None
    split: str = "train"


@dataclass(frozen=True)
class SourceResult:
    """The examples of one source, which stay on disk: ``len(examples) + dropped.total() == read + repeated``.

    Attributes:
        read: conversations found; a row of seed tasks holds one per instance.
        dropped: conversations left out, by reason: empty_prompt, empty_answer, duplicate, over_limit, weight.
        repeated: conversations used again because the weight is above 1.
    """

    source: Source
    format: str
    examples: Sequence[Example]
    read: int
    dropped: Counter[str]
    repeated: int = 0


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


def read_sources(sources: Iterable[Source], seed: int, progress: Progress = _SILENT) -> Collection:
    """Reads all sources, drops duplicates within and between them, and applies the weights.

    A source of weight w contributes ``round(w * n)`` of its n distinct examples. Below 1 that is a sample, and the rest
    counts as dropped for ``weight``; above 1 every example comes ``floor(w)`` times, and a sample once more. The sample
    takes the examples with the smallest hash of (seed, example id), and keeps their order.

    Raises DataError like :func:`read_source`, and when nothing is left.
    """
    earlier: set[int] = set()
    results = [_weigh(read_source(source, progress, earlier), seed) for source in sources]
    collection = Collection(tuple(results))
    if not collection.examples:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(collection.dropped.items()))
        names = ", ".join(result.source.path for result in results) or "no data sources"
        raise DataError(f"{names}: no examples are left ({reasons or 'nothing was read'}); give data with answers")
    return collection


def read_source(source: Source, progress: Progress = _SILENT, earlier: set[int] | None = None) -> SourceResult:
    """Reads one source, without its weight: the distinct usable examples, in file order.

    ``limit`` keeps the first N of them. Later rows are still read and checked, and count as ``over_limit``. Examples
    whose id, as a number, is in ``earlier`` are dropped as duplicates; the ids of the others are added to it.

    Raises RecipeError for an unknown format name; DataError for a source that does not exist, cannot be read,
    is empty or of an unknown format, and for the first damaged row: invalid JSON or UTF-8, a missing key, a wrong type,
    an unknown role, no answer.
    """
    _check(source)
    chosen = None if source.format == AUTO else FORMATS[source.format]
    table = open_table(source.path, source.split)
    chosen, rows = (chosen, table.rows) if chosen else _recognized(source.path, table.rows)
    earlier = set() if earlier is None else earlier
    examples = Spool(Example)
    dropped: Counter[str] = Counter()
    seen: set[int] = set()  # as numbers: half the memory of texts
    done = 0
    with progress.task(f"reading {source.path}", table.total, "rows") as task:
        for done, (number, value) in enumerate(rows, 1):
            for conversation in chosen.conversations(table.row(number, value)):
                example = Example(conversation, f"{source.path}:{number}")
                identity = int(example.id, 16)
                if reason := _drop_reason(example, identity in seen, len(seen), source.limit):
                    dropped[reason] += 1
                    continue
                seen.add(identity)
                if identity in earlier:
                    dropped[_DUPLICATE] += 1
                else:
                    examples.add(example)
            if done % _STRIDE == 0:
                task.advance(_STRIDE)
        task.advance(done % _STRIDE)
    earlier |= seen
    kept = examples.records()
    return SourceResult(source, chosen.name, kept, len(kept) + dropped.total(), dropped)


def _drop_reason(example: Example, seen: bool, kept: int, limit: int | None) -> str | None:
    if reason := drop_reason(example.messages):
        return reason
    if seen:
        return _DUPLICATE
    return _OVER_LIMIT if limit is not None and kept >= limit else None


def _check(source: Source) -> None:
    if not (math.isfinite(source.weight) and source.weight > 0):
        raise DataError(f"{source.path}: a weight of {source.weight} cannot be used; give a number above 0")
    if source.limit is not None and source.limit < 1:
        raise DataError(f"{source.path}: a limit of {source.limit} cannot be used; give 1 or more, or leave it out")


def _recognized(path: str, rows: Iterator[Numbered]) -> tuple[Format, Iterator[Numbered]]:
    """The format of the first rows, and all rows again."""
    head = list(itertools.islice(rows, _HEAD))
    objects = [value for _, value in head if isinstance(value, dict)]
    # if none is an object, the error about the first row explains it better; any format leads there
    found = recognize(objects) if objects else BUILTIN_FORMATS[0]
    if found is None:
        keys = ", ".join(dict.fromkeys(str(key) for value in objects for key in value)) or "none"
        known = "; ".join(map(str, all_formats()))
        raise DataError(f"{path}: the rows fit no known format; keys found: {keys}; rename them to one of: {known}")
    return found, itertools.chain(head, rows)


def _weigh(result: SourceResult, seed: int) -> SourceResult:
    """Uses the examples ``weight`` times, see :func:`read_sources`."""
    distinct = len(result.examples)
    target = round(result.source.weight * distinct)
    copies, rest = divmod(target, distinct) if distinct else (0, 0)
    positions = itertools.chain(*[range(distinct)] * copies, _sample(result.examples, rest, seed))
    left_out = Counter({_WEIGHT: distinct - target} if target < distinct else {})
    return replace(
        result,
        examples=Selection(result.examples, positions),
        dropped=result.dropped + left_out,
        repeated=max(0, target - distinct),
    )


def _sample(examples: Sequence[Example], size: int, seed: int) -> list[int]:
    if not size:
        return []
    hashes = [streams.digest(f"weight:{seed}:{example.id}") for example in examples]
    return sorted(sorted(range(len(examples)), key=hashes.__getitem__)[:size])
