"""A sweep's folder as a live page: an index of its runs, each of which has a page of its own."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

import orjson

from spintune.storage import is_temporary
from spintune.typed_json import JsonObject
from spintune.watch import parts
from spintune.watch.resources import lock_holder

SWEEP = "sweep.json"


def is_sweep(folder: Path) -> bool:
    """Whether a folder holds a sweep, or runs without being one."""
    if (folder / "recipe.json").is_file():
        return False
    return (folder / SWEEP).is_file() or bool(run_folders(folder))


def run_folders(folder: Path) -> dict[str, Path]:
    """The folders of runs inside of a folder, by name. No other name opens anything."""
    try:
        inside = sorted(folder.iterdir())
    except OSError:
        return {}
    return {path.name: path for path in inside if not is_temporary(path) and (path / "recipe.json").is_file()}


@dataclass
class WatchedSweep:
    """The folder of a sweep."""

    folder: Path
    name: str
    shown: dict[str, str] = field(default_factory=dict)

    def look(self) -> None:
        """Looks at the folder again."""
        told = _read(self.folder / SWEEP)
        states = {str(run.get("name")): run for run in told.get("runs", []) if isinstance(run, dict)}
        runs = run_folders(self.folder)
        listed = [
            parts.ListedRun(name, f"run/{quote(name, safe='')}/" if name in runs else "", _state(name, runs, states))
            for name in dict.fromkeys([*states, *runs])
        ]
        count = sum(one.text.startswith("finished") for one in listed)
        text = f"{count} of {len(listed)} runs finished"
        self.shown = dict.fromkeys(parts.PARTS, "") | {
            "title": f"{count} of {len(listed)} · {self.name}",
            "line": "" if self.folder.exists() else f"{self.folder} was deleted.",
            "head": parts.sweep_head(self.name, text, told.get("conclusion")),
            "stages": parts.sweep_runs(listed),
        }


def _state(name: str, runs: dict[str, Path], states: dict[str, JsonObject]) -> str:
    if name in runs and lock_holder(runs[name] / "run.lock") is not None:
        return "running"
    if name in states:
        why = states[name].get("reason")
        return f"{states[name].get('state')}" + (f": {why}" if why else "")
    return "finished" if (runs[name] / "results.json").is_file() else "not finished"


def _read(path: Path) -> JsonObject:
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return found if isinstance(found, dict) else {}
