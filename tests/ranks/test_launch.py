"""The process that starts ranks says nothing of its own."""

from __future__ import annotations

import subprocess
import sys

SCRIPT = """
import sys
from spintune.ranks.launch import relaunch
import torch.distributed.run as run

run.run = lambda options: None  # no ranks: what counts is who may log
relaunch(2, ["doctor"])
from torch.distributed.elastic.agent.server import api, local_elastic_agent
for module in (run, api, local_elastic_agent):
    module.logger.warning("a warning of torchrun's")
"""


def test_torchrun_s_own_warnings_are_not_shown() -> None:
    """Some of its loggers have a level of their own, which that of their parent does not change."""
    found = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert "a warning of torchrun's" not in found.stderr
