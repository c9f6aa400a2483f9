"""The models of a run folder: where each is, which one to use, and whether its folder is as the run wrote it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from spintune.errors import ModelError, RunError
from spintune.results import BestModel
from spintune.run_folder import (
    BASE,
    BASELINE,
    MANIFEST,
    SFT,
    FileFacts,
    iterations_of,
    read_manifest,
    read_recipe,
    same_place,
)
from spintune.storage import is_note, read_json
from spintune.typed_json import from_json

_STAGES = {SFT: "sft", BASELINE: "spin/baseline-sft"}
_PARTS = ("model", "adapter")
_ITERATE = re.compile(r"iterate-[1-9][0-9]{0,8}")
LOADED = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".pt", ".py")
"""Kinds of files that loading a model folder may read."""


def stage_of(name: str) -> str | None:
    """The stage that makes a model of a run (``spin/iterate-2``); None for other names, and for the recipe's own."""
    return f"spin/{name}" if _ITERATE.fullmatch(name) else _STAGES.get(name)


def read_best(folder: Path) -> BestModel | None:
    """``spin/best.json``; None where self-play has chosen none. Raises RunError when it names no model of the run."""
    path = folder / "spin" / "best.json"
    if not path.is_file():
        return None
    best = from_json(BestModel, read_json(path), path)
    base, stage = str(read_recipe(folder).recipe.get("model")), stage_of(best.name)
    own = best.name == BASE and (best.model == base or same_place(best.model, base))
    if not own and (stage is None or best.model != f"{stage}/model"):
        raise RunError(f"{path}: {best.model!r:.80} is no model of this run; delete it and run again")
    return best


def final_model(folder: Path) -> str:
    """The model of a run folder to use: its best iterate, or the last finished model while self-play goes on.

    Raises ModelError when the run has no finished model yet, RunError when its folder is not as the run wrote it.
    """
    best = read_best(folder)
    if best is not None and best.name == BASE:
        return best.model  # the recipe's own model is elsewhere
    iterates = [f"iterate-{number}" for number in range(iterations_of(read_recipe(folder).recipe), 0, -1)]
    for name in [best.name] if best else [*iterates, SFT]:
        stage = str(stage_of(name))
        if (folder / stage / MANIFEST).is_file():
            written_files(folder, stage)
            return str(folder / stage / "model")
    raise ModelError(f"run {folder} has no finished model yet; run its recipe again to continue")


def written_files(run: Path, stage: str, part: str = "model") -> dict[str, FileFacts]:
    """The files of a model that a finished stage wrote, by path inside the stage's folder.

    Raises ModelError for a model that the run deleted. Raises RunError for links, which may lead out of the run, for
    files that loading would read and the run did not write, and for files that are gone. Contents are not compared.
    """
    manifest = read_manifest(run / stage)
    files = {name: facts for name, facts in manifest.files.items() if name.startswith(f"{part}/")}
    if part in manifest.deleted:
        raise ModelError(f"{run / stage / part}: was deleted (spin.keep); name another model of the run")
    if not files:
        raise RunError(f"{run / stage / MANIFEST}: names no files of a model; delete it and run again")
    place = run
    for step in (*Path(stage).parts, part):
        place = place / step
        _refuse_link(place)
    for path in place.rglob("*"):
        _refuse_link(path)
        name = str(path.relative_to(run / stage))
        if name not in files and path.suffix.lower() in LOADED and not is_note(path.name):
            raise RunError(
                f"{path}: the run did not write this file, and the model would be loaded with it; move it away"
            )
    for name in files:
        if not (run / stage / name).is_file():
            raise RunError(f"{run / stage / name}: is gone; run the recipe again")
    return files


def check_inside_run(model: str) -> None:
    """Checks a model folder that a run wrote as :func:`written_files` does; other names and folders pass."""
    given = Path(model).expanduser()
    for path in dict.fromkeys((Path(os.path.abspath(given)), given.resolve())):  # noqa: PTH100 - links stay
        stage = path.parent
        if path.name not in _PARTS or not (stage / MANIFEST).is_file():
            continue
        for run in stage.parents:
            if (run / "recipe.json").is_file():
                written_files(run, str(stage.relative_to(run)), path.name)
                break


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise RunError(f"{path}: is a link, and the run wrote none; put what it leads to in its place, or delete it")
