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


_A100 = "nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf"
_HOPPER = "resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet"

GPUS: Mapping[str, GpuKind] = MappingProxyType(
    {
        gpu.name: gpu
        for gpu in (
            _gpu("a100-40gb", 40, 312, 1555, _A100),
            _gpu("a100-80gb", 80, 312, 2039, f"{_A100}, SXM; PCIe has 1935 GB/s"),
            _gpu("h100", 80, 989, 3350, f"{_HOPPER}, SXM"),
            _gpu("h100-pcie", 80, 756, 2000, f"{_HOPPER}, PCIe"),
            _gpu("h200", 141, 989, 4800, "nvidia.com/en-us/data-center/h200, SXM"),
            _gpu("b200", 180, 2250, 8000, "nvidia.com/en-us/data-center/dgx-b200, an eighth"),
            _gpu("l4", 24, 121, 300, "resources.nvidia.com/en-us-data-center-overview/l4-gpu-datasheet"),
            _gpu("l40s", 48, 362, 864, "nvidia.com/en-us/data-center/l40s"),
            _gpu("a10g", 24, 70, 600, "baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference"),
            _gpu("rtx-3090", 24, 71, 936, "NVIDIA Ampere GA102 GPU Architecture, appendix A"),
            _gpu("rtx-4090", 24, 165, 1008, "NVIDIA Ada GPU Architecture, appendix A"),
            _gpu("rtx-5090", 32, 209, 1792, "NVIDIA RTX Blackwell GPU Architecture, appendix A"),
        )
    }
)
"""GPUs that a plan knows.

Peaks are dense: makers print twice as much, with sparsity (H100, H200, L4, B200). Those of GeForce cards are with
float32 sums, which have half the speed of float16 sums. Each was compared with tables that other trainers divide by:
pytorch/torchtitan, torchtitan/tools/utils.py, and karpathy/nanochat, nanochat/common.py (A100 312, H100 989 and 756 on
PCIe, H200 989, B200 2250, L4 121, L40S 362, RTX 3090 71, 4090 165.2, 5090 209.5 TFLOP/s).
"""

SHARE = 0.35
"""Of the peak, where nothing was measured: 0.3 to 0.5 is common for training of 7 to 70 billion (our choice)."""

CONTEXT = GB
"""What a GPU holds before anything of ours: CUDA's context, libraries, buffers of communication (an allowance)."""

PROCESS = 500 * 10**6
"""What a run's process holds on a CPU before its model: Python, torch, transformers, code that was compiled, and a
tokenizer (measured: 0.42 GB after the imports, 0.49 to 0.50 GB when training begins; benchmarks/plan.py)."""

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

    @property
    def context(self) -> int:
        """What a process holds on its device beside the model. [bytes]"""
        return CONTEXT if self.on_gpu else PROCESS

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
    return kind_of(torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[1])


def kind_of(name: str, memory: int) -> GpuKind | None:
    """The kind of a GPU by the name that its driver gives and its bytes, such as "NVIDIA A100-SXM4-80GB"."""
    words = set(re.split(r"[^a-z0-9]+", name.lower()))
    if "laptop" in words:  # slower, with less memory
        return None
    found = [gpu for gpu in GPUS.values() if {part for part in gpu.name.split("-") if not part.endswith("gb")} <= words]
    return min(found, key=lambda gpu: (-gpu.name.count("-pcie"), abs(gpu.memory - memory)), default=None)
