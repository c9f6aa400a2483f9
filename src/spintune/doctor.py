"""Checks the installation: packages, processor, memory, accelerator and disk."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.requirements import Requirement

from spintune.cached_folders import folder_bytes, remove_whole
from spintune.errors import ServerError
from spintune.storage import storage_errors

if TYPE_CHECKING:
    import torch

USES = {
    "eval": "standard benchmarks, eval: [ifeval], and evaluation.checker: {json: SCHEMA_FILE}",
    "memory": "optimizer: adamw8bit and lora.base: nf4",
    "mlflow": "tracking: mlflow",
    "tensorboard": "tracking: tensorboard",
    "trackio": "tracking: trackio",
    "wandb": "tracking: wandb",
    "watch": "spintune watch",
    "xlsx": "data in .xlsx files",
    "gguf": "comparing GGUF files with their models, and K-quants",
    "benchmarks": "benchmarks/training.py",
}
"""What the packages of each extra are for; those of others are for who works on spintune."""
_EXTRA = re.compile(r"""\bextra\s*==\s*['"]([^'"]+)""")


@dataclass(frozen=True)
class DoctorFinding:
    """One line of the check; ``fine`` is False for a problem that has to be solved."""

    subject: str
    text: str
    fine: bool = True

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def examine(cache: Path) -> list[DoctorFinding]:
    """Checks everything, in a few seconds. The cache is in the folder ``cache``."""
    findings = [DoctorFinding("python", platform.python_version())]
    findings += _packages()
    findings += _engines(os.environ)
    if _version("torch"):
        findings += _hardware()
    findings += [_cache(cache), _disk("here", Path.cwd())]
    return findings


def clear_cache(cache: Path) -> dict[str, int]:
    """Removes all that can be computed or downloaded again. Returns the bytes that were freed, by kind.

    A run that is under way makes again what it still needs. Raises StorageError.
    """
    sizes = cache_sizes(cache)
    for room in cache.iterdir() if cache.is_dir() else ():
        with storage_errors(room):
            for path in list(room.iterdir()) if room.is_dir() else [room]:
                remove_whole(path)
    return sizes


def cache_sizes(cache: Path) -> dict[str, int]:
    """Bytes of each kind of thing in the cache, the largest first."""
    sizes = {room.name: folder_bytes(room.resolve()) for room in cache.iterdir()} if cache.is_dir() else {}
    return dict(sorted(((name, size) for name, size in sizes.items() if size), key=lambda pair: -pair[1]))


def sizes_text(sizes: dict[str, int]) -> str:
    """Sizes in words: "models 0.54 GB, tokens 0.03 GB"."""
    return ", ".join(f"{name} {size / 1e9:.2f} GB" for name, size in sizes.items()) or "nothing"


def _cache(cache: Path) -> DoctorFinding:
    finding = _disk("cache", cache)
    sizes = cache_sizes(cache)
    held = f", holds {sizes_text(sizes)}; spintune doctor --clear-cache empties it" if sizes else ", empty"
    return DoctorFinding("cache", finding.text + held, finding.fine)


def _engines(environment: Mapping[str, str]) -> list[DoctorFinding]:
    """Who else can write a run's answers (``generate.engine``). No run needs one."""
    from spintune.generation.served.process import PROGRAM, vllm_program

    absent = "not on the PATH; a run can ask one that serves elsewhere (generate.url)"
    llama = shutil.which("llama-server", path=environment.get("PATH"))
    try:
        vllm = DoctorFinding("vllm", f"{vllm_program(environment)}; a run starts it for generate.engine: vllm")
    except ServerError as error:
        named = environment.get(PROGRAM)
        vllm = DoctorFinding("vllm", str(error).removeprefix("generate: ") if named else absent, fine=not named)
    return [vllm, DoctorFinding("llama.cpp", f"{llama}; serve a model with it for generate.url" if llama else absent)]


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterable[DoctorFinding]:
    try:
        return packages(importlib.metadata.requires("spintune") or [])
    except importlib.metadata.PackageNotFoundError:
        return [
            DoctorFinding(
                "spintune",
                "not installed, so its requirements are not known; pip install it from its clone or wheel",
                False,
            )
        ]


def packages(requirements: Iterable[str]) -> Iterator[DoctorFinding]:
    """What is installed of what the metadata of spintune asks for. What is for an extra alone may be absent or old."""
    for requirement in map(Requirement, requirements):
        extra = _EXTRA.search(str(requirement.marker or ""))
        if (extra and extra[1] not in USES) or (not extra and requirement.marker and not requirement.marker.evaluate()):
            continue
        version = _version(requirement.name)
        fits = version is not None and requirement.specifier.contains(version, prereleases=True)
        found = version or "not installed"
        if fits:
            yield DoctorFinding(requirement.name, found)
        elif extra:
            needed = f"{requirement.specifier} is needed only for {USES[extra[1]]}"
            yield DoctorFinding(requirement.name, f"{found}; {needed}: pip install 'spintune[{extra[1]}]'")
        else:
            text = f"{found}; pip install '{requirement.name}{requirement.specifier}'"
            yield DoctorFinding(requirement.name, text, fine=False)


def _hardware() -> list[DoctorFinding]:
    import torch

    from spintune.kernels.native.build import origin
    from spintune.kernels.native.compiler import NoKernelsError
    from spintune.threads import follow_quota

    threads = follow_quota()
    number = f"{threads.number} thread{'s' * (threads.number > 1)} ({threads.reason})"
    findings = [DoctorFinding("processor", f"{number}, {_gemm_rate(torch.float32):.0f} GFLOP/s float32")]
    try:
        findings.append(DoctorFinding("kernels", origin()))
    except NoKernelsError as error:
        findings.append(DoctorFinding("kernels", f"torch's own layers, slower: {error}", fine=not error.unexpected))
    if hasattr(os, "sysconf"):
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        findings.append(DoctorFinding("memory", f"{memory:.0f} GiB", memory >= 4))
    if torch.cuda.is_available():
        kind = "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
        findings.append(DoctorFinding("gpu", f"{torch.cuda.get_device_name()}; precision auto is {kind}"))
    else:
        findings.append(DoctorFinding("gpu", "none; precision auto is float32"))
    return findings


def _gemm_rate(dtype: torch.dtype) -> float:
    """Speed of a square matrix product. [GFLOP/s]"""
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
