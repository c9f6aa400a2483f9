"""Output that may lose its reader, such as ``spintune run ... | head`` or a terminal that was closed."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from typing import TextIO, cast


@contextlib.contextmanager
def lasting_output() -> Iterator[None]:
    """Inside, what is printed after the reader has gone is lost, and the work goes on."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _lasting(sys.stdout, 1), _lasting(sys.stderr, 2)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # a caller may have closed them
            sys.stdout.flush()
            sys.stderr.flush()
        sys.stdout, sys.stderr = before


def _lasting(stream: TextIO | None, descriptor: int) -> TextIO:
    if stream is None:  # closed by the shell (>&-); the next file that is opened must not get its number
        _to_nowhere(descriptor)
        stream = os.fdopen(descriptor, "w")
    return cast(TextIO, _LastingStream(stream))


def _to_nowhere(descriptor: int) -> None:
    nowhere = os.open(os.devnull, os.O_WRONLY)
    if nowhere != descriptor:
        os.dup2(nowhere, descriptor)
        os.close(nowhere)


class _LastingStream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._reader_may_be_gone():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._reader_may_be_gone():
            self._stream.flush()

    @contextlib.contextmanager
    def _reader_may_be_gone(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise
            _to_nowhere(self._stream.fileno())  # what the stream still holds goes there too
