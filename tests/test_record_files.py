"""Sequences on disk are the lists that they stand for, and hold next to nothing in memory."""

from __future__ import annotations

import gc
import hashlib
import os
import resource
import signal
import tracemalloc
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune import record_files
from spintune.errors import RunError, StorageError
from spintune.record_files import Joined, Masked, RecordFile, Selection, Spool
from spintune.records import Example, Message, write_records
from spintune.storage import json_line

texts = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=40), max_size=30)


def example(text: str) -> Example:
    return Example((Message("user", text), Message("assistant", "yes")), "here:1")


def spooled(examples: Sequence[Example]) -> RecordFile[Example]:
    spool = Spool(Example)
    for one in examples:
        spool.add(one)
    return spool.records()


@given(texts=texts, block=st.integers(1, 300))
def test_a_file_of_records_is_the_list_that_was_written(texts: list[str], block: int, tmp_path_factory: Any) -> None:
    examples = [example(text) for text in texts]
    path = tmp_path_factory.mktemp("records") / "x.jsonl"
    write_records(path, examples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "_READ", block)  # lines that end at, before and behind the end of a block
        for stored in (RecordFile(path, Example), spooled(examples)):
            assert len(stored) == len(examples)
            assert list(stored) == examples
            assert [stored[position] for position in range(len(examples))] == examples
            assert stored == examples
            assert (stored == [*examples, example("one more")]) is False
            assert stored.digest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_positions_and_slices_are_those_of_a_list() -> None:
    examples = [example(str(number)) for number in range(7)]
    stored = spooled(examples)
    assert [stored[position] for position in (-7, -1, 6)] == [examples[position] for position in (-7, -1, 6)]
    for part in (slice(2, 5), slice(None, None, -2), slice(5, 1), slice(-3, 99)):
        assert stored[part] == examples[part]
    for outside in (7, -8):
        with pytest.raises(IndexError, match="of 7"):
            stored[outside]


@given(positions=st.lists(st.integers(0, 6)), again=st.lists(st.integers(0, 99)))
def test_a_selection_and_what_is_joined_are_those_of_lists(positions: list[int], again: list[int]) -> None:
    letters = "abcdefg"
    chosen = Selection(letters, positions)
    assert list(chosen) == [letters[position] for position in positions]
    places = [place % len(positions) for place in again] if positions else []
    assert list(Selection(chosen, places)) == [letters[positions[place]] for place in places]
    parts: list[Sequence[str]] = [chosen, "", "xyz", Selection(chosen, places)]
    whole = list(chain(*parts))
    joined = Joined(parts)
    assert list(joined) == whole == [joined[position] for position in range(len(whole))]
    assert joined == whole


@given(mask=st.lists(st.booleans(), max_size=90), block=st.sampled_from([8, 16, 4096]))
def test_a_mask_leaves_the_marked_records(mask: list[bool], block: int) -> None:
    numbers = list(range(len(mask)))
    expected = [number for number, kept in zip(numbers, mask, strict=True) if kept]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record_files, "_MASK_BLOCK", block)
        chosen = Masked(numbers, np.packbits(np.array(mask, bool)))
        assert list(chosen) == expected
        assert [chosen[place] for place in range(len(chosen))] == expected
        assert chosen[1:-1] == expected[1:-1]


def test_rows_of_a_stretch_are_read_on_from_where_it_begins() -> None:
    stored = spooled([example(str(number)) for number in range(300)])
    for part in (slice(0, 300), slice(63, 130), slice(64, 65), slice(299, 300), slice(200, 100)):
        assert [one.prompt[0].content for one in stored[part]] == [str(n) for n in range(*part.indices(300))]


def test_long_lines_are_read_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    stored = spooled([example("long " * 40_000)] * 20)
    read: list[int] = []
    monkeypatch.setattr(
        record_files, "read_at", lambda file, begin, size: read.append(size) or os.pread(file, size, begin)
    )
    assert stored[7].answer == "yes"
    assert read == [len(json_line(example("long " * 40_000)))]


def test_a_last_line_without_its_newline_counts(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [example("a"), example("b")])
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    assert RecordFile(path, Example) == [example("a"), example("b")]


def test_a_broken_line_is_named_when_it_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [example("a"), example("b")])
    path.write_bytes(path.read_bytes() + b"{}\n")
    stored = RecordFile(path, Example)
    assert stored[1] == example("b")
    for look in (lambda: stored[2], lambda: list(stored)):
        with pytest.raises(RunError, match=r"x\.jsonl:3: not a Example record"):
            look()


def test_what_a_spool_holds_goes_with_its_last_reader() -> None:
    gc.collect()  # files of other tests
    before = len([*Path("/proc/self/fd").iterdir()])
    stored: Sequence[Example] = spooled([example("a")])
    chosen = stored[:1]
    del stored
    gc.collect()
    assert chosen == [example("a")]  # it still has the file
    del chosen
    gc.collect()
    assert len([*Path("/proc/self/fd").iterdir()]) <= before


def test_a_record_on_disk_costs_an_eighth_of_a_byte_of_memory(tmp_path: Path) -> None:
    path, count = tmp_path / "x.jsonl", 200_000
    path.write_bytes(json_line(example("long")) * count)
    tracemalloc.start()
    stored = RecordFile(path, Example)
    assert len(stored) == count
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < count / 8 * 1.2 + 20_000


def test_no_room_for_temporary_files_is_one_line_that_says_what_to_do() -> None:
    allowed, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, most))
    try:
        with pytest.raises(StorageError, match=r"temporary files .* set TMPDIR"):
            spooled([example("long " * 200)] * 100)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (allowed, most))
        signal.signal(signal.SIGXFSZ, before)
