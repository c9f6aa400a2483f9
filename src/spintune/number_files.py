"""Numbers and hashes of many records in temporary files, so that memory does not grow with the data.

==============  ==================================================================
NumberFile      32-bit numbers, appended in blocks and read in slices
KeyFile         hashes of records; counts those that differ, finds the smallest
first_of_each   tells the first record of each hash from those that repeat it
==============  ==================================================================

What a set or a sorted list in memory would answer, hashes answer in parts: divided by their first bits, each part fits
into memory and is sorted there. ::

    hashes in their order --first bits--> parts in another file --sorted one by one--> all of them in ascending order
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from spintune.portable import write_part
from spintune.record_files import read_at, temporary_file, temporary_room

Places = NDArray[np.int64]
Rows = NDArray[np.uint64]
"""Hashes: a row for each, of its place and then its words, which compare from left to right."""
Bits = NDArray[np.uint8]
"""A bit for each record, packed as by ``numpy.packbits``."""

_BLOCK = 1 << 16  # hashes that are read together; a multiple of 8
_PART = 1 << 17  # hashes that are sorted together, at most about twice as many


class NumberFile:
    """Numbers from 0 to 2^31 - 1 on disk."""

    def __init__(self, blocks: Iterable[NDArray[np.int32]] = ()) -> None:
        self._file = _new_file(self)
        self._count = 0
        for block in blocks:
            self.extend(block)

    def __len__(self) -> int:
        return self._count

    def extend(self, numbers: NDArray[np.int32]) -> None:
        """Appends numbers."""
        with temporary_room():
            self._file.write(np.ascontiguousarray(numbers, np.int32).data)
            self._file.flush()
        self._count += len(numbers)

    def read(self, begin: int, end: int) -> NDArray[np.int32]:
        """The numbers from position ``begin`` to before ``end``."""
        return np.frombuffer(read_at(self._file.fileno(), begin * 4, (end - begin) * 4), np.int32)


class KeyFile:
    """Hashes of records, in the order of the records.

    Args:
        size: bytes of a hash, a multiple of 8.
    """

    def __init__(self, size: int) -> None:
        self.words = size // 8
        self._file = _new_file(self)
        self._count = 0
        self._known: tuple[int, _Parts] | None = None

    def add(self, key: bytes) -> None:
        """Appends the hash of the next record."""
        try:  # no context manager: it would take as long as the writing
            self._file.write(key)
        except OSError:
            with temporary_room():
                raise
        self._count += 1

    def __len__(self) -> int:
        return self._count

    def distinct(self) -> int:
        """How many hashes differ."""
        return sum(int(_changes(rows[:, 1:]).sum()) for rows in self._parts)

    def smallest(self, rank: int) -> bytes:
        """The ``rank``-th smallest, from 1, of the hashes that differ."""
        for rows in self._parts:
            firsts = rows[_changes(rows[:, 1:]), 1:]
            if rank <= len(firsts):
                return firsts[rank - 1].astype(">u8").tobytes()
            rank -= len(firsts)
        raise IndexError("there are not so many hashes")

    def up_to(self, key: bytes) -> Bits:
        """Marks the hashes that are not larger than ``key``."""
        limit = np.frombuffer(key, ">u8").astype(np.uint64)
        marks = [np.zeros(0, np.uint8)]
        for rows in self.blocks():
            small = np.ones(len(rows), bool)
            for place in reversed(range(self.words)):
                word = rows[:, place + 1]
                small = (word < limit[place]) | ((word == limit[place]) & small)
            marks.append(np.packbits(small))
        return np.concatenate(marks)

    def blocks(self, first: int = 0) -> Iterator[Rows]:
        """The hashes in their order, with places from ``first``."""
        with temporary_room():
            self._file.flush()
        width = 8 * self.words
        for begin in range(0, self._count, _BLOCK):
            data = read_at(self._file.fileno(), begin * width, min(_BLOCK, self._count - begin) * width)
            words = np.frombuffer(data, ">u8").reshape(-1, self.words)
            rows = np.empty((len(words), self.words + 1), np.uint64)
            rows[:, 0] = np.arange(first + begin, first + begin + len(words))
            rows[:, 1:] = words
            yield rows

    @property
    def _parts(self) -> _Parts:
        if self._known is None or self._known[0] != self._count:
            self._known = self._count, _Parts(self.blocks, self._count, self.words + 1)
        return self._known[1]


def complement(bits: Bits, count: int) -> Bits:
    """The marks of the other ones of ``count`` records."""
    others = ~bits
    if count % 8:
        others[-1] &= 0xFF00 >> count % 8 & 0xFF
    return others


# Repeated hashes ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FirstKeys:
    """The records of one file of hashes: ``kept`` are marked, and with ``repeated`` and ``over`` they are all.

    Attributes:
        marks: the first record of each hash that counts, unless it counts in an earlier file.
        repeated: records whose hash counts and was there before.
        over: records whose hash does not count.
    """

    marks: Bits
    kept: int
    repeated: int
    over: int


def first_of_each(files: Sequence[KeyFile], limits: Sequence[int | None]) -> list[FirstKeys]:
    """Tells the first record of each hash from those that repeat it, in its own file or an earlier one.

    ``limits`` say of each file how many different hashes count, in the order of their first records; None for all.
    Hashes that count in an earlier file are among them.
    """
    begins = np.cumsum([0, *(-(-len(file) // 8) * 8 for file in files)])  # whole bytes of marks

    def blocks() -> Iterator[Rows]:
        for file, begin in zip(files, begins.tolist(), strict=False):
            yield from file.blocks(begin)

    parts = _Parts(blocks, sum(map(len, files)), files[0].words + 1)
    ends = begins[1:].copy()
    if any(limit is not None for limit in limits):
        firsts = np.zeros(int(begins[-1]) // 8, np.uint8)
        for rows in parts:
            _mark(firsts, _Runs(rows, begins).places)
        for number, limit in enumerate(limits):
            if limit is not None:
                own = firsts[begins[number] // 8 : begins[number + 1] // 8]
                ends[number] = begins[number] + _place_after(own, limit)
    marks = np.zeros(int(begins[-1]) // 8, np.uint8)
    kept, over = np.zeros(len(files), np.int64), np.zeros(len(files), np.int64)
    for rows in parts:
        runs = _Runs(rows, begins)
        counts = runs.places < ends[runs.files]
        new = counts & ~runs.follows(counts)
        _mark(marks, runs.places[new])
        kept += np.bincount(runs.files[new], minlength=len(files))
        over += np.bincount(runs.files, runs.sizes * ~counts, len(files)).astype(np.int64)
    found = []
    for number, file in enumerate(files):
        numbers = int(kept[number]), len(file) - int(kept[number] + over[number]), int(over[number])
        found.append(FirstKeys(marks[begins[number] // 8 : begins[number + 1] // 8], *numbers))
    return found


class _Runs:
    """Equal hashes of the same file among sorted rows.

    Attributes:
        places: of the first record of each run.
        files: the number of its file.
        sizes: how many records it has.
    """

    def __init__(self, rows: Rows, begins: Places) -> None:
        place = rows[:, 0].astype(np.int64)
        file = np.searchsorted(begins, place, side="right") - 1
        new_key = _changes(rows[:, 1:])
        starts = np.flatnonzero(new_key | _changes(file[:, None]))
        self.places, self.files = place[starts], file[starts]
        self.sizes = np.diff(np.append(starts, len(rows)))
        self._new_key = new_key[starts]

    def follows(self, counts: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Whether an earlier run of the same hash counts."""
        before: Places = np.cumsum(counts) - counts
        key = np.cumsum(self._new_key) - 1
        return before > before[self._new_key][key]


