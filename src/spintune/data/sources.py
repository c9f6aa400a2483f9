"""Examples from files, the package and the Hugging Face hub, with every row accounted for.

::

    path --table--> rows --format--> conversations --empty? duplicate? over limit?--> examples --weight--> collection

A row that is broken stops the reading, with its line and what to do. A row that is merely of no use is dropped and
counted: ``kept + dropped = read + repeated``, for each source and for all of them.
"""

from __future__ import annotations

import codecs
import difflib
import hashlib
import importlib.resources
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import orjson

from spintune import streams
from spintune.data.file_rows import FileRow, kind_of
from spintune.data.formats import AUTO, BUILTIN_FORMATS, FORMATS, Format, all_formats, drop_reason, recognize
from spintune.errors import DataError
from spintune.progress import Progress, Silent
from spintune.record_files import Joined, Selection, Spool
from spintune.records import Example
from spintune.storage import digest_file

_BUILTIN = "builtin:"
_SUFFIXES = (".json", ".jsonl", ".parquet")
# A missing `data/train.csv` is a file that does not exist, not a hub data set of that name.
_FILE_SUFFIXES = (*_SUFFIXES, ".arrow", ".csv", ".gz", ".ndjson", ".tsv", ".txt", ".xlsx", ".yaml", ".zip", ".zst")
_HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_HEAD = 10  # rows whose keys are looked at to recognise a format
_STRIDE = 1000  # rows between two reports of progress
_SILENT = Silent()
_DUPLICATE = "duplicate"


@dataclass(frozen=True)
class Source:
    """Where examples come from.

    path:    ``builtin:NAME``, a .json, .jsonl or .parquet file, or a hub id ``owner/name[@revision]``
    format:  a name of :mod:`spintune.data.formats`, or "auto": recognised from the keys of the first rows
    weight:  how many times its kept rows are used (see :func:`read_sources`)
    limit:   how many distinct rows of it are used: the first so many, in file order
    split:   which split of a hub data set
    """

    path: str
    format: str = AUTO
    weight: float = 1.0
    limit: int | None = None
    split: str = "train"


@dataclass(frozen=True)
class SourceResult:
    """What one source gave: ``len(examples) + dropped.total() == read + repeated``. The examples stay on disk.

    read:      conversations found (a row of seed tasks holds one an instance)
    dropped:   conversations left out, by reason: empty_prompt, empty_answer, duplicate, over_limit, weight
    repeated:  conversations used again because the weight is above 1
    """

    source: Source
    format: str
    examples: Sequence[Example]
    read: int
    dropped: Counter[str]
    repeated: int = 0


@dataclass(frozen=True)
class Collection:
    """The examples of all sources, in their order, and what became of each row."""

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
    """Reads all sources, drops what an earlier source already gave, and weighs what is left.

    A source of weight w contributes ``round(w * n)`` of its n distinct examples. Below 1 that is a sample, the rest is
    counted as ``weight``; above 1 every example comes ``floor(w)`` times, and a sample once more. The repetition is
    wanted, so it comes after the removal of duplicates. A sample takes the examples with the smallest hash of
    (seed, example id), and keeps their order.

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

    ``limit`` takes the first N of them. The rows behind are still read and checked, and counted as ``over_limit``.
    Those in ``earlier``, which holds ids as numbers, are dropped as duplicates, and the others are added to it.

    Raises DataError for a source that is not there, cannot be read, is empty or of an unknown format, and for the first
    broken row (invalid JSON or UTF-8, a missing key, a wrong type, an unknown role, a conversation without an answer).
    """
    _check(source)
    chosen = None if source.format == AUTO else FORMATS[source.format]
    table = _open(source)
    chosen, rows = (chosen, table.rows) if chosen else _recognized(source.path, table.rows)
    earlier = set() if earlier is None else earlier
    examples = Spool(Example)
    dropped: Counter[str] = Counter()
    seen: set[int] = set()  # as numbers: half the memory of texts
    done = 0
    with progress.task(f"reading {source.path}", table.total, "rows") as task:
        for done, (number, value) in enumerate(rows, 1):
            for conversation in chosen.conversations(FileRow.of(value, table.where(number))):
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


def rows_of(source: Source) -> Iterator[FileRow]:
    """The rows of a source, whatever their keys. Raises DataError as :func:`read_source` does."""
    _check(source)
    table = _open(source)
    for number, value in table.rows:
        yield FileRow.of(value, table.where(number))


def _drop_reason(example: Example, seen: bool, kept: int, limit: int | None) -> str | None:
    if reason := drop_reason(example.messages):
        return reason
    if seen:
        return _DUPLICATE
    return "over_limit" if limit is not None and kept >= limit else None


