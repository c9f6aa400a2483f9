"""Starts vLLM on a model's folder, on devices that the recipe names, and ends it."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from spintune.errors import RecipeError, ServerError
from spintune.generation.served import guard
from spintune.recipe import GenerateSection
from spintune.teachers.wire import one_line

PROGRAM = "SPINTUNE_VLLM"
"""The environment variable with the path of the vllm program. A recipe cannot name a program, since a stranger may have
written it."""

_END_SECONDS = 30.0
_LAUNCHER = re.compile(r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|MASTER_(ADDR|PORT)|TORCHELASTIC_\w+|ROLE_NAME")
"""Variables of torchrun, which vLLM would take for its own."""
_EXCEPTION = re.compile(r"[\w.]*(?:Error|Exception)\b")


class ServerProcess:
    """A server of our own on the loopback address, in a process group of its own.

    It ends with :meth:`stop`, and also when this process is killed: a guard beside it waits for that.

    Attributes:
        port: where it listens, once it has started.
        log: what it prints; deleted by :meth:`stop`, unless it ended by itself.
    """

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], port: int) -> None:
        if not hasattr(os, "killpg"):
            raise ServerError("generate.devices: no servers are started on Windows; give generate.url")
        self.port = port
        handle, name = tempfile.mkstemp(prefix="spintune-server-", suffix=".log")
        self.log = Path(name)
        with os.fdopen(handle, "wb") as output:
            self._guard = subprocess.Popen(
                [sys.executable, guard.__file__, *command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                start_new_session=True,
            )
        self._ended_by_itself = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._guard.poll() is None

    def check(self, seconds: float = 0.0) -> None:
        """Raises ServerError when it has ended, or ends within so many seconds, with the last thing that it said."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._guard.wait(seconds)
        status = self._guard.poll()
        if status is not None:
            raise ServerError(
                f"vllm ended with status {status} while it was needed ({self.last_words() or 'it said nothing'}); "
                f"all that it printed is in {self.log}"
            )

    def last_words(self) -> str:
        """The last error that it printed and that names no other as its cause; else the last line."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        # vLLM's begin with "(Worker pid=8) ERROR 01-31 12:00:00 [core.py:9] "
        told = [part for line in lines if "root cause" not in line for part in (line, line.partition("] ")[2])]
        errors = [part for part in told if _EXCEPTION.match(part) or "error: " in part]
        return one_line((errors or lines or [""])[-1])

    def tell_to_end(self) -> None:
        """Says that it is over, without waiting for its end: several end at once, then."""
        if self._guard.stdin and not self._guard.stdin.closed:
            self._ended_by_itself = not self.running
            self._guard.stdin.close()

    def stop(self) -> None:
        """Ends it and all that it started."""
        self.tell_to_end()
        try:
            self._guard.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()
            self._guard.wait()
        if not self._ended_by_itself:
            self.log.unlink(missing_ok=True)


def stop_all(servers: Sequence[ServerProcess]) -> None:
    """Ends servers, in the time of the slowest."""
    for server in servers:
        server.tell_to_end()
    for server in servers:
        server.stop()


def vllm_program(environment: Mapping[str, str]) -> str:
    """The program that serves: what :data:`PROGRAM` says, else vllm on the path. Raises ServerError without one."""
    named = environment.get(PROGRAM, "")
    found = shutil.which(named or "vllm", path=environment.get("PATH"))
    if found is None:
        where = f"{PROGRAM}={named} is no program" if named else "there is no vllm on the PATH"
        raise ServerError(
            f"generate: {where}; install vLLM in an environment of its own and export {PROGRAM}=THERE/bin/vllm, or "
            "give the url of a server that runs"
        )
    return found


def start_vllm(
    section: GenerateSection,
    model: tuple[str, str | None],
    name: str,
    dtype: str,
    environment: Mapping[str, str],
) -> list[ServerProcess]:
    """One server for each group of ``tensor_parallel`` devices. They need minutes until they answer.

    Args:
        model: folder or hub id, and its revision.
        name: that they give the model.

    Raises ServerError without vLLM, RecipeError for devices that are not there.
    """
    program = vllm_program(environment)
    location, revision = model
    options = ["--served-model-name", name, "--dtype", dtype, "--generation-config", "vllm"]
    options += ["--revision", revision] if revision else []
    options += ["--max-model-len", str(section.max_length)] if section.max_length else []
    servers: list[ServerProcess] = []
    try:
        for devices in _groups(section, environment):
            port = free_port()
            command = [program, "serve", location, "--host", "127.0.0.1", "--port", str(port), *options]
            command += ["--gpu-memory-utilization", str(section.memory_share)]
            if devices:
                command += ["--tensor-parallel-size", str(len(devices))]
            else:
                # vLLM 0.32.0 on a CPU dies when a prompt that has a seed is read in two parts ("CPU Generator does
                # not use offset"), which happens as soon as prompts under way have more tokens than one step takes
                command += ["--no-enable-chunked-prefill"]
            own = _environment(environment, ",".join(devices), Path(location).is_dir())
            servers.append(ServerProcess(command, own, port))
    except BaseException:
        stop_all(servers)
        raise
    return servers


def _groups(section: GenerateSection, environment: Mapping[str, str]) -> list[list[str]]:
    """The devices of each server, as CUDA_VISIBLE_DEVICES names them; an empty list for a processor."""
    if section.devices == "cpu":
        return [[]]
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    names = visible.split(",") if visible else None
    devices = [] if section.devices is None else section.devices
    if names is not None and (beyond := [device for device in devices if device >= len(names)]):
        raise RecipeError(f"generate.devices: there is no GPU {beyond[0]} of the {len(names)} in CUDA_VISIBLE_DEVICES")
    named = [str(device) if names is None else names[device].strip() for device in devices]
    return [named[at : at + section.tensor_parallel] for at in range(0, len(named), section.tensor_parallel)]


def _environment(environment: Mapping[str, str], devices: str, offline: bool) -> dict[str, str]:
    """What the server sees: no keys of endpoints, no launcher, no Python path of this environment, its own devices."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.endswith("API_KEY") and not _LAUNCHER.fullmatch(name) and not name.startswith("PYTHON")
    }
    quiet = {"VLLM_NO_USAGE_STATS": "1", "VLLM_DO_NOT_TRACK": "1", "CUDA_VISIBLE_DEVICES": devices}
    return {**kept, **quiet, **({"HF_HUB_OFFLINE": "1"} if offline else {})}


def free_port() -> int:
    """A port of the loopback address on which nobody listens."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port: int = listening.getsockname()[1]
        return port
