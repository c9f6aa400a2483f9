"""A model of a run as a folder for others: merged weights, tokenizer, and its card."""

from __future__ import annotations

import shutil
from pathlib import Path

from spintune.errors import ModelError, StorageError
from spintune.export.card import model_card
from spintune.report.reading import read_run
from spintune.run_folder import BASE
from spintune.storage import storage_errors


def export_model(folder: Path, out: Path, name: str | None = None) -> str:
    """Copies a model of a run, and writes its card as README.md. Returns its name.

    The folder appears when it is complete. Without ``name`` it is the best iterate, or the last model.

    Raises ModelError when the run has no such model, StorageError when ``out`` exists.
    """
    run = read_run(folder)
    own = [model for model in run.models if model.name != BASE]
    if not own:
        raise ModelError(f"{folder} has no finished model of its own yet; run its recipe again to continue")
    if name is None:
        best = run.best.name if run.best else None
        name = best if best in [model.name for model in own] else own[-1].name
    card = model_card(run, name)
    if out.exists():
        raise StorageError(f"{out} already exists; name a new folder, or delete it")
    partial = out.with_name(out.name + ".partial")
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.copytree(folder / run.model(name).place, partial)
        (partial / "README.md").write_text(card)
        partial.rename(out)
    return name
