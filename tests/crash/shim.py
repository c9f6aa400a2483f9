"""The library that stands between a process and the disk (disk.cpp): how it is compiled, and what its log says."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("disk.cpp")
NAMES = ("refused", "open", "write", "sync", "rename", "unlink", "rmdir", "mkdir", "truncate", "link", "moved")
WATCH, KILL, FAIL_ONCE, FAIL_ON, SIGNAL = range(5)


def missing() -> str | None:
    """Why the library cannot be compiled here; None if it can."""
    if not sys.platform.startswith("linux"):
        return "the regime needs Linux"
    return None if compiler() else "there is no C++ compiler (g++ or c++)"


def compiler() -> str | None:
    return next(filter(None, map(shutil.which, (os.environ.get("CXX", "g++"), "c++"))), None)


def build(folder: Path) -> Path:
    """Compiles the library into ``folder``."""
    target = folder / "disk.so"
    command = [compiler() or "g++", "-std=c++17", "-O2", "-fPIC", "-shared", str(SOURCE), "-o", str(target)]
    subprocess.run([*command, "-lrt", "-lpthread"], check=True)
    return target


@dataclass(frozen=True)
class Operation:
    """One operation of the log. Those that the kernel refused (a file that is not there) are in it as well.

    Attributes:
        number: offset of a write, size of a truncate, flags of an open.
        data: what was written.
    """

    name: str
    path: str
    other: str
    number: int
    data: bytes

    @property
    def counted(self) -> bool:
        """Whether the shim could kill or fail it; a rename that it saw only later it could not."""
        return self.name != "moved"

    @property
    def changes(self) -> bool:
        """Whether a process that is killed after it leaves another disk than one that is killed before it."""
        return self.name not in ("refused", "sync")


def read_log(path: Path) -> Iterator[Operation]:
    """The operations in their order."""
    content, place = path.read_bytes(), 0
    head = struct.Struct("=5q")
    while place < len(content):
        what, first, second, number, size = head.unpack_from(content, place)
        names = place + head.size
        begin = names + first + second
        yield Operation(
            NAMES[what],
            os.fsdecode(content[names : names + first]),
            os.fsdecode(content[names + first : begin]),
            number,
            content[begin : begin + size],
        )
        place = begin + size
