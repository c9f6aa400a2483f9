"""Stages that another run of a sweep has finished for the same inputs: a run copies them and computes nothing.

A copy is compared with the digests that the other run wrote down, and its manifest comes last, so each run folder is
complete in itself. Copies share their blocks where the file system can (btrfs, XFS), and are no hard links: a file that
somebody edits in one run stays as it was in the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from spintune.errors import RunError
from spintune.portable import NO_LINK, clone
from spintune.run_folder import MANIFEST, FileFacts, Manifest, read_manifest, read_recipe, write_manifest
from spintune.storage import atomic_file, atomic_folder, digest_file, read_json_lines
from spintune.tracking import Metrics

log = logging.getLogger(__name__)

_LOGS = ("samples.jsonl",)
"""Files of a stage that no manifest names."""


class SiblingRuns:
    """Where a run looks for a stage that it has not finished itself.

    Args:
        folders: of the other runs. They may be at work.
        run: the folder to copy into.
        metrics: of the run, which get the steps of copied stages.
        note: shows a line to the user.
    """

    def __init__(self, folders: Sequence[Path], run: Path, metrics: Metrics, note: Callable[[str], None]) -> None:
        self.folders = [folder for folder in folders if folder != run]
        self.run, self.metrics, self.note = run, metrics, note

    def copy(self, stage: str, inputs: str) -> bool:
        """Copies a stage from the first run that has finished it for inputs of this digest; False if none has.

        Raises StorageError when the copy cannot be written.
        """
        for sibling, manifest in self._finished(stage):
            if manifest.inputs != inputs or manifest.deleted:
                continue
            try:
                self._copy(sibling, stage, manifest)
            except RunError as error:  # damaged, or deleted while it was read
                log.warning("stage %s is not taken from %s (%s)", stage, sibling, error)
                continue
            if "seconds" in manifest.facts:  # it took some
                self.note(f"{stage}: copied from {sibling.name}, which computed it from the same inputs")
            return True
        return False

    def file(self, stage: str, name: str, fact: str, value: str) -> Path | None:
        """An intact file of a stage that another run has finished with this value among its facts."""
        for sibling, manifest in self._finished(stage):
            path, written = sibling / stage / name, manifest.files.get(name)
            if manifest.facts.get(fact) != value or written is None or path.is_symlink() or not path.is_file():
                continue
            if digest_file(path) == written.sha256:
                self.note(f"{stage}: {name} of {sibling.name} has the same inputs")
                return path
        return None

    def _finished(self, stage: str) -> Iterator[tuple[Path, Manifest]]:
        """The runs that have finished a stage, for whatever inputs, with arithmetic as here."""
        for sibling in self.folders:
            if (sibling / stage / MANIFEST).is_file():
                try:
                    manifest, alike = read_manifest(sibling / stage), _arithmetic(sibling) == _arithmetic(self.run)
                except RunError as error:
                    log.warning("stage %s is not taken from %s (%s)", stage, sibling, error)
                else:
                    if alike:
                        yield sibling, manifest

    def _copy(self, sibling: Path, stage: str, manifest: Manifest) -> None:
        self.metrics.trains(stage, manifest.inputs)
        self._copy_metrics(sibling, stage)
        source, target = sibling / stage, self.run / stage
        parts: dict[str, dict[PurePosixPath, FileFacts]] = defaultdict(dict)
        for name, facts in manifest.files.items():
            first, _, rest = name.partition("/")
            parts[first][PurePosixPath(rest)] = facts
        for part, files in parts.items():
            if PurePosixPath() in files:  # a file, not a folder
                _copy_file(source / part, target / part, files[PurePosixPath()])
            else:
                _copy_folder(source / part, target / part, files)
        for name in _LOGS:
            if (source / name).is_file():
                _copy_file(source / name, target / name, None)
        write_manifest(target, manifest)

    def _copy_metrics(self, sibling: Path, stage: str) -> None:
        path = sibling / "metrics.jsonl"
        rows = read_json_lines(path) if path.is_file() else []
        names = [name for name in dict.fromkeys(str(row["stage"]) for row in rows) if _owner(sibling, name) == stage]
        for name in names:
            self.metrics.begin(name, -1)
        for row in rows:
            if row["stage"] in names:
                self.metrics.add(**row)
        self.metrics.sync()


def _arithmetic(run: Path) -> list[object]:
    """Settings that change bits and are no inputs of stages, since within a run they stay or are told."""
    recipe = read_recipe(run).recipe
    return [recipe.get(key) for key in ("precision", "tokens_per_forward", "offload")]


def _owner(run: Path, name: str) -> str | None:
    """The finished stage that logged under a name: ``spin/iterate-1`` for ``spin/iterate-1/heldout``."""
    path = PurePosixPath(name)
    places = (str(place) for place in (path, *path.parents) if place.name)
    return next((place for place in places if (run / place / MANIFEST).is_file()), None)


def _copy_folder(source: Path, target: Path, files: dict[PurePosixPath, FileFacts]) -> None:
    with atomic_folder(target) as folder:
        for name, facts in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with _open(source / name) as original, (folder / name).open("wb") as copy:
                _copy_bytes(original, copy, facts)
            _keep_time(folder / name, facts)


def _copy_file(source: Path, target: Path, facts: FileFacts | None) -> None:
    with _open(source) as original, atomic_file(target) as copy:
        _copy_bytes(original, copy, facts)
    if facts:
        _keep_time(target, facts)


def _keep_time(path: Path, facts: FileFacts) -> None:
    """A start compares this time with the manifest, and reads the file only where it differs."""
    with contextlib.suppress(OSError):
        os.utime(path, ns=(facts.mtime_ns, facts.mtime_ns))


def _open(path: Path) -> BinaryIO:
    """Opens a file of another run; links lead out of it. Raises RunError."""
    try:
        return os.fdopen(os.open(path, os.O_RDONLY | NO_LINK), "rb")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error


def _copy_bytes(original: BinaryIO, copy: BinaryIO, facts: FileFacts | None) -> None:
    """Raises RunError for a file that cannot be read, or is not as ``facts`` say."""
    cloned = clone(copy.fileno(), original.fileno())
    digest = hashlib.sha256()
    for block in _blocks(original):
        digest.update(block)
        if not cloned:
            copy.write(block)
    if facts and digest.hexdigest() != facts.sha256:
        raise RunError(f"{original.name}: was changed after the run wrote it")


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    try:
        while block := file.read(1 << 20):
            yield block
    except OSError as error:
        raise RunError(f"{file.name}: cannot be read ({error.strerror})") from error
