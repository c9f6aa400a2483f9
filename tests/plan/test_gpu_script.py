"""benchmarks/gpu.py, which is to run on a GPU in minutes, is rehearsed on tiny shapes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so() -> None:
    ended = run()
    assert ended.returncode == 1
    assert ended.stderr == "there is no GPU here; --rehearse tries the script out without one\n"


@pytest.mark.slow
def test_the_script_runs_is_bounded_and_goes_on(tmp_path: Path) -> None:
    report = tmp_path / "gpu.json"
    parts = ["tests", "spintune", "generation", "memory float32", "memory offload"]
    ended = run("--rehearse", "--report", report, "--minutes", 0.001, "--only", "generation")
    assert ended.returncode == 0, ended.stderr
    assert "more than 0.001 minutes" in json.loads(report.read_text())["parts"]["generation"]["failed"]
    ended = run("--rehearse", "--report", report, "--minutes", 4, "--only", ",".join(parts))
    assert ended.returncode == 0, ended.stderr
    found = json.loads(report.read_text())["parts"]
    assert {part: one.get("failed") for part, one in found.items()} == dict.fromkeys(parts)
    assert found["tests"]["passed"] > 0
    assert found["spintune"]["spin"]["first_loss"] == pytest.approx(0.6931, abs=0.02)
    assert found["memory float32"]["bytes_per_weight"] == pytest.approx(16, abs=0.5)
    assert (report.with_suffix(".md")).read_text() == ended.stdout
    before = report.read_text()
    ended = run("--rehearse", "--report", report, "--only", ",".join(parts))
    assert (ended.stderr, report.read_text()) == ("", before)  # all is there
    assert run("--rehearse", "--only", "nothing").stderr.startswith("--only: no part 'nothing'")
