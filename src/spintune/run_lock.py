"""The lock of a run folder: one process works in it, and one that is killed leaves a mark."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path
from typing import BinaryIO

from spintune.errors import RunError
from spintune.portable import try_lock
from spintune.storage import open_unlinked, storage_errors

log = logging.getLogger(__name__)


class RunLock:
    """The file ``run.lock`` of a folder. It is empty while no process works there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: BinaryIO | None = None

    def take(self) -> None:
        """Locks the folder, and says if the last process was killed there, since nobody else can.

        Raises RunError when another process holds it, StorageError when the file cannot be opened.
        """
        with storage_errors(self.folder):
            file = open_unlinked(self.folder / "run.lock", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        try:
            try_lock(file.fileno())
        except BlockingIOError:
            file.close()
            raise RunError(
                f"{self.folder} is in use by another spintune process; wait for it or choose another out="
            ) from None
        except OSError as error:  # NFS without its lock daemon, Lustre without -o flock
            log.warning(
                "%s: this file system has no locks (%s); do not start a second run here", self.folder, error.strerror
            )
        if os.fstat(file.fileno()).st_size:
            log.warning(
                "%s: the last command was killed, often because memory ran out, or the power failed; "
                "going on from what is finished",
                self.folder,
            )
        self._file = file
        self._mark(b"in use\n")

    def release(self) -> None:
        """Gives the folder back."""
        if self._file:
            self._mark(b"")
            self._file.close()

    def _mark(self, text: bytes) -> None:
        if self._file:
            with contextlib.suppress(OSError):  # a full disk does not keep a finished run from being read
                os.ftruncate(self._file.fileno(), 0)
                os.write(self._file.fileno(), text)
