"""Settings of glibc's malloc that let freed memory serve the next buffer of its size."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def tune_malloc() -> None:
    """Makes glibc reuse large freed blocks, from now on, instead of returning them to the system after every layer.

    Call it when computing begins and not before: a tokenizer's threads take twice as long with a single heap. Every
    step allocates the same buffers again, and returning them costs a page fault per 4 KiB. Measured with SmolLM2-135M
    on 2 cores: 2.2 million faults in two steps without this, 0.6 million with it, and steps are 17 % shorter.
    """
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
