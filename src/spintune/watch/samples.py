"""The newest answers of a run, as they are written: prompt, reference answer, generated answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import orjson

from spintune.errors import SpintuneError
from spintune.records import Example, parse_record
from spintune.run_folder import BASELINE
from spintune.storage import is_temporary
from spintune.typed_json import JsonObject
from spintune.watch.follow import modified

SHOWN = 4
_TAIL = 1 << 20
"""Bytes at the end of a file that are looked at."""
_SEARCHED = 1 << 25
"""Bytes of the data that are searched for the prompts of pairs, which do not hold them."""

_PLACES = (
    "sft/samples.jsonl",
    "spin/baseline-sft/samples.jsonl",
    "spin/iterate-*/pairs/shards/*.jsonl",
    "spin/iterate-*/pairs/answers.jsonl",
    "spin/heldout/*/answers.jsonl",
    "eval/heldout/*/answers.jsonl",
)


@dataclass(frozen=True)
class Sample:
    """One answer. ``prompt`` is empty where it was not found."""

    prompt: str
    reference: str
    answer: str


@dataclass(frozen=True)
class Samples:
    """The newest answers, and where they come from, in words."""

    source: str
    samples: tuple[Sample, ...]


class NewestSamples:
    """Looks for the newest answers in a run folder; reads a file again only when it changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: Samples | None = None
        self._seen: tuple[Path, float] | None = None

    def look(self) -> bool:
        """Whether there are newer answers than before."""
        paths = [path for place in _PLACES for path in self.folder.glob(place) if not is_temporary(path)]
        newest = max(((modified(path), path) for path in paths), default=None)
        if newest is None:
            changed, self.found, self._seen = self.found is not None, None, None
            return changed
        at, path = newest
        if (path, at) == self._seen:
            return False
        self._seen = (path, at)
        rows = list(_last_rows(path))
        found = _samples(self.folder, path, rows)
        if found is None or found == self.found:
            return False
        self.found = found
        return True


def _last_rows(path: Path) -> Iterator[JsonObject]:
    """The last whole lines of a file."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - _TAIL))
            block = file.read()
    except OSError:
        return
    lines = block[: block.rfind(b"\n") + 1].splitlines()
    for line in lines if size <= _TAIL else lines[1:]:
        try:
            row = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(row, dict):
            yield row


def _samples(folder: Path, path: Path, rows: list[JsonObject]) -> Samples | None:
    name = path.relative_to(folder).parts
    if path.name == "samples.jsonl":
        last = rows[-1].get("step") if rows else None
        kept = [row for row in rows if row.get("step") == last]
        title = "SFT" if name[0] == "sft" else f"Further SFT ({BASELINE})"
        return _answered(f"{title}, step {last:,}" if isinstance(last, int) else title, kept[:SHOWN])
    if name[0] == "eval":
        return _answered(f"Held-out prompts, answered by {name[2]}", rows[-SHOWN:])
    heldout = name[1] == "heldout"
    source = f"Held-out prompts, answered by {name[2]}" if heldout else f"Pairs of iteration {name[1].split('-')[1]}"
    pairs = [row for row in rows if isinstance(row.get("real"), dict) and row.get("generated")][-SHOWN:]
    ids = [str(row.get("example_id")) for row in pairs]
    files = ["data/heldout.jsonl"] if heldout else ["data/train.jsonl", "data/heldout.jsonl"]
    prompts = _prompts(folder, files, set(ids))
    told = [
        {"prompt": prompts.get(id, ""), "reference": row["real"].get("text"), "answer": row["generated"][0].get("text")}
        for id, row in zip(ids, pairs, strict=True)
    ]
    return _answered(source, told)


def _answered(source: str, rows: list[JsonObject]) -> Samples | None:
    found = [Sample(*(str(row.get(key) or "") for key in ("prompt", "reference", "answer"))) for row in rows]
    return Samples(source, tuple(found)) if found else None


def _prompts(folder: Path, files: list[str], ids: set[str]) -> dict[str, str]:
    """The last prompts of the examples ``ids``, as far as the beginning of the data has them."""
    found: dict[str, str] = {}
    for name in files:
        for example in _beginning(folder / name):
            if example.id in ids:
                found[example.id] = example.prompt[-1].content
            if len(found) == len(ids):
                return found
    return found


def _beginning(path: Path) -> Iterator[Example]:
    """The first examples of a file, as far as they can be read."""
    try:
        with path.open("rb") as file:
            read = 0
            for number, line in enumerate(file, 1):
                yield parse_record(line, Example, path, number)
                read += len(line)
                if read > _SEARCHED:
                    return
    except (OSError, SpintuneError):
        return
