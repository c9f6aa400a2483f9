"""A model of a run as a folder for others: merged weights, tokenizer, and its card."""

from __future__ import annotations

import hashlib
import logging
import os
from pathlib import Path
from typing import Literal

from spintune.errors import ModelError, RunError, StorageError
from spintune.export.card import CardFields, model_card
from spintune.export.rounding import round_folder
from spintune.progress import Progress, Silent
from spintune.report.facts import RunFacts
from spintune.report.reading import read_run
from spintune.run_folder import BASE
from spintune.run_models import model_name, stage_of, written_files
from spintune.storage import atomic_folder, read_json, remove_abandoned

Precision = Literal["float32", "bfloat16"]

log = logging.getLogger(__name__)

_BLOCK = 1 << 20  # bytes
_NAMING_CODE = ("config.json", "tokenizer_config.json")
"""Files whose ``auto_map`` names Python files to run."""


def export_model(
    folder: Path,
    out: Path,
    name: str | None = None,
    progress: Progress = Silent(),  # noqa: B008
    precision: Precision = "float32",
    fields: CardFields = CardFields(),  # noqa: B008
) -> str:
    """Copies a model of a run, and writes its card as README.md. Returns its name.

    Only files that the run wrote are copied, and only while their digests are those that it wrote down. The folder
    appears when it is complete. ``name`` as in :func:`~spintune.run_models.model_name`: the model that the run decided
    to use by default. ``precision`` "bfloat16" rounds the weights, which halves the folder; the run's own stay as they
    are. ``fields`` are what the card cannot know.

    Raises ModelError when the run has no such model, RunError when it is not as the run wrote it, StorageError when
    ``out`` exists.
    """
    run = read_run(folder)
    name = model_name(folder, name)
    if name == BASE:
        raise ModelError(_nothing_to_export(run))
    card = model_card(run, name, checked=True, rounded=precision == "bfloat16", fields=fields)
    if out.exists():
        raise StorageError(f"{out} already exists; name a new folder, or delete it")
    remove_abandoned(out)
    stage = str(stage_of(name))
    source = folder / stage
    files = written_files(folder, stage)
    _refuse_code(source, list(files))
    if left_out := sorted(str(p) for p in (source / "model").rglob("*") if str(p.relative_to(source)) not in files):
        log.warning("not exported, because the run did not write it: %s", ", ".join(left_out))
    megabytes = sum(file.bytes for file in files.values()) / 1e6
    with atomic_folder(out) as partial, progress.task(f"export {name}", megabytes, "MB") as task:
        for path, written in files.items():
            target = partial / Path(path).relative_to("model")
            target.parent.mkdir(parents=True, exist_ok=True)
            if _copy(source / path, target) != written.sha256:
                raise RunError(
                    f"{source / path}: was changed after the run wrote it; delete it and run the recipe again, "
                    "which makes it again"
                )
            task.advance(written.bytes / 1e6)
        if precision == "bfloat16":
            round_folder(partial)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return name


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


def _copy(source: Path, target: Path) -> str:
    """Copies a file that is no link. Returns the SHA-256 of what was copied."""
    sha = hashlib.sha256()
    with os.fdopen(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file, target.open("wb") as copy:
        while block := file.read(_BLOCK):
            sha.update(block)
            copy.write(block)
    return sha.hexdigest()
