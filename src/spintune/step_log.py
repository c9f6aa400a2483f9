"""Logs with one line for each step of a stage: ``metrics.jsonl`` and ``samples.jsonl``."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import orjson

from spintune.portable import sync
from spintune.storage import atomic_file, storage_errors

log = logging.getLogger(__name__)


class StepLog:
    """An append-only file of JSON lines with exactly one line per step of a stage, also after a crash.

    Lines are on disk after :meth:`sync` or :meth:`close`; before that a power cut may lose or zero them.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None
        self._unsynced = False

    def mend(self) -> None:
        """Drops lines that are damaged or incomplete, so that the file can be read."""
        self._keep(lambda stage, step: True)

    def rewind(self, stage: str, step: int) -> int:
        """Drops an incomplete last line, and the lines of ``stage`` after ``step``: those steps will run again.

        Returns the last step of the stage that the file has, 0 for none.
        """
        last = 0

        def wanted(of: str, number: int) -> bool:
            nonlocal last
            if of == stage and number <= step:
                last = max(last, number)
            return of != stage or number <= step

        self._keep(wanted)
        return last

    def _keep(self, wanted: Callable[[str, int], bool]) -> None:
        """Keeps the lines whose stage and step are wanted. Damaged lines before the last are told."""
        self.close()
        if not self.path.exists():
            return
        *lines, torn = self.path.read_bytes().split(b"\n")
        places = [_place(line) for line in lines]
        if damaged := places.count(None):
            log.warning("%s: %d damaged lines are left out; the weights do not depend on them", self.path, damaged)
        kept = [line for line, place in zip(lines, places, strict=True) if place and wanted(*place)]
        if torn or len(kept) < len(lines):
            with atomic_file(self.path) as file:
                file.writelines(line + b"\n" for line in kept)

    def append(self, stage: str, step: int, **facts: object) -> None:
        """Writes the line of one step."""
        with storage_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab")
            self._file.write(orjson.dumps({"stage": stage, "step": step, **facts}) + b"\n")
            self._file.flush()
            self._unsynced = True

    def sync(self) -> None:
        """Puts what was appended on disk, where a power cut does not reach it."""
        if self._file is not None and self._unsynced:
            with storage_errors(self.path):
                os.fsync(self._file.fileno())
                sync(self.path.parent)  # the file may be new there
            self._unsynced = False

    def close(self) -> None:
        """Puts the lines on disk and closes the file; the next line opens it again."""
        self.sync()
        file, self._file = self._file, None
        if file is not None:
            with storage_errors(self.path):  # closing writes what a full disk refused before
                file.close()


def _place(line: bytes) -> tuple[str, int] | None:
    """Stage and step of a line; None when it is damaged."""
    try:
        row = orjson.loads(line)
    except orjson.JSONDecodeError:
        return None
    stage, step = (row.get("stage"), row.get("step")) if isinstance(row, dict) else (None, None)
    return (stage, step) if isinstance(stage, str) and type(step) is int else None
