"""The run folder: which stages are done, with what inputs, and what they wrote.

A stage is done when its manifest is there, names the same inputs, and its outputs are intact. The manifest is written
last, so a killed stage leaves none and is continued by the next command.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import orjson

from spintune.errors import RunError
from spintune.recipe import Recipe
from spintune.storage import (
    atomic_file,
    digest_file,
    digest_json,
    read_json,
    remove_partials,
    storage_errors,
    write_json,
    write_json_if_changed,
)
from spintune.version import __version__

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"

BASE, SFT, BASELINE = "base", "sft", "sft-more"
"""Names of models in a run: the recipe's, after SFT, and after further SFT instead of self-play."""


class RunFolder:
    """One run folder, held by one process at a time. Use it as a context manager.

    Raises RunError when another process holds the folder or it belongs to another recipe, StorageError when it cannot
    be written.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.folder = Path(recipe.out)
        self.recipe = recipe
        self._lock: BinaryIO | None = None

    def __enter__(self) -> RunFolder:
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = (self.folder / "run.lock").open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise RunError(
                f"{self.folder} is in use by another spintune process; wait for it or choose another out="
            ) from None
        try:
            remove_partials(self.folder)
            self._claim()
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock:
            self._lock.close()

    def _claim(self) -> None:
        """Takes a folder without work in it for this recipe, or checks that it is this recipe's."""
        path = self.folder / "recipe.json"
        mine = self.recipe.identity()
        theirs = read_json(path)["recipe"] if path.exists() else None
        if theirs is not None and _claim_of(theirs) == _claim_of(mine):
            write_json_if_changed(path, {"spintune": __version__, "recipe": mine})
            return
        # a recipe that was mended after it failed on its data or model may go on in the same folder
        if theirs is None or {entry.name for entry in self.folder.iterdir()} <= {
            "run.lock",
            "recipe.json",
            "report.html",
            "data",
        }:
            write_json(path, {"spintune": __version__, "recipe": mine})
        else:
            changes = "; ".join(_differences(_claim_of(theirs), _claim_of(mine)))
            raise RunError(f"{self.folder} holds a run of another recipe ({changes}); choose another out= or delete it")

    def finished(self, stage: str, inputs: dict[str, Any]) -> dict[str, Any] | None:
        """The facts of a stage that was done with these inputs and whose outputs are intact; else None.

        Says so when it is to be done again: with the same inputs that gives the same bits, so that what follows stays.
        """
        folder = self.folder / stage
        if not (folder / MANIFEST).is_file():
            return None
        manifest = read_json(folder / MANIFEST)
        if manifest["inputs"] != digest_json(inputs):
            log.warning("%s was made from other data or another model; it is made again", folder)
            return None
        for name, file in manifest["files"].items():
            if not _intact(folder / name, file):
                log.warning("%s is not what the run wrote there; %s is made again", folder / name, stage)
                return None
        return manifest["facts"]

    def finish(self, stage: str, inputs: dict[str, Any], files: list[Path], facts: dict[str, Any]) -> str:
        """Publishes a stage's manifest. ``files`` are files or folders below the stage's folder.

        Returns the digest of what was written, for the inputs of later stages.
        """
        folder = self.folder / stage
        every = [file for path in files for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
        listing = {str(file.relative_to(folder)): _describe(file) for file in every if file.is_file()}
        write_json(
            folder / MANIFEST,
            {"stage": stage, "inputs": digest_json(inputs), "files": listing, "facts": facts, "spintune": __version__},
        )
        return self.digest(stage)

    def digest(self, stage: str) -> str:
        """Digest of the contents of a finished stage's outputs."""
        return outputs_digest(self.folder / stage)

    def file_digest(self, stage: str, name: str) -> str:
        """Digest of the contents of one of a finished stage's outputs."""
        return str(read_json(self.folder / stage / MANIFEST)["files"][name]["sha256"])

    @contextlib.contextmanager
    def log(self, name: str) -> Iterator[StepLog]:
        """Opens a log of JSON lines in the run folder."""
        log = StepLog(self.folder / name)
        try:
            yield log
        finally:
            log.close()


def outputs_digest(folder: Path) -> str:
    """Digest of the contents of what a finished stage wrote into ``folder``."""
    files = read_json(folder / MANIFEST)["files"]
    return digest_json({name: file["sha256"] for name, file in files.items()})


class StepLog:
    """An append-only file of JSON lines in which every step of a stage stands exactly once, also after a crash."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: BinaryIO | None = None

    def rewind(self, stage: str, step: int) -> None:
        """Drops a torn last line, and what ``stage`` wrote after ``step``: these steps will be done again."""
        self.close()
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_bytes().splitlines():
            try:
                row = orjson.loads(line)
            except orjson.JSONDecodeError:
                continue
            if row["stage"] != stage or row["step"] <= step:
                kept.append(line)
        with atomic_file(self.path) as file:
            file.writelines(line + b"\n" for line in kept)

    def append(self, stage: str, step: int, **facts: Any) -> None:
        with storage_errors(self.path):
            if self._file is None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = self.path.open("ab")
            self._file.write(orjson.dumps({"stage": stage, "step": step, **facts}) + b"\n")
            self._file.flush()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with storage_errors(self.path):  # closing writes what a full disk refused before
                file.close()


def _claim_of(identity: dict[str, Any]) -> dict[str, Any]:
    """What a folder holds on to: all but how far self-play goes, and what chooses and judges its iterates.

    Written data may grow and be filtered anew: its replies are kept, and what follows from it is made again.
    """
    spin = identity["spin"]
    free = ("iterations", "stop", "metric", "baseline", "baseline_learning_rate")
    fixed = spin and {key: value for key, value in spin.items() if key not in free}
    return {**identity, "synth": None, "spin": fixed, **dict.fromkeys(("eval", "evaluation", "judge"))}


def _describe(file: Path) -> dict[str, Any]:
    status = file.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns, "sha256": digest_file(file)}


def _intact(path: Path, expected: dict[str, Any]) -> bool:
    """Whether a file is as it was written. One that was not touched since is not read again."""
    if not path.is_file():
        return False
    status = path.stat()
    if status.st_size != expected["bytes"]:
        return False
    return status.st_mtime_ns == expected["mtime_ns"] or digest_file(path) == expected["sha256"]


def _differences(theirs: Any, mine: Any, prefix: str = "") -> list[str]:
    if isinstance(theirs, dict) and isinstance(mine, dict):
        keys = sorted(theirs.keys() | mine.keys())
        return [line for key in keys for line in _differences(theirs.get(key), mine.get(key), f"{prefix}.{key}")]
    return [] if theirs == mine else [f"{prefix.lstrip('.')} {theirs!r:.60} there, {mine!r:.60} here"]