def _changes(values: NDArray[np.uint64] | Places) -> NDArray[np.bool_]:
    """Where a row differs from the one before it; the first one does."""
    found = np.ones(len(values), bool)
    found[1:] = (values[1:] != values[:-1]).any(axis=1)
    return found


def _mark(marks: Bits, places: Places) -> None:
    np.bitwise_or.at(marks, places >> 3, (0x80 >> (places & 7)).astype(np.uint8))


def _place_after(marks: Bits, count: int) -> int:
    """The place behind the mark of this number; behind all places where there are fewer."""
    before = 0
    for begin in range(0, len(marks), _BLOCK // 8):
        ones = np.flatnonzero(np.unpackbits(marks[begin : begin + _BLOCK // 8]))
        if before + len(ones) >= count:
            return begin * 8 + int(ones[count - before - 1]) + 1
        before += len(ones)
    return len(marks) * 8


# Sorting --------------------------------------------------------------------------------------------------------------


class _Parts:
    """Rows in ascending order of their hashes, and of places among equal ones, a part at a time.

    Args:
        blocks: gives the rows, in ascending order of places. It is called twice.
        count: how many there are.
        width: words of a row.
    """

    def __init__(self, blocks: Callable[[], Iterator[Rows]], count: int, width: int) -> None:
        self._width, self._bits = width, (count // _PART).bit_length()
        self._file = _new_file(self)
        sizes = np.zeros(1 << self._bits, np.int64)
        for rows in blocks():
            sizes += np.bincount(self._part_of(rows), minlength=len(sizes))
        self._ends = np.cumsum(np.append(0, sizes))
        self._write(blocks)

    def __iter__(self) -> Iterator[Rows]:
        for begin, end in itertools.pairwise(self._ends.tolist()):
            if begin < end:
                data = read_at(self._file.fileno(), begin * self._width * 8, (end - begin) * self._width * 8)
                yield _ascending(np.frombuffer(data, np.uint64).reshape(-1, self._width))

    def _part_of(self, rows: Rows) -> Places:
        if not self._bits:
            return np.zeros(len(rows), np.int64)
        return (rows[:, 1] >> np.uint64(64 - self._bits)).astype(np.int64)

    def _write(self, blocks: Callable[[], Iterator[Rows]]) -> None:
        """Writes each row behind those of its part that came before it."""
        filled = self._ends[:-1].copy()
        with temporary_room():
            for rows in blocks():
                part = self._part_of(rows)
                rows = rows[np.argsort(part, kind="stable")]
                sizes = np.bincount(part, minlength=len(filled))
                begin = 0
                for number in np.flatnonzero(sizes).tolist():
                    end = begin + int(sizes[number])
                    _write_at(self._file.fileno(), int(filled[number]) * self._width * 8, rows[begin:end].tobytes())
                    begin = end
                filled += sizes


def _ascending(rows: Rows) -> Rows:
    ordered = rows[np.argsort(rows[:, 1], kind="stable")]
    same = ordered[1:, 1] == ordered[:-1, 1]
    if (same & (ordered[1:, 2:] != ordered[:-1, 2:]).any(axis=1)).any():  # once in 2^64 pairs of true hashes
        ordered = rows[np.lexsort(rows[:, :0:-1].T)]
    return ordered


def _write_at(descriptor: int, begin: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        written = write_part(descriptor, rest, begin)
        begin, rest = begin + written, rest[written:]


def _new_file(owner: object) -> BinaryIO:
    """A temporary file that is closed with its owner."""
    file = temporary_file()
    weakref.finalize(owner, file.close)
    return file
