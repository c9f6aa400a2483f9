"""Memory of large tensors: what is freed is used again, nothing is handed out twice, and torch notices nothing."""

from __future__ import annotations

import ctypes
import os
import random
import re
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from spintune.kernels.allocator import give_back_memory, kept_memory, reuse_memory, why_no_pool
from spintune.kernels.native import build
from spintune.kernels.native.build import require

MEGABYTE = 2**18  # floats


@pytest.fixture(autouse=True)
def pool(compiled: None) -> None:
    if reason := why_no_pool():
        pytest.skip(reason)
    assert reuse_memory()


def is_pooled(tensor: torch.Tensor) -> bool:
    return bool(require().pool_holds(ctypes.c_void_p(tensor.data_ptr())))


def test_large_tensors_are_in_the_pool_and_small_ones_are_not() -> None:
    assert is_pooled(torch.empty(8192))
    assert not is_pooled(torch.empty(8000))
    assert torch.empty(100_001).data_ptr() % 64 == 0


@pytest.mark.parametrize("floats", [8192, 100_000, 1_234_567])
def test_a_piece_that_was_freed_between_two_others_serves_the_next_tensor_of_its_size(floats: int) -> None:
    """Which it does not with glibc: a search for an aligned block wants a longer piece."""
    tensors = [torch.empty(floats) for _ in range(9)]
    freed = {tensors[place].data_ptr() for place in (1, 4, 7)}
    del tensors[7], tensors[4], tensors[1]
    new = [torch.empty(floats) for _ in range(3)]
    assert {tensor.data_ptr() for tensor in new} == freed


def test_free_neighbours_become_one_piece() -> None:
    low, middle, high, _guard = (torch.empty(MEGABYTE) for _ in range(4))
    place = low.data_ptr()
    assert high.data_ptr() - place == 2 * 4 * MEGABYTE
    del low, high, middle
    assert torch.empty(3 * MEGABYTE).data_ptr() == place


def test_no_tensor_gets_memory_of_another_in_many_threads() -> None:
    """Each tensor is filled with a number of its own, and still holds it when it goes."""
    wrong = []

    def work(seed: int) -> None:
        draw, live = random.Random(seed), list[tuple[torch.Tensor, float]]()
        for number in range(2000):
            if live and draw.random() < 0.5:
                tensor, value = live.pop(draw.randrange(len(live)))
                if not bool((tensor == value).all()):
                    wrong.append(seed)
            else:
                value = float(seed * 10_000 + number)
                live.append((torch.full((int(10 ** draw.uniform(3.5, 5.3)),), value), value))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_is_freed_is_kept_until_it_is_given_back() -> None:
    tensor = torch.ones(64 * MEGABYTE)
    before, held = kept_memory(), resident()
    del tensor
    assert kept_memory() - before == pytest.approx(64 * 2**20, abs=2**16)  # glibc's own comes and goes
    assert resident() > held - 2**20
    give_back_memory()
    assert kept_memory() <= before + 2**16
    assert resident() < held - 60 * 2**20
    assert torch.ones(64 * MEGABYTE).sum() == 64 * MEGABYTE


def resident() -> int:
    found = re.search(r"^VmRSS:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def test_more_than_there_is_is_an_error_of_torch_and_of_nobody_else() -> None:
    """Although there are addresses for it."""
    asked = int(1.5 * sum(map(memory_of_the_machine, ("MemTotal", "SwapTotal"))))
    with pytest.raises(RuntimeError, match=f"can't allocate memory: you tried to allocate {asked} bytes"):
        torch.empty(asked, dtype=torch.uint8)


def memory_of_the_machine(key: str) -> int:
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.M)
    assert found
    return int(found[1]) * 1024


def test_memory_that_was_never_written_or_was_given_back_is_not_kept() -> None:
    give_back_memory()
    guard, before = torch.ones(MEGABYTE), kept_memory()
    big, _end = torch.empty(512 * MEGABYTE), torch.ones(MEGABYTE)
    del big
    assert kept_memory() - before < 2**20
    torch.empty(512 * MEGABYTE).fill_(1)
    assert kept_memory() - before > 500 * 2**20
    give_back_memory()
    assert torch.ones(MEGABYTE).sum() == guard.sum()  # a small part of the piece is used, and freed
    assert kept_memory() - before < 8 * 2**20


def test_a_forked_process_has_a_pool_of_its_own() -> None:
    tensor = torch.ones(MEGABYTE)
    child = os.fork()
    if not child:
        tensor.zero_()
        os._exit(int(is_pooled(torch.ones(MEGABYTE)) and tensor.sum() == 0))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
    assert tensor.sum() == MEGABYTE


@pytest.mark.parametrize(
    "switch", [{"SPINTUNE_POOL": "off"}, {"SPINTUNE_KERNELS": "off"}, {"THP_MEM_ALLOC_ENABLE": "1"}]
)
def test_without_it_what_glibc_keeps_counts_and_goes_back(switch: dict[str, str]) -> None:
    code = """
import torch
from spintune.kernels.allocator import give_back_memory, kept_memory, reuse_memory, why_no_pool
assert not reuse_memory()
from pathlib import Path
def resident():
    return 4096 * int(Path("/proc/self/statm").read_text().split()[1])
tensor = torch.ones(2**24)
before, held = kept_memory(), resident()
del tensor
assert kept_memory() - before > 6e7
give_back_memory()
assert resident() < held - 6e7
"""
    subprocess.run([sys.executable, "-c", code], env={**os.environ, **switch}, check=True)


def test_where_addresses_are_limited_they_are_left_to_others() -> None:
    code = """
import resource
resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35))
import torch
from spintune.kernels.allocator import reuse_memory, why_no_pool
assert "ulimit -v" in why_no_pool()
assert not reuse_memory()
assert torch.ones(2**24).sum() == 2**24
"""
    subprocess.run([sys.executable, "-c", code], check=True)


LIBRARY = """
#include <stdlib.h>
void *alloc_cpu(unsigned long size) { void *place; return posix_memalign(&place, 64, size) ? 0 : place; }
void free_cpu(void *place) { free(place); }
void (*deleter)(void *) = free;
"""


def test_a_table_that_the_loader_has_closed_or_not_filled_yet_is_served(tmp_path: Path) -> None:
    """Libraries like torch's, linked in three ways: all addresses known and read-only at once, or each at its first
    call, or in a page that is never closed."""
    compiler, native = shutil.which("g++") or pytest.skip("no g++"), Path(build.__file__).parent
    host, source = tmp_path / "host", tmp_path / "library.c"
    source.write_text(LIBRARY)
    own = [str(Path(__file__).with_name("table.cpp")), str(native / "pool.cpp")]
    subprocess.run([compiler, "-std=c++17", "-O1", *own, "-o", str(host), "-ldl", "-lpthread"], check=True)
    for link in ("-Wl,-z,relro,-z,now", "-Wl,-z,relro,-z,lazy", "-Wl,-z,norelro,-z,lazy"):
        library = tmp_path / "libc10.so"
        subprocess.run([compiler, "-x", "c", "-shared", "-fPIC", link, str(source), "-o", str(library)], check=True)
        said = subprocess.run([str(host), str(library)], capture_output=True, text=True, check=True).stdout
        assert said.split() == ["1", "0", "1"], link
