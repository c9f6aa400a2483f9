"""``--dry-run``: the stages of a run, and how far each is, by the files of the run folder alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from spintune.cli.options import print_json

if TYPE_CHECKING:
    from spintune.recipe import Recipe

State = Literal["finished", "begun", "to do"]


def show_stages(recipe: Recipe, until: str, as_json: bool) -> None:
    """Lists the stages of a recipe.

    Raises RunError where its folder belongs to another recipe, ModelError or DataError where its model or data are
    paths that lead nowhere.
    """
    from spintune.run_folder import RunFolder
    from spintune.stages.schedule import expected_stages, folder_of

    RunFolder(recipe, lambda precision: precision).check()
    check_paths(recipe)
    out = Path(recipe.out)
    found = []
    for stage in expected_stages(recipe, until):
        state, step = _state(out, folder_of(stage.name))
        found.append({"name": stage.name, "state": state, **({"step": step} if step else {})})
    if as_json:
        print_json({"folder": str(out), "stages": found})
        return
    print(f"{out}: {len(found)} stages")
    width = max(len(str(one["name"])) for one in found)
    for number, one in enumerate(found, 1):
        newest = f", checkpoint of step {one['step']}" if "step" in one else ""
        print(f"{number:4}  {one['name']!s:{width}}  {one['state']}{newest}")
    print("A finished stage runs again if its model, data or settings have changed since.")


def check_paths(recipe: Recipe) -> None:
    """Raises ModelError or DataError where a recipe's model or data are paths that lead nowhere; asks no hub."""
    from spintune.models.names import check_name
    from spintune.stages.schedule import check_data_files

    check_name(recipe.model)
    check_data_files(recipe)


def _state(out: Path, folder: str | None) -> tuple[State, int | None]:
    """How far a stage is, and the step of its newest checkpoint."""
    from spintune.run_folder import MANIFEST
    from spintune.storage import read_json

    if folder is None:  # the evaluations, which are many
        path = out / "results.json"
        known = read_json(path) if path.is_file() else {}
        return ("finished" if known.get("heldout") or known.get("benchmarks") else "to do"), None
    place = out / folder
    if (place / MANIFEST).is_file():
        return "finished", None
    steps = [read_json(path).get("step") for path in (place / "checkpoints").rglob("checkpoint.json")]
    known_steps = [step for step in steps if isinstance(step, int)]
    return ("begun" if place.exists() else "to do"), max(known_steps, default=None)
