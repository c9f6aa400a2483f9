"""Finds the compiled code: a library that the wheel ships for this processor, or else one compiled here.

The local compiler takes two seconds, once; the result is kept in the user's cache.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401 - loads the OpenMP that the compiled code calls

from spintune.cached_folders import require_own
from spintune.errors import StorageError
from spintune.kernels.native.compiler import (
    FLAGS,
    SHIPPED,
    TARGETS,
    NoKernelsError,
    compile_library,
    digest,
    processor_features,
    sealed,
    sources,
    unsealed,
)
from spintune.storage import atomic_file, cache_folder

log = logging.getLogger(__name__)

SWITCH = "SPINTUNE_KERNELS"
"""off, no or 0: no compiled code; native: compiled here; the name of a target: the code of such a processor, shipped or
else compiled here."""
_FLAGS = ("-march=native",)


class Loaded(NamedTuple):
    """Compiled code, and where it is from: "shipped for AVX-512", "compiled here" or "compiled here for AVX2"."""

    library: ctypes.CDLL
    origin: str


def kernels() -> ctypes.CDLL | None:
    """The compiled code, or None: not Linux, neither a library for this processor nor a compiler, or switched off.

    It uses torch's threads. With a second OpenMP, the idle threads of one would spin on the processors that the other
    needs. So the code is linked without OpenMP and finds torch's in memory.
    """
    return None if _rehearsal.without else _kernels()


@dataclass
class _Rehearsal:
    """What a rehearsal (:func:`rehearsed`) wants of compiled code."""

    active: bool = False
    without: bool = False


_rehearsal = _Rehearsal()


def rehearsing() -> bool:
    """Whether compiled functions make their results and compute nothing, since tensors have no numbers."""
    return _rehearsal.active


@contextlib.contextmanager
def rehearsed(compiled: bool) -> Iterator[None]:
    """Inside, tensors have sizes and no numbers; compiled functions take the memory of their results and no more.

    Args:
        compiled: False: as if there were no compiled code, as on a GPU.
    """
    before = _rehearsal.active, _rehearsal.without
    _rehearsal.active, _rehearsal.without = True, not compiled
    try:
        yield
    finally:
        _rehearsal.active, _rehearsal.without = before


@cache
def _kernels() -> ctypes.CDLL | None:
    try:
        return _load().library
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
        origin()
    except NoKernelsError as error:
        return str(error)
    return None


def origin() -> str:
    """Where the compiled code is from, see :class:`Loaded`. Raises NoKernelsError with the reason if there is none."""
    return _load().origin


def _load() -> Loaded:
    wanted = os.environ.get(SWITCH, "").lower()
    if wanted in ("0", "off", "no"):
        raise NoKernelsError(f"switched off by {SWITCH}")
    targets = {target.name: target for target in TARGETS}
    if wanted not in ("", "1", "on", "yes", "native", *targets):
        raise NoKernelsError(f"{SWITCH}={wanted} is none of off, native, {', '.join(targets)}", unexpected=True)
    if sys.platform != "linux":
        raise NoKernelsError("compiled on Linux only")
    shipped = None if wanted == "native" else _load_shipped(wanted)
    if shipped:
        return shipped
    if target := targets.get(wanted):
        return Loaded(_load_compiled(target.flags), f"compiled here for {target.title}")
    return Loaded(_load_compiled(_FLAGS), "compiled here")


def _load_shipped(wanted: str = "", folder: Path = SHIPPED) -> Loaded | None:
    """The library for this processor, or that of the target ``wanted``, if a wheel has put it into ``folder``.

    Raises NoKernelsError when it cannot be loaded, or the processor cannot run what is wanted.
    """
    machine, features = platform.machine(), processor_features()
    named = [target for target in TARGETS if target.name == wanted]
    for target in named:
        if reason := target.why_not_on(machine, features):
            raise NoKernelsError(f"{SWITCH}={wanted} {reason}; name another, or leave it out", unexpected=True)
    for target in named or TARGETS:
        if not target.runs_on(machine, features):
            continue
        file = folder / target.file
        try:
            code = unsealed(file.read_bytes(), file)
        except FileNotFoundError:  # no such wheel, or one of other sources
            continue
        except OSError as error:
            raise NoKernelsError(f"{file} cannot be read: {error}", unexpected=True) from error
        return Loaded(_open(code, file), f"shipped for {target.title}")
    return None


def _load_compiled(flags: tuple[str, ...]) -> ctypes.CDLL:
    candidates = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++"]
    compiler = next(filter(None, map(shutil.which, candidates)), None)
    if compiler is None:
        shipped = "no shipped library fits this processor and version, and " if SHIPPED.is_dir() else ""
        raise NoKernelsError(f"{shipped}there is no C++ compiler ({' or '.join(candidates)}); install g++")
    kept = cache_folder() / "kernels" / f"{_key(compiler, flags)}.so"
    with contextlib.suppress(OSError, NoKernelsError):  # absent, damaged, or not ours alone: compile again
        return _load_kept(kept)
    try:
        with tempfile.TemporaryDirectory() as folder:
            built = compile_library(compiler, flags, Path(folder))
            code = built.read_bytes()
            library = _open(code, built)
    except OSError as error:  # no folder for temporary files
        raise NoKernelsError(f"{compiler} cannot compile it: {error}", unexpected=True) from error
    with contextlib.suppress(OSError, StorageError):  # a full or read-only disk only costs the cache
        _keep(code, kept)
    return library


def _key(compiler: str, flags: tuple[str, ...]) -> str:
    """Digest of everything that determines the code: source, flags, compiler, processor (machines may share a home)."""
    answer = subprocess.run(
        [compiler, "--version"], capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    machine = platform.machine(), processor_features()
    return digest(*sources(), *FLAGS, *flags, compiler, answer.stdout, *machine)


def _keep(code: bytes, kept: Path) -> None:
    """Keeps compiled code with its digest behind it, in a folder that nobody else may write."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    os.close(_private(kept.parent))
    with atomic_file(kept) as file:
        file.write(sealed(code))


