"""Memory of large tensors on a CPU: what was freed serves the next ones. ``pool.cpp`` has the algorithm."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
from functools import cache

from spintune.kernels.native.build import kernels, require
from spintune.portable import has_limited_addresses

log = logging.getLogger(__name__)

SWITCH = "SPINTUNE_POOL"
"""off, no or 0: tensors are left to torch's own memory."""


@cache
def reuse_memory() -> bool:
    """Takes the memory of large tensors from a pool of ours, from now on; says whether that is so.

    Where there is none (:func:`why_no_pool`), glibc keeps what was freed. That saves page faults (2.2 million in two
    steps of SmolLM2-135M on 2 cores, 0.6 million so), but holes between tensors are lost. Call it when computing begins
    and not before: with a single heap of glibc, a tokenizer's threads take twice as long.
    """
    reason = why_no_pool() or ("" if require().pool_begin() else "torch or the system does not let us")
    if reason:
        log.info("tensors are in torch's own memory: %s", reason)
        _tune_glibc()
    return not reason


def why_no_pool() -> str | None:
    """Why tensors cannot be in the pool, as far as is known before it begins; None if nothing speaks against it."""
    if os.environ.get(SWITCH, "").lower() in ("0", "off", "no"):
        return f"switched off by {SWITCH}"
    if os.environ.get("THP_MEM_ALLOC_ENABLE") == "1":
        return "THP_MEM_ALLOC_ENABLE asks torch for huge pages of its own"
    if has_limited_addresses():
        return "this process may have only so many addresses (ulimit -v)"  # the range would take them from all others
    if kernels() is None:
        return "there is no compiled code here"
    if not require().pool_can_begin():
        return "this torch has another allocator"  # on Arm, and where it is built so
    return None


def kept_memory() -> int:
    """Bytes that this process freed and still holds."""
    library, pooled = kernels(), 0
    if library is not None:
        library.pool_kept.restype = ctypes.c_size_t
        pooled = int(library.pool_kept())
    try:
        mallinfo = ctypes.CDLL(None).mallinfo2
    except (OSError, AttributeError, TypeError):  # not glibc, or an old one; the last on Windows
        return pooled
    mallinfo.restype = _MallInfo
    return pooled + int(mallinfo().fordblks)


def give_back_memory() -> None:
    """Returns what was freed to the system."""
    if reuse_memory.cache_info().currsize == 0:
        return  # nothing was computed
    if reuse_memory():
        require().pool_give_back()
        return
    with contextlib.suppress(OSError, AttributeError, TypeError):  # not glibc; the last on Windows
        ctypes.CDLL(None).malloc_trim(0)


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
