"""What the tests of data files share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from spintune.data.sources import Source, SourceResult, read_source
from spintune.errors import SpintuneError
from spintune.progress import Silent

ROW = {"instruction": "Add 2 and 3.", "output": "5"}


def numbered(*numbers: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "output": str(number)} for number in numbers]


def json_lines(rows: Sequence[Any]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


class Notes(Silent):
    """Progress that keeps its notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, text: str) -> None:
        self.lines.append(text)


def read(path: Path | str, progress: Silent | None = None, **options: Any) -> SourceResult:
    return read_source(Source(str(path), **options), progress or Silent())


def answers(path: Path | str, **options: Any) -> list[str]:
    return [example.answer for example in read(path, **options).examples]


def turns(path: Path | str, **options: Any) -> list[tuple[str, str]]:
    return [(example.prompt[-1].content, example.answer) for example in read(path, **options).examples]


def places(path: Path | str, **options: Any) -> list[str]:
    return [example.source for example in read(path, **options).examples]


def errors(path: Path | str, **options: Any) -> list[str]:
    with pytest.raises(SpintuneError) as caught:
        read(path, **options)
    return str(caught.value).splitlines()


def error(path: Path | str, **options: Any) -> str:
    (line,) = errors(path, **options)
    return line


def write_files(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder
