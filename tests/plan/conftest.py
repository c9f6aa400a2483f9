"""What tests of plans share: how much memory torch really took."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tiny_models import one_thread  # noqa: F401 - pytest finds it here

Peak = Callable[[Callable[[], object]], int]


@pytest.fixture(scope="session")
def peak() -> Peak:
    """``peak(work)``: the most bytes that torch's allocator held beyond what it held before, by its own profiler."""
    from torch.profiler import ProfilerActivity, profile

    def measure(work: Callable[[], object]) -> int:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            work()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
        held = most = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            held += event.nbytes()
            most = max(most, held)
        return most

    return measure
