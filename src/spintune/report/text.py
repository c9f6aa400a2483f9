"""Files of JSON lines, which a run may still be writing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson

from spintune.errors import RunError


def read_lines(path: Path) -> list[Mapping[str, Any]]:
    """The rows of a file. A last line without its end is being written, or was torn by a kill; it is left out.

    Raises RunError with ``path:line``.
    """
    lines = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            rows.append(orjson.loads(line))
        except orjson.JSONDecodeError as error:
            raise RunError(f"{path}:{number}: damaged ({error}); run the recipe again") from error
    return rows
