"""Commands in processes of their own that start in milliseconds: forks of a server that only imported what they need.

What a command leaves in memory dies with it, as with ``python -m spintune``, and a signal ends it alone.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import shutil
import sys
import tempfile
import weakref
from collections.abc import Mapping
from multiprocessing import forkserver
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest
import transformers.models.llama.modeling_llama  # noqa: F401 -- for the forks

import spintune.pipeline  # noqa: F401 -- for the forks

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([__name__])


class Command:
    """A command that runs or has ended, beside this process; as a context manager it is waited for.

    Attributes:
        pid: of its process.
    """

    def __init__(self, *words: object, environment: Mapping[str, str] = os.environ, folder: Path | None = None) -> None:
        """Starts ``spintune WORDS``, or ``python WORDS`` where the first word names a Python file."""
        _start_server()
        self._output = Path(tempfile.mkdtemp(prefix="command-"))
        weakref.finalize(self, shutil.rmtree, self._output, ignore_errors=True)
        told = (list(map(str, words)), dict(environment), str(folder or Path.cwd()), str(self._output))
        self._process = _FORKS.Process(target=_be, args=told, daemon=True)  # ends with the tests at the latest
        self._process.start()
        assert self._process.pid
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Its exit code, negative for the signal that ended it; None while it runs."""
        return self._process.exitcode

    def wait(self, seconds: float = 600.0) -> int:
        """Waits until it ends; gives its exit code. Kills it after so many seconds, which fails."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            raise AssertionError(f"still running after {seconds:g} s\n{self.err}")
        return self._process.exitcode

    def signal(self, number: int) -> None:
        """Sends it a signal."""
        os.kill(self.pid, number)

    @property
    def out(self) -> str:
        """What it printed."""
        return (self._output / "1").read_text(errors="replace")

    @property
    def err(self) -> str:
        """What it told."""
        return (self._output / "2").read_text(errors="replace")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        if error is not None:
            self._process.kill()
        self.wait()


def _start_server() -> None:
    """Once in a process of tests; torch reads its number of threads when it is imported."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        forkserver.ensure_running()


def _be(words: list[str], environment: dict[str, str], folder: str, output: str) -> None:
    """The fork's work, from its first line to its last."""
    for handle in (1, 2):
        os.dup2(os.open(f"{output}/{handle}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), handle)
    sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.fsync = _flushed  # see conftest.py
    try:
        if words[0].endswith(".py"):
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).parent))
            runpy.run_path(words[0], run_name="__main__")
        else:
            from spintune.cli import main

            sys.argv = ["spintune", *words]
            main()
    finally:
        atexit._run_exitfuncs()


def _flushed(descriptor: Any) -> None:
    """Whether a flush was made shows only when the power fails."""
