"""A machine on which commands are started, killed and failed: one folder, one fork server, one loopback teacher."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from chat_server import ChatServer, invented, verdict
from crash import shim

TESTS = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 300


@dataclass(frozen=True)
class Ending:
    """How a command ended.

    Attributes:
        code: exit code; negative for a signal.
        operations: what it did to the disk, as the shim counts.
        computing: processor time. [seconds]
    """

    code: int
    operations: int
    seconds: float
    computing: float
    hung: bool
    out: str
    err: str

    @property
    def killed(self) -> bool:
        return self.code == -9 and not self.hung


class Machine:
    """Starts commands below ``folder / "disk"``, which the shim watches. Use it as a context manager.

    Attributes:
        inputs: models, data and recipes, which no command changes.
        disk: what commands change: run folders and caches.
    """

    def __init__(self) -> None:
        fast = Path("/dev/shm")  # a flush to a real disk takes milliseconds, thousands of times
        self.folder = Path(tempfile.mkdtemp(prefix="spintune-crash-", dir=fast if os.access(fast, os.W_OK) else None))
        self.folder = self.folder.resolve()
        self.inputs, self.disk, self.aside = (self.folder / name for name in ("inputs", "disk", "aside"))
        for part in (self.inputs, self.disk, self.aside):
            part.mkdir()
        self.log = self.folder / "operations.log"

    def __enter__(self) -> Self:
        library = shim.build(self.folder)
        places = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(places),
            "LD_PRELOAD": str(library),
            "XDG_CACHE_HOME": str(self.disk / "cache"),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "SPINTUNE_KERNELS": "off",
            "HF_HUB_OFFLINE": "1",
            "COLUMNS": "400",
        }
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(
            [sys.executable, "-m", "crash.server"], stdin=pipe, stdout=pipe, env=environment, text=True
        )
        self.teacher = ChatServer(_answer)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin
        self._server.stdin.close()
        self._server.wait()
        self.teacher.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, argv: Sequence[str], **how: Any) -> Ending:
        """Runs ``spintune ARGV`` (or a function, ``call:module:name``) in a process of its own until it ends.

        Args:
            how: mode, at, fault (see disk.cpp); computing, to kill after so much of it; shard, environment, log;
                list_modules, so that what this command imports is there for later ones.
        """
        job = {
            "argv": list(argv),
            "here": str(self.folder),
            "root": str(self.disk),
            "stdout": str(self.folder / "stdout"),
            "stderr": str(self.folder / "stderr"),
            "limit": LIMIT_SECONDS,
            **how,
        }
        assert self._server.stdin
        assert self._server.stdout
        modules = self.folder / "modules.json"
        if job.get("list_modules"):
            job["list_modules"] = str(modules)
        print(json.dumps(job), file=self._server.stdin, flush=True)
        answer = json.loads(self._server.stdout.readline())
        if job.get("list_modules") and modules.exists():
            print(json.dumps({"modules": json.loads(modules.read_text())}), file=self._server.stdin, flush=True)
            modules.unlink()
        texts = ((self.folder / name).read_text(errors="replace") for name in ("stdout", "stderr"))
        return Ending(**answer, **dict(zip(("out", "err"), texts, strict=True)))

    def wipe(self) -> None:
        """An empty disk."""
        for path in self.disk.iterdir():
            shutil.rmtree(path)

    def keep(self, name: str) -> None:
        """Remembers the disk under a name."""
        shutil.rmtree(self.aside / name, ignore_errors=True)
        shutil.copytree(self.disk, self.aside / name, symlinks=True)

    def bring_back(self, name: str) -> None:
        """The disk as it was when it was kept, with its times of change."""
        self.wipe()
        shutil.copytree(self.aside / name, self.disk, symlinks=True, dirs_exist_ok=True)


def _answer(prompt: str) -> str:
    """A judge that prefers the longer answer, and a teacher for all other questions."""
    return verdict(prompt, worth=lambda text, _: len(text)) if " begins]" in prompt else invented(prompt)
