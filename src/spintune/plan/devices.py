"""What a plan is made for: this machine, or so many GPUs of a kind."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch

from spintune.errors import RecipeError
from spintune.memory import available_memory
from spintune.models.loading import default_device

GB = 10**9


@dataclass(frozen=True)
class GpuKind:
    """A GPU as its maker describes it.

    Attributes:
        memory: [bytes]
        peak: of dense bfloat16 products with float32 sums. [operations/s]
        bandwidth: of its memory. [bytes/s]
        source: where the numbers are from.
    """

    name: str
    memory: float
    peak: float
    bandwidth: float
    source: str


def _gpu(name: str, memory: float, teraflops: float, bandwidth: float, source: str) -> GpuKind:
    return GpuKind(name, memory * GB, teraflops * 1e12, bandwidth * GB, source)


GPUS: Mapping[str, GpuKind] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("a100-40gb", 40, 312, 1555, "NVIDIA A100 datasheet"),
            _gpu("a100-80gb", 80, 312, 2039, "NVIDIA A100 datasheet (SXM)"),
            _gpu("h100", 80, 989, 3350, "NVIDIA H100 datasheet (SXM)"),
            _gpu("h100-pcie", 80, 756, 2000, "NVIDIA H100 datasheet (PCIe)"),
            _gpu("h200", 141, 989, 4800, "NVIDIA H200 datasheet (SXM)"),
            _gpu("b200", 180, 2250, 8000, "NVIDIA DGX B200 datasheet"),
            _gpu("l4", 24, 121, 300, "NVIDIA L4 datasheet"),
            _gpu("l40s", 48, 362, 864, "NVIDIA L40S datasheet"),
            _gpu("a10g", 24, 70, 600, "NVIDIA A10G datasheet (AWS)"),
            _gpu("rtx-3090", 24, 71, 936, "NVIDIA GA102 whitepaper"),
            _gpu("rtx-4090", 24, 165, 1008, "NVIDIA Ada whitepaper"),
            _gpu("rtx-5090", 32, 209, 1792, "NVIDIA RTX Blackwell whitepaper"),
        )
    }
)
"""GPUs that a plan knows. Peaks are without sparsity."""

SHARE = 0.35
"""Of the peak, where nothing was measured: 0.3 to 0.5 is common for training of 7 to 70 billion (our choice)."""

CONTEXT = GB
"""What a GPU holds before anything of ours: CUDA's context, libraries, buffers of communication (an allowance)."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_MEMORY = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.I)


def read_memory(text: str) -> int:
    """Bytes of a text such as 80GB, 80 GiB or 24g; a number alone is of gigabytes. Raises RecipeError."""
    found = _MEMORY.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise RecipeError(f"--memory {text!r} is no amount of memory; write it as 80GB or 24GiB")
    number, unit, binary = float(found[1]), found[2].lower(), bool(found[3])
    if not unit and text.strip().replace(".", "").isdigit():
        unit = "g"
    size = 1024 ** "kmgt".find(unit) * 1024 if binary and unit else _UNITS[unit]
    return int(number * size)


@dataclass(frozen=True)
class Target:
    """The machine of a plan.

    Attributes:
        gpu: None: a CPU, or a GPU of no known kind.
        gpus: processes, one on each device.
        memory: of each device; None where nobody knows. [bytes]
        share: of the GPU's peak that is reached.
        measured: whether this is the machine that the plan is made on.
    """

    on_gpu: bool
    gpu: GpuKind | None
    gpus: int
    memory: int | None
    share: float
    measured: bool

    def __str__(self) -> str:
        size = f" with {self.memory / GB:.0f} GB" if self.memory else ""
        kind = (self.gpu.name if self.gpu else "GPU") if self.on_gpu else "this machine"
        return f"{self.gpus} x {kind}{size}" if self.on_gpu else f"{kind}{size}"


def target_of(gpus: int | None, memory: str | None, kind: str | None, share: float | None) -> Target:
    """The machine that options name; without any, this one. Raises RecipeError."""
    size = read_memory(memory) if memory else None
    if kind is not None and kind not in GPUS:
        close = difflib.get_close_matches(kind, GPUS, 1)
        raise RecipeError(
            f"--gpu {kind!r:.40} is not known; {f'did you mean {close[0]}?' if close else 'known: ' + ', '.join(GPUS)}"
        )
    gpu = GPUS[kind] if kind else None
    if gpu is None and gpus is None:
        device = default_device()
        if device.type == "cuda":
            return Target(True, _this_gpu(device), 1, size or torch.cuda.mem_get_info(device)[1], share or SHARE, True)
        return Target(False, None, 1, size or available_memory(), share or SHARE, size is None)
    return Target(True, gpu, gpus or 1, size or (int(gpu.memory) if gpu else None), share or SHARE, False)


def _this_gpu(device: torch.device) -> GpuKind | None:
    name = torch.cuda.get_device_name(device).lower().replace(" ", "-")
    return next((gpu for key, gpu in GPUS.items() if key.split("-")[0] in name.split("-")), None)
