"""The command that shows the recipes that come with spintune."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer

from spintune.cli.options import Json, print_json


def recipes(
    name: Annotated[str | None, typer.Argument(help="A recipe to print; without it, all are listed.")] = None,
    json: Json = False,
) -> None:
    """List the recipes that come with spintune, or print one: spintune recipes quickstart > mine.yaml."""
    from spintune.errors import RecipeError
    from spintune.recipe.packaged_recipes import about_recipe, packaged_recipes

    known = packaged_recipes()
    if name is not None:
        if name not in known:
            raise RecipeError(f"there is no recipe {name!r} in spintune; use one of {', '.join(known)}")
        print(known[name].read_text(), end="")
        return
    about = {one: about_recipe(path.read_text()) for one, path in known.items()}
    if json:
        print_json([{"name": one, "about": text} for one, text in about.items()])
        return
    width = max(map(len, about), default=0)
    for one, text in about.items():
        print(f"{one:{width}}  {textwrap.shorten(text, 78 - width, placeholder=' …')}")
    print("\nspintune run NAME runs one, spintune recipes NAME > FILE copies it.")
