"""Whole runs on the tiny model: the recipe, what a run leaves behind, and the command in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_thread import one_thread_alone
from run_contents import Tree, run_contents


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Every test here computes on one thread."""
    with one_thread_alone():
        yield


@pytest.fixture(scope="session")
def many(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A data section of 120 examples, half of them held out: enough to choose a model by."""
    words = ["fox", "dog", "owl", "cat", "bee", "ant", "hen", "cow", "pig", "elk"]
    rows = [
        {"instruction": f"Say {word} {count} times.", "output": " ".join([word] * (count % 4 + 1))}
        for word in words
        for count in range(12)
    ]
    path = tmp_path_factory.mktemp("many") / "animals.json"
    path.write_text(json.dumps(rows))
    return {"train": str(path), "eval_fraction": 0.5}


@pytest.fixture(scope="session")
def values(tiny_model: Path, alpaca_file: Path) -> Callable[..., dict[str, Any]]:
    """A small recipe with SFT, two iterations and evaluation, as plain values; a checkpoint after every step."""

    def build(out: Path, **changes: Any) -> dict[str, Any]:
        recipe: dict[str, Any] = {
            "out": str(out),
            "model": str(tiny_model),
            "data": {"train": str(alpaca_file), "max_length": 96, "eval_fraction": 0.2},
            "sft": {"tokens_per_step": 128, "learning_rate": 1e-3, "checkpoint_minutes": 0.0},
            "spin": {
                "iterations": 2,
                "pairs_per_step": 8,
                "max_new_tokens": 12,
                "learning_rate": 1e-3,
                "checkpoint_minutes": 0.0,
            },
        }
        for key, value in changes.items():
            if isinstance(value, dict) and isinstance(recipe.get(key), dict):
                merged = {**recipe[key], **value}
                recipe[key] = {name: setting for name, setting in merged.items() if setting is not None}
            else:
                recipe[key] = value
        return {key: value for key, value in recipe.items() if value is not None}

    return build


@pytest.fixture(scope="session")
def run(values: Callable[..., dict[str, Any]], cache: Path) -> Callable[..., dict[str, Any]]:
    """Runs the small recipe, with changes, in this process; gives its results as JSON."""
    from spintune.pipeline import run_recipe
    from spintune.progress import Silent
    from spintune.recipe import parse_recipe
    from spintune.typed_json import to_json

    def execute(out: Path, progress: Any = None, until: Any = "eval", **changes: Any) -> dict[str, Any]:
        recipe = parse_recipe(values(out, **changes), "test")
        return to_json(run_recipe(recipe, cache, progress or Silent(), until))

    return execute


@pytest.fixture(scope="package")
def finished(one_thread: None, run: Callable[..., dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one uninterrupted run; not to be written to."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(out)
    return out


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], Tree]:
    """What a run computed: the digest of every file, without times of change and durations."""
    return run_contents
