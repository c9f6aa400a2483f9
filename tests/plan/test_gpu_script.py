"""benchmarks/gpu.py, which is to run on a GPU in minutes, is rehearsed on tiny shapes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import gpu
import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "benchmarks/gpu.py"


def run(*words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_every_test_that_needs_a_gpu_is_among_its_tests() -> None:
    needs = re.compile(
        r"^ *@pytest\.mark\.skipif\([^\n]*reason=\"needs (?:a|two) GPUs?\"\)\n(?:^ *@.*\n)*^ *def (\w+)", re.M
    )
    root = SCRIPT.parents[1]
    found = {
        (str(path.relative_to(root)), name)
        for path in root.glob("tests/**/test_*.py")
        if path.name != "test_required_tools.py"  # whose test is made up
        for name in needs.findall(path.read_text())
    }
    assert ("tests/training/test_rounding.py", "test_moments_on_the_cpu_of_weights_on_a_gpu") in found
    assert len(found) >= 8
    missing = [
        (path, name)
        for path, name in found
        if not any(path.startswith(f"{one}/") or one == path or _is(one, path, name) for one in gpu.TESTED)
    ]
    assert missing == []
    for one in gpu.TESTED:
        path, *_, name = one.split("::") if "::" in one else (one, "")
        assert (root / path).exists()
        assert not name or (path, name) in found


def _is(tested: str, path: str, name: str) -> bool:
    return tested.startswith(f"{path}::") and tested.endswith(f"::{name}")


def test_all_parts_share_one_deadline() -> None:
    """Of the default 11 minutes; a part that ends early leaves its rest to those after it."""
    parts = list(gpu.PARTS)
    assert sum(gpu.PARTS.values()) == pytest.approx(11)
    assert gpu.seconds_of("tests", parts, 660) == pytest.approx(90)
    assert gpu.seconds_of("spintune", parts[1:], 650) == pytest.approx(650 * 2 / 9.5)
    left = 660.0
    for place, part in enumerate(parts):
        left -= gpu.seconds_of(part, parts[place:], left)
    assert left == pytest.approx(0)


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
    assert (
        "took more than its share of --minutes, 0 s" in json.loads(report.read_text())["parts"]["generation"]["failed"]
    )
    ended = run("--rehearse", "--report", report, "--minutes", 20, "--only", ",".join(parts))
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
