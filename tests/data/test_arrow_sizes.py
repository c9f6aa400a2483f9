"""Arrow data that expands is refused before it is decompressed or decoded; ordinary data of every type is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.feather
import pyarrow.ipc
import pytest

from spintune.data.tables import rows_of
from spintune.data.tables.arrow_sizes import decoded_size, decompressed_sizes
from spintune.errors import DataError

LONG = "a" * 1_000_000


def write(path: Path, table: pyarrow.Table, compression: str | None, stream: bool = False, chunk: int = 1000) -> Path:
    options = pyarrow.ipc.IpcWriteOptions(compression=compression)
    new = pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file
    with pyarrow.OSFile(str(path), "wb") as sink, new(sink, table.schema, options=options) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return path


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_sizes_before_decompression_are_those_of_the_buffers(
    tmp_path: Path, compression: str | None, stream: bool
) -> None:
    texts = pyarrow.array([f"text {number} " * 500 for number in range(8)])
    table = pyarrow.table({"instruction": texts, "output": texts.dictionary_encode(), "n": list(range(8))})
    path = write(tmp_path / "rows.arrow", table, compression, stream, chunk=3)
    with pyarrow.memory_map(str(path)) as source:
        reader = pyarrow.ipc.open_stream(source) if stream else pyarrow.ipc.open_file(source)
        batches = list(reader) if stream else [reader.get_batch(n) for n in range(reader.num_record_batches)]
        columns = [column for batch in batches for column in batch.columns]
        arrays = [*columns, batches[0].column(1).dictionary]
        held = sum(buffer.size for array in arrays for buffer in array.buffers() if buffer)
        source.seek(0)
        found = sum(decompressed_sizes(source, not stream))
    assert found == pytest.approx(held, rel=0.02)  # padding, and bitmaps of nulls
    assert len(list(rows_of(path))) == 8


@pytest.mark.parametrize("stream", [False, True])
def test_a_small_file_that_decompresses_to_gigabytes_is_refused(tmp_path: Path, stream: bool) -> None:
    """By the size that the buffer states, before it is decompressed."""
    path = write(tmp_path / "rows.arrow", pyarrow.table({"instruction": [LONG], "output": ["b"]}), "zstd", stream)
    stated, forged = ((size).to_bytes(8, "little") for size in (len(LONG), 3_000_000_000))
    content = path.read_bytes()
    magic = b"\x28\xb5\x2f\xfd"  # of zstd
    assert content.count(stated + magic) == 1
    path.write_bytes(content.replace(stated + magic, forged + magic))
    with pytest.raises(DataError, match="expands to more than 300 times its size"):
        next(rows_of(path))


def test_damaged_metadata_is_one_line(tmp_path: Path) -> None:
    whole = write(tmp_path / "rows.arrow", pyarrow.table({"instruction": ["a"], "output": ["b"]}), "zstd").read_bytes()
    for cut in range(0, len(whole), 7):
        for content in (whole[:cut], whole[:cut] + b"\xff" * 8 + whole[cut + 8 :]):
            (tmp_path / "rows.arrow").write_bytes(content)
            try:
                list(rows_of(tmp_path / "rows.arrow"))
            except DataError as error:
                assert "\n" not in str(error)


SHARED = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 2000, pyarrow.int16()), pyarrow.array([LONG]))
NESTED: dict[str, Callable[[], Any]] = {
    "a dictionary": lambda: SHARED,
    "in an object": lambda: pyarrow.StructArray.from_arrays([SHARED], ["deep"]),
    "in a list": lambda: pyarrow.ListArray.from_arrays(pyarrow.array(range(2001), pyarrow.int32()), SHARED),
    "a dictionary of objects": lambda: pyarrow.DictionaryArray.from_arrays(
        pyarrow.array([0] * 2000, pyarrow.int16()), pyarrow.array([{"deep": LONG}])
    ),
    "nulls in a list": lambda: pyarrow.ListArray.from_arrays(
        pyarrow.array([n * 5_000_000 for n in range(201)], pyarrow.int32()), pyarrow.nulls(1_000_000_000)
    ),
}


@pytest.mark.parametrize("values", NESTED.values(), ids=NESTED)
def test_values_that_share_their_bytes_do_not_fill_the_memory(tmp_path: Path, values: Callable[[], Any]) -> None:
    array = values()
    table = pyarrow.table({"instruction": ["a"] * len(array), "output": ["b"] * len(array), "input": array})
    path = write(tmp_path / "rows.arrow", table, "zstd")
    with pytest.raises(DataError, match="expands to more than 300 times its size"):
        list(rows_of(path))


def test_types_whose_values_take_no_space_are_refused(tmp_path: Path) -> None:
    encoded = pyarrow.RunEndEncodedArray.from_arrays(pyarrow.array([1000], pyarrow.int32()), pyarrow.array(["x"]))
    table = pyarrow.table({"instruction": ["a"] * 1000, "output": encoded})
    path = write(tmp_path / "rows.arrow", table, None)
    with pytest.raises(DataError, match=r"'output' has the type run_end_encoded.*, which is not read; write plain"):
        list(rows_of(path))


@pytest.mark.parametrize(
    ("array", "size"),
    [
        (pyarrow.array(["ab", None, "c"], pyarrow.string_view()), 3 + 3 * 8),
        (pyarrow.array(["ab", None, "c"]).dictionary_encode().slice(1), 2 + 1 + 2 * 8),  # null counts as the first
        (pyarrow.array([["ab"], None, ["c", "d"]]).slice(1), 2 + 4 * 8),
        (pyarrow.array([{"a": "xyz", "b": 1}, None]), 3 + 6 * 8),
        (pyarrow.array([[1, 2], [3, 4], [5, 6]], pyarrow.list_(pyarrow.int64(), 2)).slice(1), 6 * 8),
        (pyarrow.array([[("k", "value")]], pyarrow.map_(pyarrow.string(), pyarrow.string())), 6 + 4 * 8),
        (pyarrow.nulls(5), 40),
    ],
)
def test_sizes_of_values_are_those_counted_by_hand(array: pyarrow.Array, size: int) -> None:
    assert decoded_size(array) == size


def test_rows_with_shared_values_are_read_as_ever(tmp_path: Path) -> None:
    for kind in (pyarrow.string_view(), pyarrow.dictionary(pyarrow.int8(), pyarrow.string())):
        column = pyarrow.array(["one", "two", "one"]).cast(kind)
        path = write(tmp_path / "rows.arrow", pyarrow.table({"instruction": column, "output": column}), None)
        assert [row.values["output"] for row in rows_of(path)] == ["one", "two", "one"]
