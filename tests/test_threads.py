"""Threads follow quota and affinity, and wait briefly, unless somebody decided otherwise."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pytest
import torch

from spintune import threads
from spintune.threads import cpu_quota, follow_quota, limit_arrow, physical_cores, threads_for, wait_briefly


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text + "\n")


@pytest.fixture
def group(tmp_path: Path) -> Path:
    """A file that names the groups of a process as /proc/self/cgroup does."""
    write(tmp_path / "self", "0::/team/job")
    return tmp_path / "self"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_the_smallest_quota_of_all_levels_counts(root: Path, group: Path) -> None:
    write(root / "team" / "job" / "cpu.max", "300000 100000")
    assert cpu_quota(root, group) == 3
    write(root / "team" / "cpu.max", "75000 50000")
    assert cpu_quota(root, group) == 1.5
    write(root / "cpu.max", "max 100000")
    assert cpu_quota(root, group) == 1.5
    write(root / "other" / "cpu.max", "1000 100000")
    assert cpu_quota(root, group) == 1.5


def test_no_quota_is_none(root: Path, group: Path, tmp_path: Path) -> None:
    assert cpu_quota(root, group) is None
    write(root / "team" / "job" / "cpu.max", "max 100000")
    assert cpu_quota(root, group) is None
    assert cpu_quota(root, tmp_path / "absent") is None
    write(group, "3:cpuset:/\n1:cpu:/\n0::/")
    write(root / "cpu" / "cpu.cfs_quota_us", "-1")
    write(root / "cpu" / "cpu.cfs_period_us", "100000")
    assert cpu_quota(root, group) is None


@pytest.mark.parametrize("path", ["/docker/1a2b", "/../../docker/1a2b", "/"])
def test_a_container_sees_its_own_group_as_the_root(root: Path, group: Path, path: str) -> None:
    write(group, f"0::{path}")
    write(root / "cpu.max", "250000 100000")
    assert cpu_quota(root, group) == 2.5


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpuacct,cpu", "cpu"])
def test_version_1(root: Path, group: Path, mount: str) -> None:
    write(group, f"9:memory:/else\n4:{mount}:/jobs/7\n0::/")
    write(root / mount / "jobs" / "7" / "cpu.cfs_quota_us", "50000")
    write(root / mount / "jobs" / "7" / "cpu.cfs_period_us", "100000")
    write(root / "unified" / "cpu.max", "max 100000")
    assert cpu_quota(root, group) == 0.5


@pytest.mark.parametrize(("quota", "count"), [(None, None), (0.1, 1), (1, 1), (1.001, 1), (1.5, 2), (7.65, 8)])
def test_a_part_of_a_core_is_a_thread(quota: float | None, count: int | None) -> None:
    assert threads_for(quota) == count


def test_two_hardware_threads_of_a_core_count_once(tmp_path: Path) -> None:
    for number in range(4):
        write(tmp_path / f"cpu{number}" / "topology" / "thread_siblings_list", f"{number % 2},{number % 2 + 2}")
    assert physical_cores({0, 1, 2, 3}, tmp_path) == 2
    assert physical_cores({0, 2}, tmp_path) == 1
    assert physical_cores({0, 1, 7}, tmp_path) == 3  # unknown: each is taken for a core


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch as it is on a machine with two cores."""
    monkeypatch.setattr(threads, "allowed_processors", lambda: {0, 1})
    monkeypatch.setattr(threads, "physical_cores", lambda _: 2)
    before = torch.get_num_threads(), pyarrow.cpu_count()
    torch.set_num_threads(2)
    pyarrow.set_cpu_count(2)
    yield
    torch.set_num_threads(before[0])
    pyarrow.set_cpu_count(before[1])


@pytest.mark.usefixtures("two_threads")
def test_a_quota_lowers_the_number_of_threads() -> None:
    assert follow_quota(5.0, {}).number == 2
    count, reason = follow_quota(1.0, {})
    limit_arrow(1.0, {})
    assert (count, torch.get_num_threads(), pyarrow.cpu_count()) == (1, 1, 1)
    assert reason.startswith("a quota of 1 of 2 cores")


@pytest.mark.usefixtures("two_threads")
def test_a_chosen_number_stays() -> None:
    assert follow_quota(1.0, {"OMP_NUM_THREADS": "2"}) == (2, "OMP_NUM_THREADS")
    torch.set_num_threads(5)
    pyarrow.set_cpu_count(5)
    limit_arrow(1.0, {})
    assert follow_quota(1.0, {}) == (5, "torch.set_num_threads")
    assert (torch.get_num_threads(), pyarrow.cpu_count()) == (5, 5)


def test_waiting_is_brief_unless_somebody_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for given in ({"OMP_WAIT_POLICY": "active"}, {"GOMP_SPINCOUNT": "7"}):
        environment = dict(given)
        wait_briefly(environment)
        assert environment == given
    environment = {}
    wait_briefly(environment)
    assert environment == {"GOMP_SPINCOUNT": str(threads.ROUNDS)}
    monkeypatch.setitem(sys.modules, "torch", torch)
    environment = {}
    wait_briefly(environment)
    assert environment == {}


@pytest.mark.skipif(sys.platform != "linux", reason="affinity is Linux's")
def test_a_process_held_to_one_processor_computes_with_one_thread_that_waits_briefly() -> None:
    program = (
        "import os\nos.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "import spintune, torch\nfrom spintune.threads import follow_quota\nprint(*follow_quota(8.0))"
    )
    chosen = (*threads.WAITING, "OMP_NUM_THREADS")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**environment, "OMP_DISPLAY_ENV": "verbose"},  # OpenMP says on stderr what it read
        capture_output=True,
        text=True,
        check=True,
    )
    processors = os.cpu_count()
    expected = "one for each core" if processors == 1 else f"1 of {processors} processors are allowed to this process"
    assert done.stdout == f"1 {expected}\n"
    if "GOMP_SPINCOUNT" in done.stderr:  # not another OpenMP than GNU's
        assert f"GOMP_SPINCOUNT = '{threads.ROUNDS}'" in done.stderr