def _load_kept(kept: Path) -> ctypes.CDLL:
    """Loads kept code if this user alone can have written it, and all of it is there.

    The code runs as the user, and the folder may be below one that others write, such as a team's cache. Folder and
    file are opened once and then checked, so that nothing can be put in their place in between.

    Raises OSError when it is absent or not private, NoKernelsError when it is damaged.
    """
    folder = _private(kept.parent)
    try:
        handle = os.open(kept.name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder)
    finally:
        os.close(folder)
    with os.fdopen(handle, "rb") as file:
        require_own(os.fstat(handle), kept)
        return _open(unsealed(file.read(), kept), Path(f"/proc/self/fd/{handle}"))


def _private(folder: Path) -> int:
    """Opens a folder of this user and closes it to all others. A link of the user's own is followed.

    Raises OSError when it is somebody else's.
    """
    if folder.is_symlink() and folder.lstat().st_uid in (os.getuid(), 0):
        folder = folder.resolve()
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(handle).st_uid != os.getuid():
            raise PermissionError(f"{folder} belongs to somebody else")
        os.fchmod(handle, 0o700)
    except OSError:
        os.close(handle)
        raise
    return handle


def _open(code: bytes, library: Path) -> ctypes.CDLL:
    """Opens a copy of the code in memory: a file may be cut while it is in use, or lie where nothing may be run.

    Where the system runs no code from memory, the file itself is opened.
    """
    try:
        with contextlib.suppress(OSError), os.fdopen(os.memfd_create("spintune-kernels"), "wb") as memory:
            memory.write(code)
            memory.flush()
            return ctypes.CDLL(f"/proc/self/fd/{memory.fileno()}")
        return ctypes.CDLL(str(library))
    except OSError as error:  # a torch without OpenMP, or a damaged file
        raise NoKernelsError(f"{library} cannot be loaded: {error}", unexpected=True) from error
