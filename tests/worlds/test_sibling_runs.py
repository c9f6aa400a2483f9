"""Runs that differ in late settings only: what the first has computed, the others copy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from spintune.pipeline import run_recipe
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.run_models import written_files
from spintune.verification import verify_run

SPACE = {"spin": {"loss": "space", "iterations": 1}}


@pytest.fixture
def beside(values: Callable[..., dict[str, Any]], cache: Path) -> Callable[..., Watching]:
    """Runs the small recipe beside other runs; gives what it told."""

    def execute(out: Path, *siblings: Path, **changes: Any) -> Watching:
        notes = Watching()
        run_recipe(parse_recipe(values(out, **changes), "test"), cache, notes, siblings=siblings)
        return notes

    return execute


@pytest.mark.slow
def test_a_run_beside_another_is_that_run_alone(
    beside: Callable[..., Watching],
    run: Callable[..., Any],
    contents: Callable[[Path], Any],
    finished: Path,
    tmp_path: Path,
) -> None:
    """Bit for bit, and whole by itself, but SFT is trained and its answers are written only in the first."""
    told = beside(tmp_path / "beside", finished, **SPACE)
    run(tmp_path / "alone", **SPACE)
    assert contents(tmp_path / "beside") == contents(tmp_path / "alone")
    assert "SFT" not in told.tasks
    assert "sft answers held-out prompts" not in told.tasks
    # space learns from answers that equal the real one, so its pairs are others, but of the same answers
    assert "sft answers training prompts" not in told.tasks
    assert "SPIN iteration 1" in told.tasks
    assert "sft: copied from run, which computed it from the same inputs" in told.notes
    assert not verify_run(tmp_path / "beside", Silent()).problems
    assert written_files(tmp_path / "beside", "sft")


def test_equal_runs_train_once(
    beside: Callable[..., Watching], contents: Callable[[Path], Any], finished: Path, tmp_path: Path
) -> None:
    """Up to the seconds of work, a copy of every stage is the run."""
    told = beside(tmp_path / "out", finished)
    assert contents(tmp_path / "out") == contents(finished)
    assert told.tasks == []
