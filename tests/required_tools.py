"""With ``SPINTUNE_REQUIRE=all``, or names as in ``chromium,llama_cpp``, a test that misses such a tool fails.

A test that needs a tool calls ``pytest.importorskip``, or skips with the reason "NAME is not installed".
"""

from __future__ import annotations

import os
import re
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

_ABSENT = re.compile(r"could not import '(\w+)|([\w.-]+) is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A test that was skipped."""
    return _failed_if_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """A file that was skipped."""
    return _failed_if_required((yield))


def _failed_if_required(report: Report) -> Report:
    required = set(os.environ.get("SPINTUNE_REQUIRE", "").replace(",", " ").split())
    if not required or not report.skipped or not isinstance(report.longrepr, tuple):
        return report
    *_, reason = report.longrepr
    if (found := _ABSENT.search(reason)) and required & {"all", found[1] or found[2]}:
        report.outcome = "failed"
        report.longrepr = f"SPINTUNE_REQUIRE={os.environ['SPINTUNE_REQUIRE']}, but it was skipped: {reason}"
    return report
