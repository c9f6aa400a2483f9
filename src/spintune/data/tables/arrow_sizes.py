"""What Arrow data takes once it is decompressed and decoded, found out before it is.

A file of the Arrow format holds messages, each of metadata and buffers. Buffers may be compressed, and each begins with
its size before compression. In memory, values of dictionaries and views are shared: a text of 30 MB may come a thousand
times. Python objects share nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow
    from numpy.typing import NDArray

    Sizes = NDArray[np.int64] | int
    """Bytes of each value, or of every one."""

_SCALAR = 8  # bytes of a value that is no text and holds no others, null included
_CONTINUATION = b"\xff\xff\xff\xff"


# Messages ------------------------------------------------------------------------------------------------------------


def decompressed_sizes(source: pyarrow.NativeFile, is_file: bool) -> Iterator[int]:
    """The bytes that each message takes in memory, in the order of the file.

    Args:
        is_file: whether ``source`` is a file with an index at its end, and not a stream.

    Raises ValueError for metadata that cannot be read.
    """
    try:
        for at in _blocks(source) if is_file else _stream(source):
            yield _decompressed(source, at)
    except (struct.error, OverflowError, IndexError) as error:
        raise ValueError(f"damaged metadata: {error}") from error


def _blocks(source: pyarrow.NativeFile) -> Iterator[int]:
    """Where the messages begin, by the index at the end of a file."""
    end = source.size() - 10  # the index's size, and "ARROW1"
    (size,) = struct.unpack("<i", _read(source, 4, end))
    footer = _Table.root(_read(source, size, end - size))
    for field in (2, 3):  # dictionaries, batches of rows
        for place in footer.vector(field, 24):
            yield footer.unpack("<q", place)


def _stream(source: pyarrow.NativeFile) -> Iterator[int]:
    """Where the messages of a stream begin."""
    at, end = 0, source.size()
    while at + 8 <= end:
        start, size = _metadata(source, at)
        if not size:
            return
        yield at
        at = start + size + max(0, _Table.root(_read(source, size, start)).number(3, "<q"))


def _metadata(source: pyarrow.NativeFile, at: int) -> tuple[int, int]:
    """Where the metadata of a message begins, and its size."""
    head = _read(source, 8, at)
    if head[:4] == _CONTINUATION:
        return at + 8, struct.unpack("<i", head[4:8])[0]
    return at + 4, struct.unpack("<i", head[:4])[0]  # written before Arrow 0.15


def _decompressed(source: pyarrow.NativeFile, at: int) -> int:
    """Bytes that the buffers of the message at ``at`` take in memory."""
    start, size = _metadata(source, at)
    message = _Table.root(_read(source, size, start))
    kind, batch = message.number(1, "<B"), message.table(2)
    if kind == 2 and batch is not None:  # a dictionary
        batch = batch.table(1)
    if kind not in (2, 3) or batch is None:
        return 0
    body, compressed, total = start + size, batch.table(3) is not None, 0
    for place in batch.vector(2, 16):
        offset, length = batch.unpack("<q", place), batch.unpack("<q", place + 8)
        if compressed and length >= 8:
            (stated,) = struct.unpack("<q", _read(source, 8, body + offset))
            total += length if stated == -1 else max(0, stated)  # -1: this buffer is not compressed
        else:
            total += max(0, length)
    return total


def _read(source: pyarrow.NativeFile, size: int, at: int) -> bytes:
    if not 0 <= size <= source.size() or at < 0:
        raise struct.error("a size or place outside of the file")
    found: bytes = source.read_at(size, at)
    return found


class _Table:
    """A table of the FlatBuffers format: offsets of its fields stand before them, in a table of their own."""

    def __init__(self, data: bytes, at: int) -> None:
        self._data, self._at = data, at
        self._offsets = at - self.unpack("<i", at)

    @classmethod
    def root(cls, data: bytes) -> _Table:
        return cls(data, struct.unpack_from("<I", data)[0])

    def unpack(self, kind: str, at: int) -> int:
        if at < 0:
            raise struct.error("an offset before the beginning")
        return int(struct.unpack_from(kind, self._data, at)[0])

    def _field(self, number: int) -> int | None:
        """Where a field is; None where the table has none."""
        entry = 4 + 2 * number
        if entry + 2 > self.unpack("<H", self._offsets):
            return None
        offset = self.unpack("<H", self._offsets + entry)
        return self._at + offset if offset else None

    def number(self, field: int, kind: str) -> int:
        at = self._field(field)
        return 0 if at is None else self.unpack(kind, at)

    def table(self, field: int) -> _Table | None:
        at = self._field(field)
        return None if at is None else _Table(self._data, at + self.unpack("<I", at))

    def vector(self, field: int, width: int) -> range:
        """Where the entries of a vector are, each of ``width`` bytes."""
        at = self._field(field)
        if at is None:
            return range(0)
        first = at + self.unpack("<I", at) + 4
        return range(first, first + width * self.unpack("<I", first - 4), width)


# Values --------------------------------------------------------------------------------------------------------------


def refused_type(kind: pyarrow.DataType) -> pyarrow.DataType | None:
    """A type in ``kind`` that is not read: values that take no space of their own may come any number of times."""
    import pyarrow.types as types

    views = types.is_list_view(kind) or types.is_large_list_view(kind)
    if views or types.is_run_end_encoded(kind) or types.is_union(kind):
        return kind
    inner = [kind.value_type] if types.is_dictionary(kind) else [kind.field(n).type for n in range(kind.num_fields)]
    return next(filter(None, map(refused_type, inner)), None)


def shares(kind: pyarrow.DataType) -> bool:
    """Whether values of a type may take less space in Arrow's memory than as Python objects, many times."""
    import pyarrow.types as types

    if types.is_dictionary(kind) or types.is_null(kind) or _is_view(kind):
        return True
    return any(shares(kind.field(place).type) for place in range(kind.num_fields))


