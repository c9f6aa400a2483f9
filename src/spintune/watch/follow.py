"""Follows files that another process writes, perhaps on another machine: by size and content, without locks."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from spintune.portable import read_part
from spintune.typed_json import JsonObject

_TAIL = 64
"""Bytes before the place of reading that must be as they were, or the file is another one."""
_BLOCK = 1 << 24
MAX_ROWS = 20_000
"""Of a stage. Above it, every second one of the earlier rows is left out: a curve has fewer points than that."""


@dataclass
class GrowingLines:
    """A file of JSON lines that grows, is replaced, or is not there yet."""

    path: Path
    _offset: int = 0
    _file: tuple[int, int] = (0, 0)
    _tail: bytes = b""

    def new_rows(self) -> tuple[bool, list[JsonObject]]:
        """Whether the file began anew, so that earlier rows do not count, and the rows since the last look.

        A last line without its end is left for the next look; lines that are no JSON objects are left out.
        """
        restarted, rows = False, []
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if self._offset and not self._goes_on(status, file.fileno()):
                    restarted, self._offset, self._tail = True, 0, b""
                self._file = (status.st_dev, status.st_ino)
                file.seek(self._offset)
                while block := _whole_lines(file.read(_BLOCK)):
                    rows += list(_parsed(block))
                    self._offset += len(block)
                    self._tail = (self._tail + block)[-_TAIL:]
                    file.seek(self._offset)
        except OSError:  # deleted, or replaced on a network file system at this moment
            restarted, self._offset, self._tail = self._offset > 0, 0, b""
            return restarted, []
        return restarted, rows

    def _goes_on(self, status: os.stat_result, descriptor: int) -> bool:
        if (status.st_dev, status.st_ino) != self._file or status.st_size < self._offset:
            return False
        return read_part(descriptor, len(self._tail), self._offset - len(self._tail)) == self._tail


def _whole_lines(block: bytes) -> bytes:
    return block[: block.rfind(b"\n") + 1]


def _parsed(block: bytes) -> Iterator[JsonObject]:
    for line in block.splitlines():
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


@dataclass
class LiveMetrics:
    """The rows of metrics.jsonl by stage, as far as they are written."""

    path: Path
    by_stage: dict[str, list[JsonObject]] = field(default_factory=dict)
    _lines: GrowingLines | None = None

    def look(self) -> bool:
        """Reads on. Returns whether anything changed."""
        self._lines = self._lines or GrowingLines(self.path)
        restarted, rows = self._lines.new_rows()
        if restarted:
            self.by_stage.clear()
        for row in rows:
            if isinstance(row.get("stage"), str) and _drawable(row):
                self.by_stage.setdefault(row["stage"], []).append(row)
        for stage, known in self.by_stage.items():
            if len(known) > MAX_ROWS:
                half = MAX_ROWS // 2
                self.by_stage[stage] = [*known[:half:2], *known[half:]]
        return restarted or bool(rows)


def _drawable(row: JsonObject) -> bool:
    numbers = [value for key, value in row.items() if key != "stage"]
    return isinstance(row.get("step"), int) and all(one is None or isinstance(one, int | float) for one in numbers)


def modified(path: Path) -> float:
    """When a file was changed last, by the clock of its file system; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
