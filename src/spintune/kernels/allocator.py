"""Memory of large tensors on a CPU: what was freed serves the next ones. ``pool.cpp`` has the algorithm."""

from __future__ import annotations

import ctypes
import os
from functools import cache

from spintune.kernels.native.build import kernels

SWITCH = "SPINTUNE_POOL"
"""off, no or 0: tensors are left to torch's own memory."""


@cache
def reuse_memory() -> bool:
    """Takes the memory of large tensors from a pool of ours, from now on; says whether that is so.

    Without compiled code, or where the system or torch does not let us, glibc keeps what was freed. That saves page
    faults (2.2 million in two steps of SmolLM2-135M on 2 cores, 0.6 million so), but holes between tensors are lost.
    """
    library = kernels()
    if library is None or os.environ.get(SWITCH, "").lower() in ("0", "off", "no") or not library.pool_begin():
        _tune_glibc()
        return False
    library.pool_kept.restype = ctypes.c_size_t
    return True


def kept_memory() -> int:
    """Bytes that this process freed and still holds."""
    library = kernels()
    pooled = int(library.pool_kept()) if library and reuse_memory() else 0
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # not glibc, or an old one; the last on Windows
        return pooled
    mallinfo.restype = _MallInfo
    return pooled + int(mallinfo().fordblks)


def give_back_memory() -> None:
    """Returns what was freed to the system."""
    library = kernels()
    if library and reuse_memory():
        library.pool_give_back()


def _tune_glibc() -> None:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc; the last on Windows
        return
    for option, value in _GLIBC_OPTIONS.items():
        mallopt(option, value)


_GLIBC_OPTIONS = {
    -4: 0,  # M_MMAP_MAX: no block has its own mapping
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap never shrinks
    -8: 1,  # M_ARENA_MAX: one heap, so that freed blocks merge
}


class _MallInfo(ctypes.Structure):
    """glibc's ``struct mallinfo2``: ten sizes. The ninth, ``fordblks``, counts the bytes of free blocks."""

    _fields_ = [*((f"other_{place}", ctypes.c_size_t) for place in range(8)), ("fordblks", ctypes.c_size_t)]
    _fields_ += [("keepcost", ctypes.c_size_t)]
