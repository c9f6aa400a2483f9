"""The recipes that come with spintune: ``spintune run quickstart`` works from a wheel as from a clone."""

from __future__ import annotations

import re
from pathlib import Path

_FOLDERS = (Path(__file__).parent / "files", Path(__file__).parents[3] / "recipes")
"""In a wheel; in a clone."""


def packaged_recipes() -> dict[str, Path]:
    """The recipes that come with spintune, by name."""
    folder = next((folder for folder in _FOLDERS if (folder / "quickstart.yaml").is_file()), None)
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))} if folder else {}


def find_recipe(path: Path) -> Path:
    """The file at ``path``; where there is none, the packaged recipe of this name, with or without ``recipes/``."""
    if path.exists() or path.parent not in (Path(), Path("recipes")) or path.suffix not in ("", ".yaml"):
        return path
    return packaged_recipes().get(path.stem, path)


def about_recipe(text: str) -> str:
    """What a recipe is for: the first sentence of the comment at its head."""
    lines = [line for line in text.splitlines() if not line.startswith("# yaml-language-server")]
    head = " ".join(line.removeprefix("#").strip() for line in lines[: _head_lines(lines)])
    return re.split(r"(?<=\.)\s(?=[A-Z])", head, maxsplit=1)[0].rstrip(".")


def _head_lines(lines: list[str]) -> int:
    return next((number for number, line in enumerate(lines) if not line.startswith("#")), len(lines))
