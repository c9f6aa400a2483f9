"""What the machine is, and how fast it can be at best."""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from spintune.kernels.native.compiler import TARGETS, processor_features

PACKAGES = ("torch", "transformers", "trl", "accelerate", "spintune")


def threads() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> dict[str, Any]:
    """Name of the processor, and whether it multiplies bfloat16 natively."""
    facts = {"name": platform.processor() or platform.machine(), "native_bfloat16": False}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = [line.partition(":") for line in cpuinfo.read_text().splitlines()]
        fields = {key.strip(): value.strip() for key, _, value in lines}
        facts["name"] = fields.get("model name", facts["name"])
        facts["native_bfloat16"] = not {"avx512_bf16", "amx_bf16"}.isdisjoint(fields.get("flags", "").split())
    return facts


def kind() -> str:
    """What ratios of speed depend on: maker and instruction set of the processor, and the number of cores.

    The maker is in it because MKL, which is torch's own, takes narrower vectors on processors of others than Intel.
    """
    machine, features = platform.machine(), processor_features()
    name = next((target.name for target in TARGETS if target.runs_on(machine, features)), "other")
    cpuinfo = Path("/proc/cpuinfo")
    maker = re.search(r"^vendor_id\s*: (\S+)", cpuinfo.read_text() if cpuinfo.exists() else "", re.MULTILINE)
    return f"{maker[1] if maker else machine} {name}, {threads()} cores"


def describe() -> dict[str, Any]:
    """Processor, cores, load and versions. Another job on the machine shows in the load (1 is one busy core)."""
    return {
        "processor": processor(),
        "threads": threads(),
        "load_before": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def peak_memory() -> float:
    """Most memory that this process has held so far [GB].

    A child inherits the peak of the process that started it, so the parent of the contestants stays without torch.
    """
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def busy_seconds() -> float:
    """Processor time that the whole machine has spent so far, time stolen by its host included; 0 where unknown."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return 0.0
    user, nice, system, _idle, _waiting, *others = map(int, stat.read_text().split("\n", 1)[0].split()[1:9])
    return (user + nice + system + sum(others)) / os.sysconf("SC_CLK_TCK")


def children_seconds() -> float:
    """Processor time of this process's finished children."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def matmul_peak(hidden: int, inner: int, vocabulary: int, precision: str) -> dict[str, float]:
    """GFLOP/s of matrix products: square ones of 2048, and a thousand tokens times the model's own matrices.

    The best of 10 calls each of torch's own product, in float32 of oneDNN's, which torch has but does not use for it
    (on AMD's processors it is twice as fast), and of spintune's. Backward's shapes are measured as well, for libraries
    differ most there.
    """
    import torch

    from spintune.kernels.native.products import can_multiply, can_round, product

    torch.set_num_threads(threads())
    dtype = getattr(torch, precision)
    rates = {}
    for m, k, n in (
        (2048, 2048, 2048),
        (1024, hidden, inner),
        (1024, inner, hidden),
        (hidden, 1024, inner),
        (512, hidden, vocabulary),
        (512, vocabulary, hidden),
    ):
        a, b = torch.randn(m, k, dtype=dtype), torch.randn(n, k, dtype=dtype)
        calls = [lambda a=a, b=b: torch.nn.functional.linear(a, b)]
        if precision == "float32" and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            calls.append(lambda a=a, b=b: torch.ops.mkldnn._linear_pointwise(a, b, None, "none", [], ""))
        a32, b32, rounded = a.float(), b.float().t(), precision == "bfloat16"
        if can_multiply(a32) and (can_round() or not rounded):
            calls.append(lambda a=a32, b=b32, rounded=rounded: product(a, b, rounded=rounded))
        seconds = min(_best(call, 10) for call in calls)
        rates[f"{m} x {k} x {n}"] = 2 * m * k * n / seconds / 1e9
    return rates


def _best(call: Callable[[], object], times: int) -> float:
    call()
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


class RoleError(SystemExit):
    """A process of a benchmark failed. Ends the script with these words, unless somebody catches it."""


class Lab:
    """Starts roles of a script one after the other, each in a process and a folder of its own."""

    def __init__(self, script: Path, folder: Path) -> None:
        self.script, self.folder, self.count = script, folder, 0
        self.foreign_cores: list[float] = []
        """Cores that other work kept busy during each run."""

    def run(self, role: str, **spec: Any) -> dict[str, Any]:
        self.count += 1
        folder = self.folder / f"{self.count:03d}"
        folder.mkdir()
        print(role, *(f"{key} {spec[key]}" for key in ("case", "batch") if key in spec), file=sys.stderr, flush=True)
        (folder / "spec.json").write_text(json.dumps({**spec, "folder": str(folder)}))
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads()),
            "HF_HUB_OFFLINE": "1",
            "HF_DATASETS_CACHE": str(folder / "datasets"),
            "TOKENIZERS_PARALLELISM": "false",
        }
        busy, own, began = busy_seconds(), children_seconds(), time.monotonic()
        command = [sys.executable, str(self.script.resolve()), "--role", role, "--folder", str(folder)]
        done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RoleError(f"{role} failed with {done.returncode}; its last words:\n{done.stderr[-3000:]}")
        foreign = (busy_seconds() - busy) - (children_seconds() - own)
        self.foreign_cores.append(max(0.0, foreign) / (time.monotonic() - began))
        return json.loads((folder / "result.json").read_text())
