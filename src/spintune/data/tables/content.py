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
from typing import IO, cast

from spintune.errors import DataError

_HEAD = 1024  # bytes that show what a file is
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
    """

    path: str
    file: Path | Traversable

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
                yield stream
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


def kind_and_compression(name: str) -> tuple[str, str]:
    """The suffixes of a file's name that name its kind and its compression: (".jsonl", ".gz"), (".csv", "")."""
    path = PurePath(name.lower())
    if path.suffix in COMPRESSIONS:
        return PurePath(path.stem).suffix, path.suffix
    return path.suffix, ""
