"""Puts compiled kernels into a wheel, where HATCH_BUILD_HOOK_ENABLE_CUSTOM=true asks for it, as ``make wheel`` does.

``CXX`` names the compiler. One for another machine, such as ``aarch64-linux-gnu-g++``, makes a wheel for that machine.
"""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSIDE = Path("spintune/kernels/native")


class KernelsHook(BuildHookInterface[Any]):
    """Compiles a library for each kind of processor of the compiler's machine."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":  # its kernels are compiled where they run
            return
        # the file alone, since its package needs torch
        native = SimpleNamespace(**runpy.run_path(str(Path(self.root) / "src" / INSIDE / "compiler.py")))
        compiler = os.environ.get("CXX") or "g++"
        answer = subprocess.run([compiler, "-dumpmachine"], capture_output=True, text=True, check=True)
        machine = answer.stdout.split("-")[0]
        targets = [target for target in native.TARGETS if target.machine == machine]
        if not targets:
            sys.exit(f"{compiler} compiles for {machine}, for which there are no targets in {INSIDE}/compiler.py")
        self.folder = tempfile.TemporaryDirectory()

        def compiled(target: Any) -> bytes:
            folder = Path(self.folder.name) / target.name
            folder.mkdir()
            code = native.compile_library(compiler, target.flags, folder).read_bytes()
            (folder / target.file).write_bytes(native.sealed(code))
            build_data["force_include"][str(folder / target.file)] = f"{INSIDE}/{native.SHIPPED.name}/{target.file}"
            return code

        with ThreadPoolExecutor(os.cpu_count()) as pool:
            glibc = max(map(_glibc, pool.map(compiled, targets)))
        # no Python is linked, so that any version may load it
        build_data["tag"] = f"py3-none-manylinux_2_{glibc}_{machine}"
        build_data["pure_python"] = False

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            self.folder.cleanup()


def _glibc(code: bytes) -> int:
    """The newest glibc, 2.N, that a library asks for: what its wheel may promise (PEP 600)."""
    found = [int(minor) for minor in re.findall(rb"GLIBC_2\.(\d+)", code)]
    if not found:
        sys.exit("the compiler is not for glibc, and there is no tag for its wheel")
    return max(found)
