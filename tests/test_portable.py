"""Without what Windows lacks, a run imports, works and resumes (docs/reference/platforms.md)."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from spintune import portable
from spintune.errors import ModelError
from spintune.generation.sampling import _invert
from spintune.models.loading import default_device

LIKE_WINDOWS = """
import asyncio, io, multiprocessing, os, shutil, signal, socket, subprocess, sys, tempfile  # keep what they need
import numpy, torch, pyarrow, transformers, tqdm, rich.console, datasets, typer, pydantic, yaml, openai, peft, regex
import typer.completion, typer.testing, rich.progress, rich.live, jinja2.ext, jinja2.sandbox
import torch.distributed, torch.utils.data, torch._dynamo, transformers.models.llama.modeling_llama

for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty", "posix_ipc"):
    sys.modules[name] = None
for name in ("getuid", "geteuid", "getgid", "fchmod", "killpg", "setsid", "pread", "pwrite", "sched_getaffinity",
             "memfd_create", "sysconf", "uname", "fork",
             "O_DIRECTORY", "O_NOFOLLOW", "O_CLOEXEC", "O_NONBLOCK"):
    if hasattr(os, name):
        delattr(os, name)
members = dict(signal.Signals.__members__)
for name in ("SIGUSR1", "SIGUSR2", "SIGHUP", "SIGALRM", "SIGKILL", "SIGQUIT", "setitimer", "alarm", "ITIMER_REAL"):
    if hasattr(signal, name):
        delattr(signal, name)
    members.pop(name, None)
signal.Signals = type("Signals", (), {
    "__members__": members,
    "__class_getitem__": classmethod(lambda cls, name: members[name]),
    "__new__": lambda cls, number: next(one for one in members.values() if one == number),
})
shutil._use_fd_functions = False
really_open = os.open
def open_no_folder(path, flags, *rest, **named):
    if os.path.isdir(path):
        raise PermissionError(13, "Windows opens no folders", str(path))
    return really_open(path, flags, *rest, **named)
os.open = open_no_folder
import spintune.portable
spintune.portable.RENAMES_OPEN_FILES = False
from spintune.cli import main
sys.argv = ["spintune", *sys.argv[1:]]
main()
"""


def like_windows(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), "SPINTUNE_KERNELS": "off"}
    command = [sys.executable, "-c", LIKE_WINDOWS, *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_run_works_and_resumes_without_what_windows_lacks(tiny_model: Path, tmp_path: Path) -> None:
    words = ["sft", "--model", str(tiny_model), "--data", "builtin:seeds", "--out", "runs/x", "sft.max_steps=2"]
    words += ["data.max_length=128", "data.eval_fraction=0.3", "sft.tokens_per_step=256", "--quiet"]
    done = like_windows(*words, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "no locks" in done.stderr, done.stderr
    weights = (tmp_path / "runs/x/sft/model/model.safetensors").stat().st_mtime_ns
    again = like_windows(*words, folder=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "runs/x/sft/model/model.safetensors").stat().st_mtime_ns == weights
    best = json.loads((tmp_path / "runs/x/best.json").read_text())
    assert best["name"] in ("base", "sft")


def test_no_module_but_one_imports_what_windows_lacks() -> None:
    source = Path(portable.__file__).parent
    lacking = ("fcntl", "resource", "pwd", "grp", "termios", "msvcrt")
    imported = re.compile(rf"^\s*(?:from|import)\s[^#\n]*\b(?:{'|'.join(lacking)})\b", re.M)
    found = [path.name for path in source.rglob("*.py") if imported.search(path.read_text())]
    assert found == ["portable.py"]


class WindowsLocks:
    """msvcrt.locking as Microsoft documents it: bytes from the file's place on, an error where another has one of them.

    A handle locks like another process, and the place is left alone.
    """

    LK_NBLCK = 2

    def __init__(self) -> None:
        self.taken: dict[tuple[int, int], int] = {}
        self.error = errno.EACCES

    def locking(self, handle: int, mode: int, count: int) -> None:
        assert mode == self.LK_NBLCK
        place = os.lseek(handle, 0, os.SEEK_CUR)
        wanted = [(os.fstat(handle).st_ino, place + number) for number in range(count)]
        if any(self.taken.get(one, handle) != handle for one in wanted):
            raise OSError(self.error, "Permission denied")
        self.taken |= dict.fromkeys(wanted, handle)


def test_windows_locks_one_byte_behind_all_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    locks = WindowsLocks()
    monkeypatch.setattr(portable, "fcntl", None)
    monkeypatch.setattr(portable, "msvcrt", locks)
    with (tmp_path / "file").open("w+b") as one, (tmp_path / "file").open("r+b") as other:
        os.write(one.fileno(), b"abcdef")
        os.lseek(one.fileno(), 2, os.SEEK_SET)
        portable.try_lock(one.fileno())
        # the last byte that a signed number of 32 bits can reach with one more behind it: none of ours is as long
        assert list(locks.taken) == [((tmp_path / "file").stat().st_ino, 2_147_483_646)]
        assert os.read(one.fileno(), 3) == b"cde"
        os.lseek(other.fileno(), 4, os.SEEK_SET)
        for locks.error in (errno.EACCES, errno.EDEADLK):
            with pytest.raises(BlockingIOError, match="locked by another process"):
                portable.try_lock(other.fileno())
        assert os.read(other.fileno(), 3) == b"ef"  # its place is restored after the refusal too
        locks.error = errno.EINVAL
        with pytest.raises(OSError, match="Permission denied") as refused:
            portable.try_lock(other.fileno())
        assert not isinstance(refused.value, BlockingIOError)
        locks.error = errno.EACCES
        monkeypatch.setattr(portable.time, "sleep", lambda seconds: locks.taken.clear())
        portable.wait_for_lock(other.fileno())
        assert list(locks.taken.values()) == [other.fileno()]


def test_signals_that_a_system_lacks_are_left_out() -> None:
    assert portable.signals(("SIGTERM", "SIGNONE", "SIGINT")) == [signal.SIGTERM, signal.SIGINT]


def test_parts_of_a_file_are_the_same_without_positional_calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (tmp_path / "file").open("w+b") as file:
        handle = file.fileno()
        assert portable.write_part(handle, memoryview(b"abcdef"), 2) == 6
        assert portable.read_part(handle, 3, 4) == b"cde"
        monkeypatch.delattr(os, "pread")
        monkeypatch.delattr(os, "pwrite")
        assert portable.write_part(handle, memoryview(b"xy"), 0) == 2
        assert portable.read_part(handle, 4, 0) == b"xyab"


def test_a_device_that_is_not_here_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert default_device().type in ("cpu", "cuda")  # never an Apple GPU unasked
    monkeypatch.setenv("SPINTUNE_DEVICE", "mps")
    assert default_device() == torch.device("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ModelError, match=r"SPINTUNE_DEVICE=mps: this machine has .*cpu; name one of them or unset it"):
        default_device()


def test_draws_take_no_float64_to_an_apple_gpu() -> None:
    """Tensors of that device without data, under a mode that refuses what the device lacks."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    class AppleGpu(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, arguments=(), named=None):  # type: ignore[no-untyped-def]
            result = function(*arguments, **(named or {}))
            if isinstance(result, torch.Tensor) and result.device.type == "mps":
                assert result.dtype != torch.float64, function
            return result

    with FakeTensorMode(), AppleGpu():
        chosen = _invert(torch.empty(3, 1000, device="mps"), torch.empty(3, dtype=torch.float64))
    assert (chosen.device.type, chosen.shape, chosen.dtype) == ("mps", (3,), torch.int64)
