"""Hashes on disk answer what a set or a sorted list of them would, and memory does not grow with their number."""

from __future__ import annotations

import tracemalloc
from collections.abc import Sequence
from hashlib import sha256

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spintune import number_files
from spintune.number_files import FirstKeys, KeyFile, NumberFile, complement, first_of_each

hashes = st.lists(st.integers(0, 30), max_size=60)
parts = st.sampled_from([1, 5, 1000])


def key(number: int, size: int = 8) -> bytes:
    return sha256(str(number).encode()).digest()[:size]


def file_of(keys: Sequence[bytes]) -> KeyFile:
    file = KeyFile(len(keys[0]) if keys else 8)
    for one in keys:
        file.add(one)
    return file


def marked(bits: np.ndarray) -> list[int]:
    return np.flatnonzero(np.unpackbits(bits)).tolist()


@settings(max_examples=60)
@given(numbers=hashes, size=st.sampled_from([8, 32]), part=parts, block=st.sampled_from([8, 1 << 16]))
def test_counts_ranks_and_marks_are_those_of_a_sorted_set(numbers: list[int], size: int, part: int, block: int) -> None:
    keys = [key(number, size) for number in numbers]
    expected = sorted(set(keys))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(number_files, "_PART", part)
        patch.setattr(number_files, "_BLOCK", block)
        file = file_of(keys)
        assert (len(file), file.distinct()) == (len(keys), len(expected))
        for rank in range(1, len(expected) + 1):
            assert file.smallest(rank) == expected[rank - 1]
            small = [place for place, one in enumerate(keys) if one <= expected[rank - 1]]
            bits = file.up_to(expected[rank - 1])
            assert marked(bits) == small
            assert marked(complement(bits, len(keys))) == sorted({*range(len(keys))} - {*small})


def test_hashes_that_differ_only_behind_their_first_bytes_are_told_apart() -> None:
    keys = [b"same one" + bytes([number % 3] * 8) for number in (2, 0, 1, 2, 0)]
    file = file_of(keys)
    assert file.distinct() == 3
    assert [file.smallest(rank) for rank in (1, 2, 3)] == sorted(set(keys))
    assert first_of_each([file], [None])[0].repeated == 2


def test_a_hash_that_is_added_later_counts() -> None:
    file = file_of([key(1), key(1)])
    assert file.distinct() == 1
    file.add(key(2))
    assert file.distinct() == 2


def one_by_one(files: Sequence[Sequence[int]], limits: Sequence[int | None]) -> list[tuple[list[int], int, int]]:
    """The same with sets, record by record."""
    earlier: set[int] = set()
    found = []
    for numbers, limit in zip(files, limits, strict=True):
        seen: set[int] = set()
        kept, repeated, over = [], 0, 0
        for place, number in enumerate(numbers):
            if number in seen:
                repeated += 1
            elif limit is not None and len(seen) >= limit:
                over += 1
            else:
                seen.add(number)
                if number in earlier:
                    repeated += 1
                else:
                    kept.append(place)
        earlier |= seen
        found.append((kept, repeated, over))
    return found


@settings(max_examples=60)
@given(files=st.lists(st.tuples(hashes, st.none() | st.integers(1, 20)), min_size=1, max_size=4), part=parts)
def test_first_records_are_those_that_a_set_would_let_in(files: list[tuple[list[int], int | None]], part: int) -> None:
    numbers, limits = [one for one, _ in files], [limit for _, limit in files]

    def as_list(first: FirstKeys) -> tuple[list[int], int, int]:
        assert first.kept == len(marked(first.marks))
        return marked(first.marks), first.repeated, first.over

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(number_files, "_PART", part)
        found = first_of_each([file_of([*map(key, one)]) for one in numbers], limits)
    assert [as_list(first) for first in found] == one_by_one(numbers, limits)


def test_numbers_are_read_in_slices() -> None:
    file = NumberFile([np.arange(5, dtype=np.int32), np.array([2**31 - 1], np.int32)])
    assert len(file) == 6
    assert file.read(3, 6).tolist() == [3, 4, 2**31 - 1]
    assert file.read(2, 2).tolist() == []


def test_memory_is_that_of_a_part_not_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(number_files, "_PART", 1 << 10)
    monkeypatch.setattr(number_files, "_BLOCK", 1 << 10)

    def held(count: int) -> int:
        file = file_of([key(number) for number in range(count)])
        tracemalloc.start()
        assert file.distinct() == count
        assert first_of_each([file], [None])[0].kept == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    assert held(32_000) < held(4_000) + 32_000  # a byte for each of 28,000 more; their hashes alone take 8
