"""How freed memory is kept for the next buffer of its size."""

from __future__ import annotations

import ctypes
from functools import cache


@cache
def tune_malloc() -> None:
    """Lets glibc reuse large freed blocks instead of returning them to the system after every layer, from now on.

    To be called when computing begins and not before: the threads of a tokenizer take twice as long with one heap.
    Each step asks for the same buffers again; returning them costs a page fault for every 4 KiB. Measured with
    SmolLM2-135M on 2 cores: 2.2 million faults in two steps without this, 0.6 million with it, steps 17 % shorter.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # not glibc
        return
    for option, value in _GLIBC_OPTIONS.items():
        mallopt(option, value)


_GLIBC_OPTIONS = {
    -4: 0,  # M_MMAP_MAX: no block gets a mapping of its own
    -1: 2**31 - 1,  # M_TRIM_THRESHOLD: the heap's end is kept
    -8: 1,  # M_ARENA_MAX: one heap, so that freed blocks meet
}
