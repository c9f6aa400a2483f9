"""What a plan says beside what a whole run held, by the system's own count. Each runs in processes of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks/plan.py"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the system does not count as Linux does"),
]


@pytest.mark.parametrize("name", ["12M, sft, 2048 tokens", "135M, sft, 256 tokens"])
def test_a_plan_is_within_15_percent_of_the_most_that_a_run_held(name: str, smollm2: Path, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    subprocess.run([sys.executable, SCRIPT, "--only", name, "--report", report], check=True, stdout=subprocess.DEVNULL)
    found = json.loads(report.read_text())[name]
    assert found["planned"] == pytest.approx(found["measured"], rel=0.15)
