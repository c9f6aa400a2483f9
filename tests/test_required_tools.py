"""SPINTUNE_REQUIRE makes failures of skips for want of a tool, and of no others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SKIPPED = """
import pytest

def test_module():
    pytest.importorskip("no_such_module")

@pytest.mark.skipif(True, reason="hammer is not installed: it lies nowhere")
def test_tool():
    pass

@pytest.mark.skipif(True, reason="needs a GPU")
def test_machine():
    pass
"""


@pytest.mark.parametrize(
    ("required", "failed"),
    [
        ("", set()),
        ("all", {"test_module", "test_tool", "test_file"}),
        ("saw, no_such_file,hammer", {"test_tool", "test_file"}),
    ],
)
def test_a_missing_tool_fails_where_it_is_required(tmp_path: Path, required: str, failed: set[str]) -> None:
    (tmp_path / "test_skipped.py").write_text(SKIPPED)
    (tmp_path / "test_file.py").write_text("import pytest\npytest.importorskip('no_such_file')\n")
    settings = {"SPINTUNE_REQUIRE": required, "PYTHONPATH": str(Path(__file__).parent)}
    environment = {**os.environ, **settings, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "required_tools", "-p", "no:cacheprovider", "-q"]
    command += ["--continue-on-collection-errors", "--rootdir", str(tmp_path), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    told = re.findall(r"^(?:FAILED|ERROR) \S*?(test_\w+)(?:\.py)?(?= - |$)", done.stdout, re.M)
    assert set(told) == failed, done.stdout
    assert done.returncode == (1 if failed else 0), done.stdout
