"""The bytes of data files: decompressed, and refused where they are plainly something else."""

from __future__ import annotations

import bz2
import contextlib
import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.resources.abc import Traversable
from pathlib import Path, PurePath
from typing import IO, TYPE_CHECKING, cast

from spintune.errors import DataError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

MAX_ROW = 64_000_000
"""A longer row is no row of text. [bytes]"""

_HEAD = 1024  # bytes that show what a file is
_MOST_TIMES = 300  # of its size that a small file may expand to; text compresses 3 to 30 times
_ALWAYS_FINE = 1_000_000_000  # bytes that any file may expand to
_LFS = b"version https://git-lfs"
_HTML = (b"<!doctype html", b"<html")
_MAGIC = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"\xfd7zXZ": ".xz"}


def _open_zstd(path: Path) -> IO[bytes]:
    import pyarrow

    stream = pyarrow.input_stream(str(path), compression="zstd")
    return io.BufferedReader(cast(io.RawIOBase, stream), 1 << 20)  # a NativeFile has what BufferedReader calls


_OPENERS: dict[str, Callable[[Path], IO[bytes]]] = {
    ".gz": lambda path: cast(IO[bytes], gzip.GzipFile(path)),
    ".zst": _open_zstd,
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
}
COMPRESSIONS = tuple(_OPENERS)
"""Suffixes of compressed files, which come after the suffix of the kind."""


@dataclass(frozen=True)
class DataFile:
    """One file with rows.

    Attributes:
        path: what errors call it.
        file: where it is.
        row_keys: keys that its rows are known to have.
    """

    path: str
    file: Path | Traversable
    row_keys: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """The suffix that names the kind of file, in lower case: ".jsonl" for ``rows.jsonl.gz``."""
        return kind_and_compression(self.file.name)[0]

    @property
    def compression(self) -> str:
        """The suffix that names the compression, "" without one."""
        return kind_and_compression(self.file.name)[1]

    @contextlib.contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the decompressed bytes. Raises DataError when they cannot be read or decompressed."""
        try:
            with self._raw() as stream:
                yield cast(IO[bytes], io.BufferedReader(_Limited(self, stream))) if self.compression else stream
        except (OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            if not self.compression:
                raise self._unreadable(error) from error
            text = " ".join(str(error).split())
            raise DataError(
                f"{self.path}: damaged or incomplete {self.compression} file ({text}); download or compress it again"
            ) from error

    def read(self) -> bytes:
        """All decompressed bytes. Raises DataError as :meth:`open`."""
        with self.open() as stream:
            return stream.read()

    def may_exceed(self, size: int) -> bool:
        """Whether it may have more bytes than that, decompressed."""
        return bool(self.compression) or (isinstance(self.file, Path) and self.file.stat().st_size > size)

    def check_expansion(self, size: int) -> None:
        """Refuses a small file of which ``size`` bytes were read: it is made to fill the memory. Raises DataError."""
        if size <= _ALWAYS_FINE or not isinstance(self.file, Path):
            return
        if size > _MOST_TIMES * self.file.stat().st_size:
            raise DataError(
                f"{self.path}: expands to more than {_MOST_TIMES} times its size, as no text does; do not use this file"
            )

    def check(self) -> None:
        """Raises DataError for a file that may not be read, and for what takes the place of data by mistake."""
        try:
            with self.file.open("rb") as stream:
                head = stream.read(_HEAD)
        except OSError as error:
            raise self._unreadable(error) from error
        if head.startswith(_LFS):
            raise DataError(
                f"{self.path}: a Git LFS pointer in place of the data; run git lfs pull there, or download the file"
            )
        if head.removeprefix(b"\xef\xbb\xbf").lstrip().lower().startswith(_HTML):
            raise DataError(
                f"{self.path}: a web page (HTML) in place of the data; download the file itself, on the hub by its "
                "address with /resolve/ in place of /blob/"
            )
        found = next((suffix for magic, suffix in _MAGIC.items() if head.startswith(magic)), "")
        if found and not self.compression:
            raise DataError(f"{self.path}: a compressed file; rename it to {self.file.name}{found}")
        if self.compression and head and not found:
            name = PurePath(self.file.name).stem
            raise DataError(f"{self.path}: not a {self.compression} file; if it is not compressed, rename it to {name}")

    def _raw(self) -> IO[bytes]:
        if isinstance(self.file, Path) and self.compression and self.file.stat().st_size:
            return _OPENERS[self.compression](self.file)
        return self.file.open("rb")

    def _unreadable(self, error: BaseException) -> DataError:
        reason = getattr(error, "strerror", None) or error
        return DataError(f"{self.path}: cannot be read ({reason}); check its permissions")


class _Limited(io.RawIOBase):
    """A decompressed stream that ends with an error where a file expands too much."""

    def __init__(self, file: DataFile, stream: IO[bytes]) -> None:
        self._file, self._stream, self._size = file, stream, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        data = self._stream.read(len(memoryview(buffer)))
        self._size += len(data)
        self._file.check_expansion(self._size)
        memoryview(buffer)[: len(data)] = data
        return len(data)


def kind_and_compression(name: str) -> tuple[str, str]:
    """The suffixes of a file's name that name its kind and its compression: (".jsonl", ".gz"), (".csv", "")."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSIONS:
        return PurePath(path.stem).suffix, path.suffix
    return path.suffix, ""
