"""A small recipe of the tiny model in a file, and a sweep of it in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from one_thread import one_thread_alone


@pytest.fixture(scope="package", autouse=True)
def one_thread() -> Iterator[None]:
    """Every test here computes on one thread."""
    with one_thread_alone():
        yield


@pytest.fixture
def recipe(tmp_path: Path, tiny_model: Path, alpaca_file: Path) -> Callable[..., Path]:
    """SFT of three steps, one iteration, and likelihoods; with changes by section."""

    def write(**changes: Any) -> Path:
        values: dict[str, Any] = {
            "out": str(tmp_path / "run"),
            "model": str(tiny_model),
            "data": {"train": {"path": str(alpaca_file), "limit": 20}, "max_length": 96, "eval_fraction": 0.2},
            "sft": {"tokens_per_step": 128, "max_steps": 3, "learning_rate": 1e-3, "checkpoint_minutes": 0.0},
            "spin": {"pairs_per_step": 8, "max_new_tokens": 8, "learning_rate": 1e-3, "checkpoint_minutes": 0.0},
        }
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(values.get(key), dict) and value else value
        path = tmp_path / "small.yaml"
        path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))
        return path

    return write
