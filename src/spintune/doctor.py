"""What is installed here, what each part can use, and what is wrong."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REQUIRED = (
    "torch",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "datasets",
    "pyarrow",
    "pydantic",
    "rapidfuzz",
)
OPTIONAL = {"tensorboard": "tracking: [tensorboard]", "trl": "benchmarks/training.py"}


@dataclass(frozen=True)
class DoctorFinding:
    subject: str
    text: str
    fine: bool = True

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def examine(cache: Path) -> list[DoctorFinding]:
    """Looks at packages, processor, memory, accelerator and disk. Takes a few seconds."""
    findings = [DoctorFinding("python", platform.python_version())]
    findings += [_package(name) for name in REQUIRED]
    for name, use in OPTIONAL.items():
        version = _version(name)
        findings.append(DoctorFinding(name, version or f"not installed; only {use} needs it"))
    if _version("torch"):
        findings += _hardware()
    findings += [_disk("cache", cache), _disk("here", Path.cwd())]
    return findings


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _package(name: str) -> DoctorFinding:
    version = _version(name)
    return DoctorFinding(name, version or f"missing; pip install {name}", version is not None)


def _hardware() -> list[DoctorFinding]:
    import torch

    from spintune.kernels.native.build import why_not

    findings = [
        DoctorFinding(
            "processor", f"{torch.get_num_threads()} threads, {_gemm_rate(torch.float32):.0f} GFLOP/s float32"
        )
    ]
    reason = why_not()
    findings.append(
        DoctorFinding("layers", f"torch's own, slower: {reason}" if reason else "compiled for this processor")
    )
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        findings.append(DoctorFinding("memory", f"{memory:.0f} GiB", memory >= 4))
    if torch.cuda.is_available():
        kind = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        findings.append(DoctorFinding("gpu", f"{torch.cuda.get_device_name()}; precision auto is {kind}"))
    else:
        findings.append(DoctorFinding("gpu", "none; precision auto is float32"))
    return findings


def _gemm_rate(dtype: Any) -> float:
    """GFLOP/s of a square matrix product."""
    import torch

    size = 1024
    a = torch.randn(size, size, dtype=dtype)
    a @ a
    started = time.perf_counter()
    for _ in range(8):
        a @ a
    return 8 * 2 * size**3 / (time.perf_counter() - started) / 1e9


def _disk(subject: str, folder: Path) -> DoctorFinding:
    existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
    free = shutil.disk_usage(existing).free / 2**30
    writable = os.access(existing, os.W_OK)
    text = f"{folder}, {free:.0f} GiB free" + ("" if writable else ", not writable")
    return DoctorFinding(subject, text, writable and free >= 2)
