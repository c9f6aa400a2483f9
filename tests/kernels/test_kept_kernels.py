"""Compiled code that is kept in the cache: whatever happens to it or to the disk, no process dies of it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from spintune.kernels.native import build

pytestmark = pytest.mark.usefixtures("compiled")


def reason(folder: Path) -> str | None:
    """Why there is no compiled code with a cache in this folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        return build.why_not()


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compiled")
    assert reason(folder) is None
    return folder


@pytest.fixture
def kept(compiled_once: Path, tmp_path: Path) -> Path:
    """A file of compiled code in a cache of the test's own."""
    shutil.copytree(compiled_once / "spintune", tmp_path / "spintune")
    (file,) = (tmp_path / "spintune" / "kernels").iterdir()
    return file


def test_a_link_to_the_folder_is_followed_only_if_it_is_the_users_own(kept: Path, tmp_path: Path) -> None:
    folder = kept.parent
    folder.rename(tmp_path / "large disk")
    folder.symlink_to(tmp_path / "large disk")
    build._load_kept(kept)
    if os.getuid() == 0:
        os.chown(folder, 54321, -1, follow_symlinks=False)
        with pytest.raises(OSError, match=re.escape(os.strerror(errno.ENOTDIR))):
            build._load_kept(kept)


def in_a_process(work: Callable[[], object]) -> int:
    """How a process ends that does this: 0, 1 for an exception, or the signal that killed it, below 0."""
    if not (child := os.fork()):
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_no_damage_of_the_kept_file_kills_a_process(kept: Path) -> None:
    whole = kept.read_bytes()
    places = [*range(0, 64, 8), *range(64, len(whole), len(whole) // 24), len(whole) - 33, len(whole) - 1]

    def load() -> None:
        build._load_kept(kept).vector_floats()

    def load_damaged() -> None:
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 0x10
            for damaged in (whole[:place], bytes(flipped)):
                kept.write_bytes(damaged)
                with pytest.raises(build.NoKernelsError):
                    load()

    assert in_a_process(load_damaged) == 0
    kept.write_bytes(whole)
    assert in_a_process(load) == 0


def test_a_file_that_is_cut_while_it_is_in_use_kills_nobody(kept: Path) -> None:
    def use() -> None:
        library = build._load_kept(kept)
        os.truncate(kept, 0)
        assert library.vector_floats() > 0

    assert in_a_process(use) == 0


@pytest.mark.slow
def test_two_processes_compile_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(in_a_process, [build._load] * 2)) == [0, 0]
    (kept,) = (tmp_path / "spintune" / "kernels").iterdir()
    build._load_kept(kept)


@pytest.mark.slow
@pytest.mark.skipif(os.getuid() != 0, reason="only root can mount a small disk")
def test_on_a_full_disk_the_code_is_compiled_and_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        assert reason(tmp_path) is None
        assert not list((tmp_path / "spintune" / "kernels").iterdir())
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        told = reason(tmp_path)
        assert told
        assert "cannot compile it" in told
        assert "\n" not in told
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "absent"))
        assert "cannot compile it" in str(reason(tmp_path))
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
