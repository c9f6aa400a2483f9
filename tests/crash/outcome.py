"""What a run computed, and whether two runs computed the same."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from crash.machine import Ending

Tree = dict[str, Any]

TIMES = ("seconds", "hardware", "cost", "mtime_ns")
"""Keys of what another run of a recipe need not repeat: times, and what a repeated question to a teacher cost."""

CARDS = ("card.json", "card.md")
"""Files that tell costs. Their digests are not compared; of card.md, every line but that one is."""

LOGS = ("metrics.jsonl", "samples.jsonl")
"""What is told while a run goes on and nothing is made from: who damages it damages nothing else."""

_JOURNALS = ("-wal", "-shm")
"""What SQLite keeps beside a file; it belongs to the file's content."""

_TEMPORARY = re.compile(r"partial|checkpoints|shards|rounds|\.tmp|-journal$|-wal$|-shm$")


@dataclass(frozen=True)
class Verdict:
    """How a disturbed run ended: as an undisturbed one, with one clear line, or in a third way, which is a fault."""

    kind: Literal["equal", "refused", "DIFFERENT"]
    why: str = ""


def contents(disk: Path, damaged: str | None = None) -> Tree:
    """Every file below a folder that is a result, by name: its digest, or its values without times. No caches.

    Args:
        damaged: name of a file to leave out.
    """
    files = {str(path.relative_to(disk)): path for path in sorted(disk.rglob("*")) if path.is_file()}
    left_out = (damaged, *(f"{name}{end}" for name in files if name.endswith(".sqlite") for end in _JOURNALS))
    kept = {name: path for name, path in files.items() if name not in left_out and not name.startswith("cache/")}
    return {name: _content(path) for name, path in kept.items()}


def _content(path: Path) -> Any:
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return sorted((_timeless(row) for row in rows), key=lambda row: (row["stage"], row["step"]))
    if path.suffix == ".json":
        try:
            value = _timeless(json.loads(path.read_text()))
        except ValueError as error:
            raise ValueError(f"{path.name} in {path.parent.name}: {error}") from None
        if path.name == "manifest.json":  # the rest is its own digest, and the version that wrote it
            files = {name: facts for name, facts in value["files"].items() if name not in CARDS}
            return {**{key: value[key] for key in ("stage", "inputs", "facts")}, "files": files}
        return value
    if path.name == "card.md":
        return [line for line in path.read_text().splitlines() if not line.startswith("Asked ")]
    if path.suffix == ".sqlite":
        return _outcomes(path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _outcomes(path: Path) -> Any:
    """Stored replies, of which SQLite may have left some in its journal. A copy is opened, since opening changes it."""
    with tempfile.TemporaryDirectory() as folder:
        for part in path.parent.glob(f"{path.name}*"):
            shutil.copy(part, folder)
        with closing(sqlite3.connect(Path(folder) / path.name)) as database:
            return sorted(database.execute("SELECT key, outcome FROM outcomes"))


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in TIMES}
    return [_timeless(item) for item in value] if isinstance(value, list) else value


def judge(ending: Ending, disk: Path, expected: Tree, damaged: str | None = None) -> Verdict:
    """The verdict on a command, after whatever happened before it.

    Args:
        damaged: name of a log that was damaged before.
    """
    if fault := _misbehaved(ending):
        return Verdict("DIFFERENT", fault)
    if ending.code:
        return Verdict("refused", _lines(ending)[-1])
    found = differences(disk, expected, damaged)
    return Verdict("DIFFERENT", "; ".join(found[:4])) if found else Verdict("equal")


def _misbehaved(ending: Ending) -> str | None:
    """What no command may do however it ends; None if it did nothing of it."""
    if ending.hung:
        return "it did not end"
    if ending.code < 0:
        return f"it died of signal {-ending.code}"
    if "Traceback" in ending.err:
        return f"a traceback, last line: {ending.err.strip().splitlines()[-1][:200]}"
    told = [line for line in _lines(ending) if line.startswith("spintune: ")]
    if ending.code and (len(told) != 1 or _lines(ending)[-1] != told[0]):
        return f"exit code {ending.code} with {len(told)} lines instead of one: {ending.err[-200:]!r}"
    return None


def _lines(ending: Ending) -> list[str]:
    """What the command wrote for a reader; progress as JSON is left out."""
    return [line for line in ending.err.splitlines() if line.strip() and not line.startswith("{")]


def differences(disk: Path, expected: Tree, damaged: str | None = None) -> list[str]:
    """Where the files below a folder differ from what was expected, and which ought not to be there."""
    try:
        found = contents(disk, damaged)
    except (ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as error:
        return [f"a result cannot be read: {error}"]
    return list(_unlike(found, {key: value for key, value in expected.items() if key != damaged}))


def _unlike(found: Tree, expected: Tree) -> Iterator[str]:
    for name in sorted(found.keys() | expected.keys()):
        if name not in expected:
            yield f"{name} is left over"
        elif name not in found:
            yield f"{name} is missing"
        elif found[name] != expected[name]:
            yield f"{name} differs{_where(found[name], expected[name])}"


def _where(found: Any, expected: Any) -> str:
    """The first place at which two values differ."""
    if isinstance(found, dict) and isinstance(expected, dict):
        for key in sorted(found.keys() | expected.keys()):
            if found.get(key) != expected.get(key):
                return f" at {key}{_where(found.get(key), expected.get(key))}"
    if isinstance(found, list) and isinstance(expected, list):
        if len(found) != len(expected):
            return f" ({len(found)} entries instead of {len(expected)})"
        place = next(n for n, pair in enumerate(zip(found, expected, strict=True)) if pair[0] != pair[1])
        return f" at entry {place}{_where(found[place], expected[place])}"
    return f" ({found!r:.60} instead of {expected!r:.60})"


def faults_of_reference(disk: Path) -> list[str]:
    """What is wrong with an undisturbed run: files left over, or steps that are not there exactly once."""
    names = [str(path.relative_to(disk)) for path in disk.rglob("*")]
    found = [f"{name} is left over" for name in names if _TEMPORARY.search(name) and not name.startswith("cache")]
    metrics = disk / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in metrics.read_text().splitlines()] if metrics.exists() else []
    steps: dict[str, list[int]] = {}
    for row in rows:
        steps.setdefault(row["stage"], []).append(row["step"])
    for stage, numbers in steps.items():
        if len(set(numbers)) != len(numbers):
            found.append(f"metrics.jsonl has a step of {stage} twice")
    return found
