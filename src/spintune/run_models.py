"""The models of a run folder: where each is, which one to use, and whether its folder is as the run wrote it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from spintune.errors import ModelError, RunError
from spintune.evaluation.decision import BestModel, decision_file, read_decision
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
from spintune.storage import is_note

_STAGES = {SFT: "sft", BASELINE: "spin/baseline-sft"}
_PARTS = ("model", "adapter")
_ITERATE = re.compile(r"iterate-[1-9][0-9]{0,8}")
LOADED = (".json", ".jinja", ".model", ".txt", ".safetensors", ".bin", ".pt", ".py")
"""Kinds of files that loading a model folder may read."""


def stage_of(name: str) -> str | None:
    """The stage that makes a model of a run (``spin/iterate-2``); None for other names, and for the recipe's own."""
    return f"spin/{name}" if _ITERATE.fullmatch(name) else _STAGES.get(name)


def read_best(folder: Path) -> BestModel | None:
    """The decision of a run; None where it has made none. Raises RunError when it names no model of the run."""
    best = read_decision(folder)
    if best is None:
        return None
    base, stage = str(read_recipe(folder).recipe.get("model")), stage_of(best.name)
    own = best.name == BASE and (best.model == base or same_place(best.model, base))
    if not own and (stage is None or best.model != f"{stage}/model"):
        path = decision_file(folder)
        raise RunError(f"{path}: {best.model!r:.80} is no model of this run; delete it and run again")
    return best


def trained_models(folder: Path) -> list[str]:
    """The models that the run has finished training, in the order in which they were made, deleted ones included."""
    iterates = [f"iterate-{number}" for number in range(1, iterations_of(read_recipe(folder).recipe) + 1)]
    names = [SFT, *iterates, BASELINE]
    return [name for name in names if (folder / str(stage_of(name)) / MANIFEST).is_file()]


def model_name(folder: Path, choice: str | None = None) -> str:
    """The name of a run's model.

    Args:
        choice: ``best`` (the run's decision) as by default, ``last`` (the newest that it trained, apart from the
            baseline), or a name. Without a decision the best is the last.

    Raises ModelError when the run has no such model yet.
    """
    trained = trained_models(folder)
    if choice in (None, "best") and (best := read_best(folder)) is not None:
        return best.name
    if choice in (None, "best", "last"):
        if not trained:
            raise ModelError(f"run {folder} has no finished model yet; run its recipe again to continue")
        return next((name for name in reversed(trained) if name != BASELINE), trained[-1])
    if choice not in (BASE, *trained):
        raise ModelError(f"run {folder} has no model {choice}; it has {', '.join((BASE, *trained))}, or best, or last")
    return str(choice)


def final_model(folder: Path, choice: str | None = None) -> str:
    """Where a model of a run folder is: the one to use, or the one of :func:`model_name`.

    Raises ModelError when the run has no such model, RunError when its folder is not as the run wrote it.
    """
    name = model_name(folder, choice)
    if name == BASE:
        return str(read_recipe(folder).recipe["model"])  # is elsewhere
    stage = str(stage_of(name))
    if not (folder / stage / MANIFEST).is_file():
        raise ModelError(f"run {folder} has no finished model {name} yet; run its recipe again to continue")
    written_files(folder, stage)
    return str(folder / stage / "model")


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
    for run, stage, part in _places_in_runs(model):
        written_files(run, stage, part)


def training_files(model: str) -> dict[Path, Path]:
    """The rows that a model was trained on, by the run that trained on them: that of its folder, and those before.

    Empty for models that no run on this machine wrote.
    """
    found: dict[Path, Path] = {}
    while place := next(_places_in_runs(str(Path(model).expanduser().resolve())), None):
        run, stage, _ = place
        if run in found:
            break
        seen = run / "data/seen.jsonl"
        found[run] = seen if stage == _STAGES[SFT] and seen.is_file() else run / "data/train.jsonl"
        model = str(read_recipe(run).recipe.get("model"))
    return {run: file for run, file in found.items() if file.is_file()}


def _places_in_runs(model: str) -> Iterator[tuple[Path, str, str]]:
    """Run, stage and part of a model folder that a run wrote; nothing for other names and folders."""
    given = Path(model).expanduser()
    for path in dict.fromkeys((Path(os.path.abspath(given)), given.resolve())):  # noqa: PTH100 - links stay
        stage = path.parent
        if path.name not in _PARTS or not (stage / MANIFEST).is_file():
            continue
        for run in stage.parents:
            if (run / "recipe.json").is_file():
                yield run, str(stage.relative_to(run)), path.name
                break


def _refuse_link(path: Path) -> None:
    if path.is_symlink():
        raise RunError(f"{path}: is a link, and the run wrote none; put what it leads to in its place, or delete it")
