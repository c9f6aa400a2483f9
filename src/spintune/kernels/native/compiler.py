"""How the C++ files of this folder become a library: for this machine, or ready in a wheel.

This file imports nothing of spintune and no torch, since the build of a wheel (``hatch_build.py``) loads it alone.
"""

from __future__ import annotations

import hashlib
import platform
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCES = [Path(__file__).with_name(name) for name in ("attention.cpp", "layers.cpp", "pool.cpp", "products.cpp")]
HEADERS = [Path(__file__).with_name(name) for name in ("vectors.h", "tiles.h", "matrix_units.h")]
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fno-math-errno", "-fno-exceptions", "-fPIC")
SHIPPED = Path(__file__).with_name("shipped")
"""Where a wheel holds its libraries."""
_LIMIT = 120  # seconds for a command that takes less than one


class NoKernelsError(Exception):
    """The reason why there is no compiled code. It is unexpected if there is a compiler and it fails."""

    def __init__(self, reason: str, unexpected: bool = False) -> None:
        super().__init__(reason)
        self.unexpected = unexpected


class ProcessorTarget(NamedTuple):
    """A kind of processor that a wheel holds a library for."""

    name: str
    title: str
    machine: str
    """As ``uname -m`` and the first part of a compiler's ``-dumpmachine`` call it."""
    flags: tuple[str, ...]
    needs: frozenset[str]
    """Names of features in /proc/cpuinfo without which the library would kill the process."""

    @property
    def file(self) -> str:
        """Name of the library's file; the digest of sources and flags in it keeps code of another version out."""
        return f"{self.name}-{digest(*sources(), *FLAGS, *self.flags)}.so"

    def runs_on(self, machine: str, features: str) -> bool:
        """Whether a processor with these features, separated by spaces, can run the library."""
        return self.why_not_on(machine, features) is None

    def why_not_on(self, machine: str, features: str) -> str | None:
        """Why such a processor cannot run the library; None if it can."""
        if self.machine != machine:
            return f"is for {self.machine}, and this is {machine}"
        missing = sorted(self.needs - set(features.split()))
        return f"needs {', '.join(missing)}, which this processor lacks" if missing else None


# The levels of the x86-64 psABI. Compilers tune for no processor in particular: kernels are written in vectors of one
# width, so that the loops which count come out the same for each.
_V3 = frozenset(
    "cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 avx avx2 bmi1 bmi2 f16c fma abm movbe xsave".split()  # noqa: SIM905
)
_V4 = _V3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
TARGETS = (
    ProcessorTarget(
        "amx",
        "AVX-512 with matrix units",
        "x86_64",
        ("-march=x86-64-v4", "-mavx512bf16", "-mamx-tile", "-mamx-bf16"),
        _V4 | {"avx512_bf16", "amx_tile", "amx_bf16"},
    ),
    ProcessorTarget(
        "avx512-bf16",
        "AVX-512 with bfloat16",
        "x86_64",
        ("-march=x86-64-v4", "-mavx512bf16"),
        _V4 | {"avx512_bf16"},
    ),
    ProcessorTarget("avx512", "AVX-512", "x86_64", ("-march=x86-64-v4",), _V4),
    ProcessorTarget("avx2", "AVX2", "x86_64", ("-march=x86-64-v3",), _V3),
    ProcessorTarget("neon", "NEON", "aarch64", ("-march=armv8-a",), frozenset({"asimd"})),
)
"""The best first."""


def sources() -> list[str]:
    """The text of all C++ files."""
    return [file.read_text() for file in (*SOURCES, *HEADERS)]


def digest(*parts: str) -> str:
    """What differs when any part does."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def processor_features() -> str:
    """The line of /proc/cpuinfo that names them; the processor's own name where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line[:5] in ("flags", "Featu"))
    except (OSError, StopIteration):
        return platform.processor()


def compile_library(compiler: str, flags: tuple[str, ...], folder: Path) -> Path:
    """Compiles all files with these flags and :data:`FLAGS` into a library in ``folder``. Raises NoKernelsError.

    OpenMP is not linked: the library finds torch's in memory.
    """
    linked = folder / "kernels.so"
    compiled = [str(folder / f"{source.stem}.o") for source in SOURCES]
    commands = [
        [compiler, *FLAGS, *flags, "-c", str(source), "-o", target]
        for source, target in zip(SOURCES, compiled, strict=True)
    ]
    for command in (*commands, [compiler, "-shared", "-s", "-Wl,--as-needed", *compiled, "-o", str(linked)]):
        try:
            done = subprocess.run(
                command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=_LIMIT
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NoKernelsError(f"{compiler} does not run ({error})", unexpected=True) from error
        if done.returncode:
            line = next((text for text in done.stderr.splitlines() if "error" in text), "no message")
            raise NoKernelsError(f"{compiler} cannot compile it: {line}", unexpected=True)
    return linked


def sealed(code: bytes) -> bytes:
    """Code with its digest behind it, as it is kept in files."""
    return code + hashlib.sha256(code).digest()


def unsealed(content: bytes, path: Path) -> bytes:
    """The code of a file. A shortened library would kill the process when it is called. Raises NoKernelsError."""
    size = hashlib.sha256().digest_size
    code, seal = content[:-size], content[-size:]
    if hashlib.sha256(code).digest() != seal:
        raise NoKernelsError(f"{path} is damaged", unexpected=True)
    return code
