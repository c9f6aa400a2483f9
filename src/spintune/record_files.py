"""Sequences of records that stay on disk, so that memory does not grow with the data.

===========  ====================================================================
RecordFile   the records of a JSON lines file; an eighth of a byte of memory each
Spool        collects records one by one, and returns them as a RecordFile
Selection    some records of a sequence, in any order; 8 bytes each
Masked       those of a sequence that a mask has; an eighth of a byte each
Joined       several sequences, one after another
===========  ====================================================================

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
from typing import TYPE_CHECKING, BinaryIO, Generic, TypeVar, overload

from spintune.errors import RunError, StorageError
from spintune.portable import read_part
from spintune.records import parse_record
from spintune.storage import atomic_file, json_line

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

R = TypeVar("R")
S = TypeVar("S")

_READ = 1 << 20  # bytes
_LARGE_FILES = "/var/tmp"  # noqa: S108 -- files without names
_MAX_STRIDE = 64  # lines between two places in the index of a file
_MAX_SKIPPED = 1 << 16  # bytes between them, about: what is read for one line
_MASK_BLOCK = 1 << 12  # bits, whose number of ones is known


class LazySequence(Sequence[R], Generic[R]):
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


class RecordFile(LazySequence[S], Generic[S]):
    """The records of a file that :func:`spintune.records.write_records` or a :class:`Spool` wrote.

    The file must not change while this is in use. Accessing a line that is not such a record raises RunError, which
    names ``path:line``. A file that cannot be opened raises it as well.

    Args:
        sha256: digest of the file's bytes. RunError is raised when they have another one.
        recent: how many records that were asked for by position may stay in memory, for those that are again.
    """

    def __init__(
        self, path: Path, kind: type[S], _file: BinaryIO | None = None, sha256: str | None = None, recent: int = 0
    ) -> None:
        self.path, self._kind = path, kind
        self._recent, self._most_recent = dict[int, S](), recent
        self._file = _file or _opened(path)
        weakref.finalize(self, self._file.close)
        sha = hashlib.sha256() if sha256 is not None else None
        self._index = _LineIndex(self._file.fileno(), sha)
        if sha is not None and sha.hexdigest() != sha256:
            raise RunError(f"{path}: it has changed since it was written; delete it and run again")

    def __len__(self) -> int:
        return self._index.lines

    def __iter__(self) -> Iterator[S]:
        """Reads in large blocks, faster than by position."""
        return self.stretch(0, len(self))

    def stretch(self, begin: int, end: int) -> Iterator[S]:
        """The records from position ``begin`` to before ``end``."""
        for number, line in enumerate(itertools.islice(self.lines(begin), max(0, end - begin)), begin + 1):
            yield parse_record(line, self._kind, self.path, number)

    def lines(self, first: int = 0) -> Iterator[bytes]:
        """The records as JSON, from position ``first``."""
        for begin, end, skipped in self._index.blocks(first):
            yield from _lines(read_at(self._file.fileno(), begin, end - begin))[skipped:]

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
        if position in self._recent:
            return self._recent[position]
        begin, end, place = self._index.find(position)
        line = read_at(self._file.fileno(), begin, end - begin).split(b"\n", place + 1)[place]
        record = parse_record(line, self._kind, self.path, position + 1)
        if self._most_recent:
            if len(self._recent) == self._most_recent:
                self._recent.clear()
            self._recent[position] = record
        return record


class Spool(Generic[S]):
    """Collects records in a temporary file, which lives as long as a sequence reads it.

    Raises StorageError when the temporary folder is full.
    """

    def __init__(self, kind: type[S]) -> None:
        self._kind = kind
        self._file = temporary_file()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, record: S) -> None:
        """Appends a record."""
        try:  # no context manager: it would take as long as the writing
            self._file.write(json_line(record))
        except OSError as error:
            raise _no_room(error) from error
        self._count += 1

    def records(self, recent: int = 0) -> RecordFile[S]:
        """The added records, in their order, see :class:`RecordFile`. No more can be added afterwards."""
        with temporary_room():
            self._file.flush()
        return RecordFile(Path("temporary file"), self._kind, self._file, recent=recent)


def temporary_file() -> BinaryIO:
    """An open file without a name, so nothing of it remains when the process dies. Its reader closes it.

    It is in TMPDIR, else in /var/tmp, which is on a disk where /tmp may be in memory. Raises StorageError.
    """
    with temporary_room():
        return tempfile.TemporaryFile("w+b", prefix="spintune-", dir=_large_files())


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder that is removed when its context ends, in the place of :func:`temporary_file`. Raises StorageError."""
    with temporary_room():
        return tempfile.TemporaryDirectory(prefix="spintune-", dir=_large_files())


