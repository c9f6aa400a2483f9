"""Progress that tests look at."""

from __future__ import annotations

from typing import Any

from spintune.progress import Silent


class Watching(Silent):
    """Progress that remembers what was told, and which tasks were begun."""

    def __init__(self) -> None:
        self.tasks: list[str] = []
        self.notes: list[str] = []

    def task(self, name: str, total: float, unit: str) -> Any:
        self.tasks.append(name)
        return super().task(name, total, unit)

    def note(self, text: str) -> None:
        self.notes.append(text)