def _check(source: Source) -> None:
    if not (math.isfinite(source.weight) and source.weight > 0):
        raise DataError(f"{source.path}: weight {source.weight} is of no use; give a number above 0")
    if source.limit is not None and source.limit < 1:
        raise DataError(f"{source.path}: limit {source.limit} is of no use; give 1 or more, or leave it out")


def _recognized(path: str, rows: Iterator[tuple[int, Any]]) -> tuple[Format, Iterator[tuple[int, Any]]]:
    """The format of the first rows, and all rows again."""
    head = list(itertools.islice(rows, _HEAD))
    objects = [value for _, value in head if isinstance(value, dict)]
    # Without a single object the first row's own error says it better; any format will do to get there.
    found = recognize(objects) if objects else BUILTIN_FORMATS[0]
    if found is None:
        keys = ", ".join(dict.fromkeys(str(key) for value in objects for key in value)) or "none"
        known = "; ".join(str(known) for known in all_formats())
        raise DataError(f"{path}: the rows fit no known format; keys found: {keys}; rename them to one of: {known}")
    return found, itertools.chain(head, rows)


def _weigh(result: SourceResult, seed: int) -> SourceResult:
    """Uses the examples ``weight`` times, see :func:`read_sources`."""
    distinct = len(result.examples)
    wanted = round(result.source.weight * distinct)
    copies, rest = divmod(wanted, distinct) if distinct else (0, 0)
    positions = itertools.chain(*[range(distinct)] * copies, _sample(result.examples, rest, seed))
    return replace(
        result,
        examples=Selection(result.examples, positions),
        dropped=result.dropped + _count(weight=max(0, distinct - wanted)),
        repeated=max(0, wanted - distinct),
    )


def _sample(examples: Sequence[Example], size: int, seed: int) -> list[int]:
    if not size:
        return []
    draws = [streams.digest(f"weight:{seed}:{example.id}") for example in examples]
    return sorted(sorted(range(len(examples)), key=draws.__getitem__)[:size])


def _count(**reasons: int) -> Counter[str]:
    return +Counter(reasons)  # the plus leaves zero counts out


# --- tables: numbered rows of a file, the package or the hub ---


@dataclass(frozen=True)
class _Table:
    path: str
    rows: Iterator[tuple[int, Any]]
    total: int
    lines: bool = False

    def where(self, number: int) -> str:
        return f"{self.path}:{number}" if self.lines else f"{self.path}: row {number}"


def _open(source: Source) -> _Table:
    """The rows of a source, at least one. Raises DataError."""
    path = source.path
    file = Path(path).expanduser()
    hub_id = _HUB_ID.fullmatch(path)
    if path.startswith(_BUILTIN):
        table = _json_table(path, _builtin(path.removeprefix(_BUILTIN)))
    elif file.is_dir():
        raise DataError(f"{path} is a folder; name a {_either(_SUFFIXES)} file in it")
    elif file.exists():
        table = _file_table(path, file)
    elif hub_id and file.suffix.lower() not in _FILE_SUFFIXES:
        table = _hub_table(path, hub_id["name"], hub_id["revision"], source.split)
    else:
        raise DataError(f"data file {path} does not exist; {_suggestion(file)}")
    if not table.total:
        raise DataError(f"{path}: empty; give a file with at least one row")
    return table


def source_digest(source: Source) -> str | None:
    """SHA-256 of what a source holds; None for a hub data set, which only its name and revision identify."""
    file = Path(source.path).expanduser()
    if source.path.startswith(_BUILTIN):
        return hashlib.sha256(_builtin(source.path.removeprefix(_BUILTIN)).read_bytes()).hexdigest()
    return digest_file(file) if file.is_file() else None


def _builtin(name: str) -> Traversable:
    folder = importlib.resources.files("spintune.data") / "builtin"
    files = folder.iterdir() if folder.is_dir() else ()
    known = {file.name.removesuffix(".jsonl"): file for file in files if file.name.endswith(".jsonl")}
    if name not in known:
        names = ", ".join(_BUILTIN + other for other in sorted(known)) or "none"
        raise DataError(f"there is no built-in data {_BUILTIN}{name}; use one of: {names}")
    return known[name]


def _suggestion(file: Path) -> str:
    if not file.parent.is_dir():
        return f"its folder {file.parent} does not exist either; check the path"
    names = sorted(other.name for other in file.parent.iterdir() if other.is_file())
    close = difflib.get_close_matches(file.name, names, 1)
    return f"did you mean {file.with_name(close[0])}?" if close else "check the path"


