"""Sequences of records that stay on disk, so that memory does not grow with the data.

===========  ================================================================
RecordFile   the records of a JSON lines file; 8 bytes of memory per record
Spool        collects records one by one, and returns them as a RecordFile
Selection    some records of a sequence, in any order; 8 bytes per record
Joined       several sequences, one after another
===========  ================================================================

They compare, slice and index like lists, but cannot be changed. Every access decodes the record anew.
"""

from __future__ import annotations

import bisect
import contextlib
import hashlib
import itertools
import os
import tempfile
import weakref
from abc import abstractmethod
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Generic, TypeVar, overload

from spintune.errors import RunError, StorageError
from spintune.records import parse_record
from spintune.storage import atomic_file, json_line

R = TypeVar("R")
S = TypeVar("S")

_READ = 1 << 20  # bytes


class _Lazy(Sequence[R], Generic[R]):
    """Adds slices, negative positions and equality with any sequence to a length and :meth:`_item`."""

    @abstractmethod
    def _item(self, position: int) -> R:
        """The record at ``position``, which is in range."""

    @overload
    def __getitem__(self, position: int) -> R: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[R]: ...
    def __getitem__(self, position: int | slice) -> R | Sequence[R]:
        if isinstance(position, slice):
            return Selection(self, range(len(self))[position])
        place = position + len(self) if position < 0 else position
        if not 0 <= place < len(self):
            raise IndexError(f"record {position} of {len(self)}")
        return self._item(place)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence):
            return NotImplemented
        return len(self) == len(other) and all(mine == theirs for mine, theirs in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); run the recipe again") from error


class RecordFile(_Lazy[S], Generic[S]):
    """The records of a file that :func:`spintune.records.write_records` or a :class:`Spool` wrote.

    The file must not change while this is in use. Accessing a line that is not such a record raises RunError, which
    names ``path:line``. A file that cannot be opened raises it as well.

    Args:
        sha256: digest of the file's bytes. RunError is raised when they have another one.
    """

    def __init__(self, path: Path, kind: type[S], _file: BinaryIO | None = None, sha256: str | None = None) -> None:
        self.path, self._kind = path, kind
        self._file = _file or _opened(path)
        weakref.finalize(self, self._file.close)
        sha = hashlib.sha256() if sha256 is not None else None
        self._ends = _line_ends(self._file.fileno(), sha)
        if sha is not None and sha.hexdigest() != sha256:
            raise RunError(f"{path}: it has changed since it was written; delete it and run again")

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[S]:
        """Reads in large blocks, faster than by position."""
        number = 0
        for block, ends in self._blocks():
            begin = 0
            for end in ends:
                number += 1
                yield parse_record(block[begin:end], self._kind, self.path, number)
                begin = end

    def copy_to(self, path: Path) -> None:
        """Writes a copy of the file; it is complete or absent."""
        with atomic_file(path) as file:
            for block in _read(self._file.fileno()):
                file.write(block)

    def digest(self) -> str:
        """SHA-256 of the file's bytes."""
        sha = hashlib.sha256()
        for block in _read(self._file.fileno()):
            sha.update(block)
        return sha.hexdigest()

    def _item(self, position: int) -> S:
        begin = self._ends[position - 1] if position else 0
        line = _at(self._file.fileno(), begin, self._ends[position] - begin)
        return parse_record(line, self._kind, self.path, position + 1)

    def _blocks(self) -> Iterator[tuple[bytes, list[int]]]:
        """Blocks of whole lines of about a megabyte, each with the ends of its lines."""
        begin = first = 0
        while first < len(self._ends):
            last = max(first + 1, bisect.bisect_right(self._ends, begin + _READ, first))
            end = self._ends[last - 1]
            yield _at(self._file.fileno(), begin, end - begin), [place - begin for place in self._ends[first:last]]
            begin, first = end, last


class Spool(Generic[S]):
    """Collects records in a temporary file, which lives as long as a sequence reads it.

    Raises StorageError when the temporary folder is full.
    """

    def __init__(self, kind: type[S]) -> None:
        self._kind = kind
        with _temporary_room():
            # the file has no name, so nothing of it remains when the process dies; its reader closes it
            self._file: BinaryIO = tempfile.TemporaryFile("w+b", prefix="spintune-")  # noqa: SIM115

    def add(self, record: S) -> None:
        """Appends a record."""
        try:  # no context manager: it would take as long as the writing
            self._file.write(json_line(record))
        except OSError as error:
            raise _no_room(error) from error

    def records(self) -> RecordFile[S]:
        """The added records, in their order. No more can be added afterwards."""
        with _temporary_room():
            self._file.flush()
        return RecordFile(Path("temporary file"), self._kind, self._file)


@contextlib.contextmanager
def _temporary_room() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> StorageError:
    return StorageError(
        f"the data does not fit into the folder for temporary files ({error.strerror or error}); free some space "
        "there, or set TMPDIR to another folder"
    )


class Selection(_Lazy[R], Generic[R]):
    """The records of ``base`` at ``positions``, which may repeat."""

    def __init__(self, base: Sequence[R], positions: Iterable[int]) -> None:
        self._base, self._positions = base, array("q", positions)

    def __len__(self) -> int:
        return len(self._positions)

    def _item(self, position: int) -> R:
        return self._base[self._positions[position]]


class Joined(_Lazy[R], Generic[R]):
    """Several sequences, one after another."""

    def __init__(self, parts: Iterable[Sequence[R]]) -> None:
        self._parts = [part for part in parts if len(part)]
        self._ends = list(itertools.accumulate(map(len, self._parts)))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def __iter__(self) -> Iterator[R]:
        for part in self._parts:
            yield from part

    def _item(self, position: int) -> R:
        number = bisect.bisect_right(self._ends, position)
        before = self._ends[number - 1] if number else 0
        return self._parts[number][position - before]


def _line_ends(descriptor: int, sha: hashlib._Hash | None) -> array[int]:
    """The end of each line, including its newline. The bytes are added to ``sha`` on the way."""
    import numpy as np  # not needed by those who import this module for its names

    ends: array[int] = array("q")
    begin = 0
    for block in _read(descriptor):
        if sha is not None:
            sha.update(block)
        newlines = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n"))
        ends.frombytes((newlines + (begin + 1)).astype(np.int64).tobytes())
        begin += len(block)
    if begin and (not ends or ends[-1] != begin):
        ends.append(begin)  # a last line without its newline
    return ends


def _read(descriptor: int) -> Iterator[bytes]:
    begin = 0
    while block := os.pread(descriptor, _READ, begin):
        yield block
        begin += len(block)


def _at(descriptor: int, begin: int, size: int) -> bytes:
    """``size`` bytes from ``begin``. Not a memory map, whose pages would count as the process's memory."""
    parts = []
    while size > 0 and (part := os.pread(descriptor, size, begin)):
        parts.append(part)
        begin, size = begin + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
