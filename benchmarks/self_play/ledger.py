"""A study that can be stopped: one JSON line for each finished unit, and the same command goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Facts = Mapping[str, Any]  # JSON


@dataclass(frozen=True)
class Unit:
    """A piece of work with a name of its own. It must not depend on which units came before."""

    key: str
    work: Callable[[], Facts]


class Ledger:
    """The file of finished units. Its first line holds the settings that decide their numbers."""

    def __init__(self, path: Path, settings: Facts) -> None:
        self.path, self.done = path, dict[str, Facts]()
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last one may have been cut by a kill
        if not whole:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"settings": settings}) + "\n")
        elif json.loads(whole[0]) != json.loads(json.dumps({"settings": settings})):
            raise SystemExit(f"{path}: made with other settings; give another --out, or delete it")
        elif len(whole) < len(lines):
            path.write_text("".join(whole))
        for line in whole[1:]:
            row = json.loads(line)
            self.done[row["key"]] = row["facts"]

    def run(self, units: Sequence[Unit]) -> Mapping[str, Facts]:
        """Facts of all units by key; those that are missing are worked out in turn."""
        missing = [unit for unit in units if unit.key not in self.done]
        began = time.monotonic()
        for number, unit in enumerate(missing, 1):
            started = time.monotonic()
            facts = unit.work()
            with self.path.open("a") as file:
                file.write(json.dumps({"key": unit.key, "facts": facts}) + "\n")
            self.done[unit.key] = facts
            now = time.monotonic()
            left = (now - began) / number * (len(missing) - number) / 60
            print(
                f"{len(units) - len(missing) + number}/{len(units)} {unit.key}: {now - started:.0f} s; "
                f"about {left:.0f} min left",
                file=sys.stderr,
                flush=True,
            )
        return {unit.key: self.done[unit.key] for unit in units}
