"""A sample of the crash regime; ``make crash`` runs all of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from crash import shim

TESTS = Path(__file__).resolve().parents[1]


@pytest.mark.slow
@pytest.mark.skipif(bool(shim.missing()), reason=shim.missing() or "")
def test_disturbed_runs_end_as_undisturbed_ones() -> None:
    """Kills, failed calls, power cuts and damage of small runs, and of LoRA with dropout."""
    everything = ["--recipe", "small", "--recipe", "lora", "--count", "1"]
    everything += [word for kind in ("kill", "nth", "fail", "cut") for word in ("--kind", kind)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(
        [sys.executable, "-m", "crash", *everything], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1].split()[0] == "all"
