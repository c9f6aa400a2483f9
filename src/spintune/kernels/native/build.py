"""Compiles the C++ files of this folder once with the local compiler into the user's cache, in about a second."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import torch  # noqa: F401 - loads the OpenMP that the compiled code calls

from spintune.errors import StorageError
from spintune.storage import atomic_file, cache_folder, storage_errors

log = logging.getLogger(__name__)

SOURCES = [Path(__file__).with_name(name) for name in ("attention.cpp", "layers.cpp", "products.cpp")]
HEADER = Path(__file__).with_name("vectors.h")
SWITCH = "SPINTUNE_KERNELS"
_FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fno-math-errno", "-fPIC")
_LIMIT = 120  # seconds for a command that takes less than one


class NoKernelsError(Exception):
    """The reason why there is no compiled code. It is unexpected if there is a compiler and it fails."""

    def __init__(self, reason: str, unexpected: bool = False) -> None:
        super().__init__(reason)
        self.unexpected = unexpected


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled code, or None: not Linux, no compiler, or switched off.

    It uses torch's threads. With a second OpenMP, the idle threads of one would spin on the processors that the other
    needs. So the code is linked without OpenMP and finds torch's in memory.
    """
    try:
        return _load()
    except NoKernelsError as error:
        # a compiler that fails deserves a warning, a missing one does not
        log.log(logging.WARNING if error.unexpected else logging.INFO, "layers run in torch's own code: %s", error)
        return None


def require() -> ctypes.CDLL:
    """The compiled code. Raises RuntimeError where :func:`kernels` is None."""
    library = kernels()
    if library is None:
        raise RuntimeError(f"there is no compiled code here ({why_not()})")
    return library


@cache
def vector_floats() -> int:
    """Number of floats in a vector register; widths must be multiples of it."""
    return int(require().vector_floats())


def why_not() -> str | None:
    """The reason why :func:`kernels` is None; None if it is not."""
    try:
        _load()
    except NoKernelsError as error:
        return str(error)
    return None


def _load() -> ctypes.CDLL:
    if os.environ.get(SWITCH, "").lower() in ("0", "off", "no"):
        raise NoKernelsError(f"switched off by {SWITCH}")
    if sys.platform != "linux":
        raise NoKernelsError("compiled on Linux only")
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    if compiler is None:
        raise NoKernelsError(f"there is no C++ compiler ({' or '.join(candidates)}); install g++")
    kept = cache_folder() / "kernels" / f"{_key(compiler)}.so"
    if kept.exists():
        with contextlib.suppress(NoKernelsError):  # damaged: compile again
            return _open(kept)
    with tempfile.TemporaryDirectory() as folder:
        built = _compile(compiler, Path(folder))
        library = _open(built)
        with contextlib.suppress(StorageError):  # a full or read-only disk only costs the cache
            _publish(built, kept)
    return library


def _key(compiler: str) -> str:
    """Digest of everything that determines the code: source, flags, compiler, processor (machines may share a home)."""
    answer = subprocess.run([compiler, "--version"], capture_output=True, text=True, check=False)
    try:
        cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line[:5] in ("flags", "Featu"))
    except (OSError, StopIteration):
        cpu = platform.processor()
    parts = (
        *(file.read_text() for file in (*SOURCES, HEADER)),
        *_FLAGS,
        compiler,
        answer.stdout,
        platform.machine(),
        cpu,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _compile(compiler: str, folder: Path) -> Path:
    linked = folder / "kernels.so"
    compiled = [str(folder / f"{source.stem}.o") for source in SOURCES]
    commands = [
        [compiler, *_FLAGS, "-c", str(source), "-o", target] for source, target in zip(SOURCES, compiled, strict=True)
    ]
    for command in (*commands, [compiler, "-shared", *compiled, "-o", str(linked)]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_LIMIT)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoKernelsError(f"{compiler} does not run ({error})", unexpected=True) from error
        if done.returncode:
            line = next((text for text in done.stderr.splitlines() if "error" in text), "no message")
            raise NoKernelsError(f"{compiler} cannot compile it: {line}", unexpected=True)
    return linked


def _publish(built: Path, kept: Path) -> None:
    own = kept.with_name(f"{kept.name}-{os.getpid()}")  # another process may compile it too
    with atomic_file(own) as file:
        file.write(built.read_bytes())
    with storage_errors(kept):
        own.replace(kept)


def _open(library: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(library))
    except OSError as error:  # a torch without OpenMP, or a damaged file
        raise NoKernelsError(f"{library} cannot be loaded: {error}", unexpected=True) from error
