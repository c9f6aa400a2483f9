"""What a run takes of this machine: memory and processors of its processes, and its GPUs."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_GPU_SECONDS = 5.0
"""Between two questions to nvidia-smi, which takes a tenth of a second."""
_QUERY = "index,name,utilization.gpu,memory.used,memory.total"


@dataclass(frozen=True)
class Gpu:
    """A GPU of this machine. Memory is in bytes; ``busy`` is None where the driver does not say."""

    name: str
    busy: float | None
    used: int
    total: int


@dataclass(frozen=True)
class Resources:
    """What the processes of a run take. Memory is in bytes.

    Attributes:
        cores: processors that were busy since the last look; None at the first.
        machine_cores, machine_memory: what there is.
    """

    memory: int
    cores: float | None
    machine_cores: int
    machine_memory: int
    gpus: tuple[Gpu, ...] = ()


@dataclass
class ResourceWatch:
    """Looks at a process and those that it started."""

    _seconds: dict[int, float] = field(default_factory=dict)
    _looked: float = 0.0
    _gpus: tuple[Gpu, ...] = ()
    _asked: float = -_GPU_SECONDS

    def look(self, pid: int | None) -> Resources | None:
        """What a process takes now; None where there is none on this machine."""
        if pid is None:
            self._seconds = {}
            return None
        now, memory, seconds = time.monotonic(), 0, {}
        with suppress(psutil.Error):
            first = psutil.Process(pid)
            for process in [first, *first.children(recursive=True)]:
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    seconds[process.pid] = times.user + times.system
                    memory += process.memory_info().rss
        if not seconds:
            return None
        spent = sum(value - self._seconds[key] for key, value in seconds.items() if key in self._seconds)
        cores = spent / (now - self._looked) if self._seconds and now > self._looked else None
        self._seconds, self._looked = seconds, now
        if now - self._asked >= _GPU_SECONDS:
            self._gpus, self._asked = gpus(), now
        whole = psutil.virtual_memory().total
        return Resources(memory, cores, psutil.cpu_count() or 1, whole, self._gpus)


def gpus() -> tuple[Gpu, ...]:
    """The GPUs of this machine as nvidia-smi tells them; none without it."""
    command = shutil.which("nvidia-smi")
    if command is None:
        return ()
    try:
        told = subprocess.run(
            [command, f"--query-gpu={_QUERY}", "--format=csv,noheader,nounits"],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            timeout=5,
        )
    except (OSError, subprocess.SubprocessError):
        return ()
    return parse_gpus(told.stdout) if told.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """GPUs of nvidia-smi's lines; those that it cannot ask are left out.

    >>> parse_gpus("0, NVIDIA H100, 97, 1024, 81559")[0].busy
    0.97
    """
    found = []
    for line in text.splitlines():
        parts = [part.strip() for part in line.split(",")]
        with suppress(ValueError, IndexError):
            busy = float(parts[2]) / 100 if parts[2].replace(".", "").isdigit() else None
            found.append(Gpu(parts[1], busy, int(parts[3]) << 20, int(parts[4]) << 20))
    return tuple(found)


def lock_holder(lock: Path) -> int | None:
    """The process on this machine that holds a run's lock, by what the kernel lists: nothing is locked for it."""
    try:
        status = lock.stat()
        listed = Path("/proc/locks").read_text()
    except OSError:
        return None
    for line in listed.splitlines():
        words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 08:01:131 0 EOF
        if len(words) < 6 or words[1] not in ("FLOCK", "POSIX", "OFDLCK") or words[2] == "->":
            continue
        inode = words[5].rpartition(":")[2]
        if inode == str(status.st_ino) and words[4].isdigit() and _has_open(int(words[4]), status):
            return int(words[4])
    return None


def _has_open(pid: int, status: os.stat_result) -> bool:
    """Whether a process has a file open; inodes of other file systems have the same numbers."""
    with suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                if os.path.samestat(descriptor.stat(), status):
                    return True
    return False
