"""Small tasks on disk, and the real data beside the repository where there is some."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from spintune.mixtures.tasks import MixtureTask, TaskSet, load_tasks

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real input (GSM8K, FLAN chain-of-thought sets, T0 tasks) beside the repository; skips where there is none."""
    if not (SHARED / "flan_cot").is_dir():
        pytest.skip("no real data beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def real(shared: Path) -> Callable[[str], TaskSet]:
    """What a built-in task makes of the real data, read once."""
    return functools.cache(lambda name: load_tasks([name], shared))


SUMS: dict[str, Any] = {
    "file": "sums.jsonl",
    "fields": {"question": "question", "rationale": "why", "answer": "sum"},
    "check": "number",
    "direct": [{"input": "{question}", "target": "{answer}"}],
    "cot": [{"input": "{question} Explain.", "cue": "\nWhy: ", "target": "{rationale} The answer is {answer}."}],
}


def sums(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {n} plus {n + 1}?", "why": f"{n} + {n + 1} = {2 * n + 1}.", "sum": 2 * n + 1}
        for n in range(count)
    ]


@pytest.fixture
def declare(tmp_path: Path) -> Callable[..., Path]:
    """Writes a task file and its rows, and returns the task file. ``None`` removes a key."""

    def write(name: str = "sums", rows: list[dict[str, Any]] | None = None, **changes: Any) -> Path:
        values = {"name": name, **SUMS, "file": f"{name}.jsonl", **changes}
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({key: value for key, value in values.items() if value is not None}))
        lines = [json.dumps(row) for row in (sums(10) if rows is None else rows)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        return path

    return write


@pytest.fixture
def task(declare: Callable[..., Path]) -> Callable[..., MixtureTask]:
    """A task read from files that :func:`declare` writes."""

    def load(name: str = "sums", rows: list[dict[str, Any]] | None = None, **changes: Any) -> MixtureTask:
        return load_tasks([str(declare(name, rows, **changes))]).tasks[0]

    return load


@pytest.fixture
def additions(task: Callable[..., MixtureTask]) -> Callable[..., MixtureTask]:
    """A task of so many sums, with rationales."""

    def load(count: int, name: str = "sums", **changes: Any) -> MixtureTask:
        return task(name, sums(count), **changes)

    return load


@pytest.fixture
def news(task: Callable[..., MixtureTask]) -> Callable[..., MixtureTask]:
    """A task of so many headlines with four options and no rationales."""

    def load(count: int, name: str = "news", **changes: Any) -> MixtureTask:
        kinds = ["world", "sports", "business", "science"]
        rows = [{"text": f"Headline number {n}", "kind": kinds[n % 4]} for n in range(count)]
        settings: dict[str, Any] = {
            "fields": {"text": "text", "answer": "kind"},
            "check": None,
            "options": {"fixed": kinds, "optional": True},
            "direct": None,
            "cot": None,
            "phrasings": "builtin:classification",
            "collection": "muffin",
        }
        return task(name, rows, **{**settings, **changes})

    return load
