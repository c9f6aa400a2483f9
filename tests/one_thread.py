"""A tiny model is fastest on one thread, above all beside other work."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest


@contextlib.contextmanager
def one_thread_alone() -> Iterator[None]:
    """torch computes on one thread, and commands that are started inherit it.

    Equality bit for bit holds for one number of threads.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(threads)
