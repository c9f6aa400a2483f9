"""The runs of a sweep, each with its recipe and folder; everything that can be wrong with them is found here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from spintune.errors import RecipeError, RunError
from spintune.recipe import Recipe, load_recipe
from spintune.storage import digest_json
from spintune.sweeps.values import SEED, as_overrides, folder_names, label, read_values


@dataclass(frozen=True)
class PlannedRun:
    """One run of a sweep.

    Attributes:
        name: of its folder.
        values: of the keys that vary.
    """

    name: str
    values: dict[str, object]
    recipe: Recipe

    @property
    def folder(self) -> Path:
        return Path(self.recipe.out)

    @property
    def setting(self) -> dict[str, object]:
        """The values without the seed."""
        return {key: value for key, value in self.values.items() if key != SEED}


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep, in the order in which they are run.

    Attributes:
        folder: in which each run has its own.
        axes: the values of each key that varies.
    """

    folder: Path
    axes: dict[str, list[object]]
    runs: tuple[PlannedRun, ...]

    def part(self, number: int, parts: int) -> tuple[PlannedRun, ...]:
        """The runs of part 1, 2, ... of so many, of about equal size; neighbors stay together."""
        count = len(self.runs)
        return self.runs[(number - 1) * count // parts : number * count // parts]


def plan_sweep(path: Path, words: Sequence[str], many: bool = False) -> SweepPlan:
    """The runs of a recipe with the values of a command line.

    The folder is the ``out=`` among the words, or else the recipe's ``out`` with ``-sweep`` behind it.

    Args:
        many: whether more runs than usual are meant.

    Raises RecipeError, one line for each thing that is wrong with any of the recipes.
    """
    values = read_values(words, many)
    product = values.product()
    recipes = _recipes(path, values.fixed, product)
    names = folder_names(product)
    given = any(word.partition("=")[0].strip() == "out" for word in values.fixed)
    out = recipes[0].out.rstrip("/")
    folder = Path(out if given else f"{out}-sweep")
    if (folder / "recipe.json").is_file():
        raise RunError(f"{folder} holds a run; choose another out= for the sweep")
    if (folder / "report.html").exists() and not (folder / "sweep.json").is_file():
        raise RunError(f"{folder} has a report.html of something else; choose another out= for the sweep")
    runs = tuple(
        PlannedRun(name, varied, recipe.model_copy(update={"out": str(folder / name)}))
        for name, varied, recipe in zip(names, product, recipes, strict=True)
    )
    return SweepPlan(folder, {key: list(found) for key, found in values.axes.items()}, runs)


def _recipes(path: Path, fixed: Sequence[str], product: Sequence[Mapping[str, object]]) -> list[Recipe]:
    """The checked recipe of each run. Raises RecipeError."""
    recipes: list[Recipe] = []
    problems: dict[str, list[str]] = {}  # what is wrong, and in which runs
    for values in product:
        try:
            recipes.append(load_recipe(path, [*fixed, *as_overrides(values)]))
        except RecipeError as error:
            for line in str(error).splitlines():
                problems.setdefault(line, []).append(label(values))
    if problems:
        raise RecipeError("\n".join(_told(line, runs, product) for line, runs in problems.items()))
    seen: dict[str, str] = {}
    for values, recipe in zip(product, recipes, strict=True):
        name = label(values)
        if (other := seen.setdefault(digest_json(recipe.identity()), name)) is not name:
            raise RecipeError(f"{other} and {name} are the same run; give each value once, of keys that change results")
    return recipes


def _told(line: str, runs: Sequence[str], product: Sequence[Mapping[str, object]]) -> str:
    """A line of an error, with the runs that it is of where others are right."""
    more = f" and {len(runs) - 1} more" if len(runs) > 1 else ""
    where = "" if len(runs) == len(product) else f" (in {runs[0]}{more})"
    listed = [key for key in product[0] if f" {key}: " in line and "valid list" in line]
    hint = f"; a list of lists gives lists as values: {listed[0]}=[[...]]" if listed else ""
    return f"{line}{hint}{where}"
