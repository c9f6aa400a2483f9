"""A model of a run that is exported: its files, which must be as the run wrote them."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spintune.errors import ModelError, RunError, StorageError
from spintune.portable import NO_LINK
from spintune.progress import Progress
from spintune.report.facts import RunFacts
from spintune.report.reading import read_run
from spintune.run_folder import BASE, FileFacts
from spintune.run_models import model_name, stage_of, written_files
from spintune.storage import read_json, remove_abandoned

log = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes
_NAMING_CODE = ("config.json", "tokenizer_config.json")
"""Files whose ``auto_map`` names Python files to run."""


@dataclass(frozen=True)
class ExportSource:
    """A model of a run.

    Attributes:
        stage: the folder of the stage that made it.
        part: "model", or "adapter" for what LoRA trained alone.
        files: those that the run wrote, by path inside ``stage``.
    """

    run: RunFacts
    name: str
    stage: Path
    part: str
    files: Mapping[str, FileFacts]

    @property
    def folder(self) -> Path:
        """The folder of the model."""
        return self.stage / self.part

    @property
    def megabytes(self) -> float:
        """Of all its files."""
        return sum(file.bytes for file in self.files.values()) / 1e6

    def check(self, progress: Progress) -> None:
        """Compares every file with its digest. Raises RunError for one that was changed."""
        with progress.task("read", self.megabytes, "MB") as task:
            for path, written in self.files.items():
                copy_checked(self.stage / path, None, written.sha256)
                task.advance(written.bytes / 1e6)


def export_source(folder: Path, name: str | None, part: str = "model") -> ExportSource:
    """The model of a run to export.

    Raises ModelError when the run has no such model, or it is none of its own; RunError when files are missing, links,
    code, or not the run's.
    """
    run = read_run(folder)
    name = model_name(folder, name)
    if name == BASE:
        raise ModelError(_nothing_to_export(run))
    stage = str(stage_of(name))
    if part == "adapter" and not (folder / stage / part).is_dir():
        kept = "its adapter was not kept" if run.recipe["lora"] else "it was trained without LoRA"
        raise ModelError(f"{folder} has no adapter of {name} ({kept}); leave --adapter out")
    files = written_files(folder, stage, part)
    _refuse_code(folder / stage, list(files))
    place = folder / stage
    if left_out := sorted(str(p) for p in (place / part).rglob("*") if str(p.relative_to(place)) not in files):
        log.warning("not exported, because the run did not write it: %s", ", ".join(left_out))
    return ExportSource(run, name, place, part, files)


def refuse_existing(out: Path) -> None:
    """Raises StorageError where something is there already; removes what a killed export left."""
    if out.exists() or out.is_symlink():
        raise StorageError(f"{out} already exists; name a new place, or delete it")
    remove_abandoned(out)


def copy_checked(source: Path, target: Path | None, sha256: str) -> None:
    """Copies a file that is no link; None only reads it. Raises RunError when it is not what the run wrote."""
    sha = hashlib.sha256()
    with (
        os.fdopen(os.open(source, os.O_RDONLY | NO_LINK), "rb") as file,
        Path(target or os.devnull).open("wb") as copy,
    ):
        while block := file.read(_BLOCK):
            sha.update(block)
            copy.write(block)
    if sha.hexdigest() != sha256:
        raise RunError(
            f"{source}: was changed after the run wrote it; delete it and run the recipe again, which makes it again"
        )


def _nothing_to_export(run: RunFacts) -> str:
    """Why base is not exported, and what to do."""
    chosen = f" and the model to use ({run.best.why})" if run.best and run.best.name == BASE else ""
    others = " or ".join(f"--model {model.name}" for model in run.models if model.name != BASE)
    return f"base is {run.recipe['model']}, the recipe's own model{chosen}; a run exports only what it trained" + (
        f", such as {others}" if others else ""
    )


def _refuse_code(source: Path, files: list[str]) -> None:
    """Raises RunError for Python files, and for settings that name some."""
    for path in files:
        if path.endswith(".py"):
            raise RunError(f"{source / path}: is code, which no model of a run has; delete it and run the recipe again")
        if Path(path).name in _NAMING_CODE and "auto_map" in read_json(source / path):
            raise RunError(
                f"{source / path}: its auto_map names code to run, which is not exported; if you trust the rest, copy "
                "the model folder by hand and delete that key"
            )
