"""The real vLLM, for tests of the seam: SPINTUNE_VLLM or the PATH says where it lies."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest


def vllm_or_skip() -> dict[str, Any]:
    """Keys of ``generate`` that start it on what this machine has: its first GPU, else its processor."""
    if not shutil.which(os.environ.get("SPINTUNE_VLLM", "vllm")):
        pytest.skip("vllm is not installed: neither SPINTUNE_VLLM nor the PATH names one")
    gpus = Path("/proc/driver/nvidia").exists()
    if not gpus and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("vLLM needs a GPU or AVX-512: it dies of an illegal instruction here")
    return {"engine": "vllm", "devices": [0] if gpus else "cpu", "gpu_memory": 0.2, "max_length": 512}
