"""What a run folder holds, without what depends on the clock: equal for equal runs."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

Tree = dict[str, Any]


def run_contents(out: Path) -> Tree:
    """What a run computed: the digest of every file, without times of change and durations."""
    tree: Tree = {}
    for file in sorted(path for path in out.rglob("*") if path.is_file()):
        name = str(file.relative_to(out))
        if file.name == "metrics.jsonl":
            tree[name] = [_timeless(json.loads(line)) for line in file.read_text().splitlines()]
        elif file.name == "results.json":
            tree[name] = {**_timeless(json.loads(file.read_text())), "models": None}
        elif file.name == "manifest.json":
            manifest = json.loads(file.read_text())
            digests = {key: entry["sha256"] for key, entry in manifest["files"].items()}
            tree[name] = _timeless({**manifest, "files": digests, "sha256": None})  # its digest is of times too
        else:
            tree[name] = hashlib.sha256(file.read_bytes()).hexdigest()
    return tree


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(item) for key, item in value.items() if key not in ("seconds", "hardware", "waiting")}
    return [_timeless(item) for item in value] if isinstance(value, list) else value
