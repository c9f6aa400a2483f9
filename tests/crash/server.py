"""A fork server: it has imported everything once, and every command is a fork of it, which takes milliseconds.

It reads jobs as JSON lines and answers each with how the child ended. Started with disk.so preloaded.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any


def main() -> None:
    """Serves until its input ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    shim = ctypes.CDLL(os.environ["LD_PRELOAD"])
    shim.disk_count.restype = ctypes.c_long
    shim.disk_prepare()
    import spintune.pipeline  # noqa: F401

    _build_tables()
    for line in sys.stdin:
        job = json.loads(line)
        if job.get("modules"):
            _import_all(job["modules"])
            continue
        print(json.dumps(_answer(shim, job)), flush=True)


def _build_tables() -> None:
    """What transformers computes once per process, and which has nothing to do with a run: an eighth of a start."""
    with suppress(Exception):
        from transformers.conversion_mapping import get_checkpoint_conversion_mapping

        get_checkpoint_conversion_mapping("llama")
    gc.collect()
    gc.freeze()


def _import_all(names: list[str]) -> None:
    """What the first child had to import, the later ones find."""
    for name in names:
        if name not in sys.modules:
            with suppress(Exception):
                importlib.import_module(name)
    gc.collect()
    gc.freeze()


def _answer(shim: ctypes.CDLL, job: Mapping[str, Any]) -> dict[str, Any]:
    shim.disk_reset()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        _child(shim, job)
    hung = signal.sigtimedwait({signal.SIGCHLD}, job["limit"]) is None
    if hung:
        os.kill(child, signal.SIGKILL)
    _, status, used = os.wait4(child, 0)
    with suppress(BlockingIOError):
        if hung:
            signal.sigtimedwait({signal.SIGCHLD}, 1)
    return {
        "code": os.waitstatus_to_exitcode(status),
        "operations": shim.disk_count(),
        "seconds": time.monotonic() - started,
        "computing": used.ru_utime + used.ru_stime,
        "hung": hung,
    }


def _child(shim: ctypes.CDLL, job: Mapping[str, Any]) -> None:
    code = 70
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        os.chdir(job["here"])
        for handle, name, flags in ((0, os.devnull, os.O_RDONLY), (1, job["stdout"], 577), (2, job["stderr"], 577)):
            os.dup2(os.open(name, flags, 0o600), handle)
        log = os.open(job["log"], 577, 0o600) if job.get("log") else -1
        prepare(job)
        if job.get("computing"):
            shim.disk_kill_after.argtypes = [ctypes.c_double]
            shim.disk_kill_after(job["computing"])
        fault = job.get("fault", 0)
        shim.disk_arm(os.fsencode(job["root"]), job.get("mode", 0), ctypes.c_long(job.get("at", 0)), fault, log)
        code = command(job["argv"])
        if job.get("list_modules"):
            Path(job["list_modules"]).write_text(json.dumps(list(sys.modules)))
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def prepare(job: Mapping[str, Any]) -> None:
    """Sets the environment, and makes shards small so that there are several."""
    from spintune.selfplay import shards

    os.environ.update(job.get("environment", {}))
    shards.SHARD_SIZE = job.get("shard", shards.SHARD_SIZE)


def command(argv: list[str]) -> int:
    """The command line as ``spintune``, or a function of the harness as ``call:module:name``; its exit code."""
    if argv[0].startswith("call:"):
        _, module, name = argv[0].split(":")
        function: Callable[..., None] = getattr(importlib.import_module(module), name)
        function(*argv[1:])
        return 0
    from spintune.cli import main as spintune

    sys.argv = ["spintune", *argv]
    try:
        spintune()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


if __name__ == "__main__":
    main()
