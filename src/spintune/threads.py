"""How many threads compute, and how they wait for each other.

torch starts a thread for each core that the process may run on. It knows affinity (``taskset``) and the variable
``OMP_NUM_THREADS``, but not the quota of processor time that a container gives: with the time of 2 of 64 cores, 64
threads wait for each other.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import NamedTuple

from spintune.control_groups import MEMBERSHIP, MOUNT, groups_of

TOPOLOGY = Path("/sys/devices/system/cpu")

ROUNDS = 10_000
"""How often a waiting thread looks before it sleeps: some 0.4 ms on current x86 processors, a little longer than the
Python code between two layers takes. libgomp's own choice, 300,000 rounds, is 5 to 15 ms. A thread that waits so long
for one that does not run, because another process has its core, uses up the time in which that one could run."""
WAITING = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


class ThreadChoice(NamedTuple):
    """A number of threads, and where it comes from."""

    number: int
    reason: str


def wait_briefly(environment: MutableMapping[str, str] = os.environ) -> None:
    """Lets threads sleep soon when they wait, unless the user decided or torch, which reads this once, is loaded."""
    if sys.platform == "linux" and "torch" not in sys.modules and not any(name in environment for name in WAITING):
        environment["GOMP_SPINCOUNT"] = str(ROUNDS)


def follow_quota(quota: float | None = None, environment: Mapping[str, str] = os.environ) -> ThreadChoice:
    """Lowers torch's number of threads to the quota of processor time, unless somebody chose a number.

    A number that is not torch's own choice stays. Threads of tokenizers follow the quota by themselves.

    Args:
        quota: in cores; None asks :func:`cpu_quota`.
    """
    import torch

    quota, count = cpu_quota() if quota is None else quota, torch.get_num_threads()
    if environment.get("OMP_NUM_THREADS"):
        return ThreadChoice(count, "OMP_NUM_THREADS")
    allowed = allowed_processors()
    if count not in (len(allowed), physical_cores(allowed)):
        return ThreadChoice(count, "torch.set_num_threads")
    most = threads_for(quota)
    if quota is not None and most is not None and most < count:
        torch.set_num_threads(most)
        return ThreadChoice(most, f"a quota of {quota:.3g} of {len(allowed)} cores; see {MOUNT}")
    if len(allowed) < (os.cpu_count() or 1):
        return ThreadChoice(count, f"{len(allowed)} of {os.cpu_count()} processors are allowed to this process")
    return ThreadChoice(count, "one for each core")


def threads_for(quota: float | None) -> int | None:
    """Threads for a quota in cores: rounded up, so that none of it is left unused. None: no quota."""
    return None if quota is None else max(1, math.ceil(round(quota, 2)))


def cpu_quota(mount: Path = MOUNT, membership: Path = MEMBERSHIP) -> float | None:
    """The processor time that control groups give this process, in cores: the least of all levels; None: no limit."""
    quotas = map(_quota_of, groups_of("cpu", mount, membership))
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota_of(folder: Path) -> float | None:
    try:
        if (limit := folder / "cpu.max").exists():
            quota, period = limit.read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        found = int(quota) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # no such group, or "max"
        return None
    return found if found > 0 else None  # version 1 writes -1 for no limit


def allowed_processors() -> set[int]:
    """The processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def physical_cores(processors: set[int], topology: Path = TOPOLOGY) -> int:
    """The number of cores that ``processors`` are on; two hardware threads of a core compute little more than one."""
    try:
        cores = {(topology / f"cpu{number}" / "topology" / "thread_siblings_list").read_text() for number in processors}
    except OSError:
        return len(processors)
    return len(cores)


def limit_arrow(quota: float | None = None, environment: Mapping[str, str] = os.environ) -> None:
    """Lowers the number of threads that decode columns to the quota, unless somebody chose a number."""
    import pyarrow

    most = threads_for(cpu_quota() if quota is None else quota)
    chosen = environment.get("OMP_NUM_THREADS") or pyarrow.cpu_count() != len(allowed_processors())
    if most is not None and not chosen and most < pyarrow.cpu_count():
        pyarrow.set_cpu_count(most)
