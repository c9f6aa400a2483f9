"""One file of a finished or half-finished run is damaged: a byte changed, the file cut, or deleted."""

from __future__ import annotations

import random
from pathlib import Path

QUIET_WAYS = ("a byte changed", "another byte changed")
WAYS = (*QUIET_WAYS, "cut", "deleted")


def files(disk: Path) -> list[Path]:
    """The files that may be damaged, in an order that is the same for every run of a recipe; not the empty ones."""
    return sorted(path for path in disk.rglob("*") if path.is_file() and path.stat().st_size)


def damage(path: Path, way: str, draw: random.Random) -> str:
    """Damages a file; says how."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    if way == "deleted":
        path.unlink()
        return "deleted"
    if way == "cut":
        path.write_bytes(content[:place])
        return f"cut to {place} of {len(content)} bytes"
    before = content[place]
    content[place] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    return f"byte {place} of {len(content)}: {before:#04x} became {content[place]:#04x}"
