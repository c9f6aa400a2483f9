"""A model of a run as a folder for others: merged weights, tokenizer, and its card; or its adapter alone."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from spintune.errors import RecipeError
from spintune.export.card import CardFields, model_card
from spintune.export.rounding import round_folder
from spintune.export.source import ExportSource, copy_checked, export_source, refuse_existing
from spintune.progress import Progress, Silent
from spintune.storage import atomic_folder

FolderType = Literal["float32", "bfloat16", "float16"]


def export_model(
    folder: Path,
    out: Path,
    name: str | None = None,
    progress: Progress = Silent(),  # noqa: B008
    dtype: FolderType = "float32",
    fields: CardFields = CardFields(),  # noqa: B008
    adapter: bool = False,
) -> str:
    """Copies a model of a run, and writes its card as README.md. Returns its name.

    Only files that the run wrote are copied, and only while their digests are those that it wrote down. The folder
    appears when it is complete. ``name`` as in :func:`~spintune.run_models.model_name`: the model that the run decided
    to use by default. ``dtype`` "bfloat16" or "float16" rounds the weights, which halves the folder; the run's own stay
    as they are. ``fields`` are what the card cannot know. ``adapter`` copies what LoRA trained, without the model.

    Raises ModelError when the run has no such model or its weights are too large for float16, RunError when it is not
    as the run wrote it, StorageError when ``out`` exists.
    """
    if adapter and dtype != "float32":
        raise RecipeError(f"--adapter keeps the type of its weights; leave --dtype {dtype} out")
    source = export_source(folder, name, "adapter" if adapter else "model")
    card = model_card(source.run, source.name, True, None if dtype == "float32" else dtype, fields, adapter)
    refuse_existing(out)
    with atomic_folder(out) as partial:
        copy_source(source, partial, progress)
        if dtype != "float32":
            round_folder(partial, dtype)
        (partial / "README.md").write_text(card, encoding="utf-8")
    return source.name


def copy_source(source: ExportSource, target: Path, progress: Progress) -> None:
    """Copies the files of a model, each compared with its digest."""
    with progress.task(f"export {source.name}", source.megabytes, "MB") as task:
        for path, written in source.files.items():
            copy = target / Path(path).relative_to(source.part)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy_checked(source.stage / path, copy, written.sha256)
            task.advance(written.bytes / 1e6)