def decoded_size(array: pyarrow.Array) -> int:
    """About the bytes that the values of an array take as Python objects."""
    sizes = _sizes(array)
    return sizes * len(array) if isinstance(sizes, int) else int(sizes.sum())


def _sizes(array: pyarrow.Array) -> Sizes:
    import numpy as np
    import pyarrow.types as types

    kind = array.type
    if types.is_dictionary(kind):
        of_value = _sizes(array.dictionary)
        if isinstance(of_value, int) or not len(of_value):
            return of_value if isinstance(of_value, int) else _SCALAR
        places = array.indices.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        return of_value[places]
    if types.is_struct(kind):
        fields = [_sizes(array.field(place)) for place in range(kind.num_fields)]
        total: Sizes = _SCALAR
        for sizes in fields:
            total = total + sizes
        return total
    if types.is_fixed_size_list(kind):
        return _summed(_sizes(array.flatten()), np.arange(len(array) + 1) * kind.list_size)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_map(kind):
        offsets = array.offsets.to_numpy().astype(np.int64)
        inner = array.values.slice(offsets[0], offsets[-1] - offsets[0])
        return _summed(_sizes(inner), offsets - offsets[0])
    return _text_sizes(array)


def _summed(sizes: Sizes, offsets: NDArray[np.int64]) -> Sizes:
    """The bytes of lists, from those of what is in them."""
    import numpy as np

    if isinstance(sizes, int):
        return _SCALAR + sizes * np.diff(offsets)
    return _SCALAR + np.diff(np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])[offsets])


def _text_sizes(array: pyarrow.Array) -> Sizes:
    import numpy as np
    import pyarrow.compute
    import pyarrow.types as types

    kind = array.type
    if _is_view(kind):  # 16 bytes for each value, the first four its length
        buffer = array.buffers()[1]
        views = np.frombuffer(buffer, np.int32)[::4][array.offset : array.offset + len(array)]
        return views.astype(np.int64) + _SCALAR
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        lengths = pyarrow.compute.binary_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        return lengths.astype(np.int64) + _SCALAR
    return _SCALAR


def _is_view(kind: pyarrow.DataType) -> bool:
    import pyarrow.types as types

    return bool(types.is_string_view(kind) or types.is_binary_view(kind))