def _large_files() -> str | None:
    named = any(os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP"))
    return None if named or not os.access(_LARGE_FILES, os.W_OK | os.X_OK) else _LARGE_FILES


@contextlib.contextmanager
def temporary_room() -> Iterator[None]:
    """Turns the errors of writing a temporary file into StorageError, one clear line."""
    try:
        yield
    except OSError as error:
        raise _no_room(error) from error


def _no_room(error: OSError) -> StorageError:
    return StorageError(
        f"the data does not fit into the folder for temporary files ({error.strerror or error}); free some space "
        "there, or set TMPDIR to another folder"
    )


class Selection(LazySequence[R], Generic[R]):
    """The records of ``base`` at ``positions``, which may repeat."""

    def __init__(self, base: Sequence[R], positions: Iterable[int]) -> None:
        self._base = base
        self._positions = positions if isinstance(positions, range) else array("q", positions)

    def __len__(self) -> int:
        return len(self._positions)

    def __iter__(self) -> Iterator[R]:
        places = self._positions
        if isinstance(self._base, RecordFile) and isinstance(places, range) and places.step == 1:
            return self._base.stretch(places.start, places.stop)
        return map(self._base.__getitem__, places)

    def _item(self, position: int) -> R:
        return self._base[self._positions[position]]


class Masked(LazySequence[R], Generic[R]):
    """The records of ``base`` whose bit is 1, in their order.

    Args:
        bits: packed as by ``numpy.packbits``, the first record in the highest bit of the first byte.
    """

    def __init__(self, base: Sequence[R], bits: NDArray[np.uint8]) -> None:
        import numpy as np

        self._base, self._bits = base, bits
        ones = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)[bits].astype(np.int64)
        starts = np.arange(0, len(bits), _MASK_BLOCK // 8)
        self._ends = np.add.reduceat(ones, starts).cumsum() if len(bits) else np.zeros(0, np.int64)

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    @property
    def bits(self) -> NDArray[np.uint8]:
        """The mask, as it was given."""
        return self._bits

    def __iter__(self) -> Iterator[R]:
        if len(self) * 8 < len(self._base):  # few: the others need not be decoded
            for block in range(len(self._ends)):
                for place in self._places(block):
                    yield self._base[place]
        else:
            yield from itertools.compress(self._base, self._flags())

    def _item(self, position: int) -> R:
        import numpy as np

        block = int(np.searchsorted(self._ends, position, side="right"))
        before = int(self._ends[block - 1]) if block else 0
        return self._base[self._places(block)[position - before]]

    def _places(self, block: int) -> list[int]:
        import numpy as np

        first = block * _MASK_BLOCK
        ones = np.flatnonzero(np.unpackbits(self._bits[first // 8 : (first + _MASK_BLOCK) // 8]))
        return [first + place for place in ones.tolist()]

    def _flags(self) -> Iterator[int]:
        import numpy as np

        for first in range(0, len(self._bits), _MASK_BLOCK):
            yield from np.unpackbits(self._bits[first : first + _MASK_BLOCK]).tolist()


class Joined(LazySequence[R], Generic[R]):
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


class _LineIndex:
    """Where some of the lines of a file begin: every so many, so that a line is found by reading about 64 kB.

    Attributes:
        lines: their number. The last one may lack its newline.
    """

    def __init__(self, descriptor: int, sha: hashlib._Hash | None) -> None:
        """Reads the file, and adds its bytes to ``sha`` on the way."""
        import numpy as np  # not needed by those who import this module for its names

        self.lines = size = 0
        self._stride, self._starts = 0, array("q", [0])
        for block in _read(descriptor):
            if sha is not None:
                sha.update(block)
            starts = np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (size + 1)
            if not self._stride:
                self._stride = max(1, min(_MAX_STRIDE, len(starts) * _MAX_SKIPPED // len(block)))
            kept = starts[-(self.lines + 1) % self._stride :: self._stride]
            self._starts.frombytes(kept.astype(np.int64).tobytes())
            self.lines += len(starts)
            size += len(block)
            complete = block.endswith(b"\n")
        if size and not complete:
            self.lines += 1
        if self._starts[-1] != size:
            self._starts.append(size)

    def find(self, line: int) -> tuple[int, int, int]:
        """Begin and end of some bytes of the file, and which of their lines it is."""
        block, place = divmod(line, self._stride)
        return self._starts[block], self._starts[block + 1], place

    def blocks(self, line: int) -> Iterator[tuple[int, int, int]]:
        """Begin and end of stretches of about a megabyte, and how many of the lines there come before ``line``."""
        first, skipped = divmod(line, max(1, self._stride))
        while first + 1 < len(self._starts):
            begin = self._starts[first]
            last = max(first + 1, bisect.bisect_right(self._starts, begin + _READ, first) - 1)
            yield begin, self._starts[last], skipped
            first, skipped = last, 0


def _lines(block: bytes) -> list[bytes]:
    return block.removesuffix(b"\n").split(b"\n")


def _read(descriptor: int) -> Iterator[bytes]:
    begin = 0
    while block := read_part(descriptor, _READ, begin):
        yield block
        begin += len(block)


def read_at(descriptor: int, begin: int, size: int) -> bytes:
    """``size`` bytes from ``begin``. Not a memory map, whose pages would count as the process's memory."""
    parts = []
    while size > 0 and (part := read_part(descriptor, size, begin)):
        parts.append(part)
        begin, size = begin + len(part), size - len(part)
    return parts[0] if len(parts) == 1 else b"".join(parts)