def _file_table(path: str, file: Path) -> _Table:
    suffix = file.suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"{path}: '{suffix or file.name}' is no known kind of data file; use {_either(_SUFFIXES)}")
    try:
        file.open("rb").close()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    return _parquet_table(path, file) if suffix == ".parquet" else _json_table(path, file)


def _json_table(path: str, file: Path | Traversable) -> _Table:
    """JSON or JSON lines, told apart by what the bytes are, whatever the file is called.

    A first line that is complete JSON with more to follow cannot begin one document, so those are JSON lines. Only
    they are read line by line; a document has to be in memory as a whole.
    """
    count = 0
    first, first_number = b"", 0
    for number, line in _lines(file):
        count += 1
        if count == 1:
            first, first_number = line, number
    if not count:
        return _Table(path, iter(()), 0)
    if count > 1 and _is_json(first):
        return _lines_table(path, file, count)
    data = file.read_bytes().removeprefix(codecs.BOM_UTF8)
    _check_utf8(path, data)
    try:
        document = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        # Broken either way: its name and first byte decide whose line number helps.
        if path.lower().endswith(".jsonl") and not first.lstrip().startswith(b"["):
            return _lines_table(path, file, count)
        raise _invalid_json(f"{path}:{error.lineno}", error) from error
    if isinstance(document, dict) and recognize([document]):
        return _Table(path, iter([(first_number, document)]), 1, lines=True)
    rows = _rows_of(path, document)
    return _Table(path, enumerate(rows, 1), len(rows))


def _lines(file: Path | Traversable) -> Iterator[tuple[int, bytes]]:
    """The lines that hold something, with their numbers."""
    with file.open("rb") as stream:
        for number, line in enumerate(stream, 1):
            text = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if text.strip():
                yield number, text


def _rows_of(path: str, document: Any) -> list[Any]:
    """The list that a JSON document is, or wraps."""
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise DataError(f"{path}: holds {kind_of(document)}, not rows; give a list of objects")
    lists = {key: value for key, value in document.items() if _is_list_of_objects(value)}
    if len(lists) > 1:
        raise DataError(f"{path}: holds several lists ({', '.join(lists)}); put each in a file of its own")
    return next(iter(lists.values()), [document])


def _is_list_of_objects(value: Any) -> bool:
    """One object is enough: what stands between the objects is for the row's own error to say."""
    return isinstance(value, list) and (not value or any(isinstance(item, dict) for item in value))


def _lines_table(path: str, file: Path | Traversable, count: int) -> _Table:
    def rows() -> Iterator[tuple[int, Any]]:
        for number, line in _lines(file):
            try:
                yield number, orjson.loads(line)
            except orjson.JSONDecodeError as error:
                _check_utf8(path, line, number)
                raise _invalid_json(f"{path}:{number}", error) from error

    return _Table(path, rows(), count, lines=True)


def _is_json(text: bytes) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True


def _invalid_json(where: str, error: orjson.JSONDecodeError) -> DataError:
    return DataError(f"{where}: not valid JSON ({error.msg}, column {error.colno}); mend or delete the row")


def _check_utf8(path: str, data: bytes, first_line: int = 1) -> None:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + first_line
        raise DataError(f"{path}:{line}: not UTF-8 (byte 0x{data[error.start]:02x}); save the file as UTF-8") from error


def _parquet_table(path: str, file: Path) -> _Table:
    import pyarrow
    import pyarrow.parquet

    def unreadable(error: Exception) -> DataError:
        return DataError(f"{path}: not a readable parquet file ({_first_line(error)}); write it again")

    try:
        table = pyarrow.parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise unreadable(error) from error

    def rows() -> Iterator[Any]:
        try:
            for batch in table.iter_batches(_STRIDE):
                yield from batch.to_pylist()
        except (pyarrow.ArrowException, OSError) as error:
            raise unreadable(error) from error

    return _Table(path, enumerate(rows(), 1), table.metadata.num_rows)


def _hub_table(path: str, name: str, revision: str | None, split: str) -> _Table:
    import datasets

    try:
        data = datasets.load_dataset(name, revision=revision, split=split)
    except Exception as error:  # a boundary: the hub client raises dozens of unrelated types
        raise DataError(
            f"{path}: no such local file, and the hub did not give split '{split}' of a data set of that name "
            f"({type(error).__name__}: {_first_line(error)}); check the name and the network, or download a file of it"
        ) from error
    return _Table(path, enumerate(data, 1), len(data))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0].rstrip(".:; ")


def _either(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"
