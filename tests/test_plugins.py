"""Tables that users extend: names from Python and from installed packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from spintune.errors import RecipeError
from spintune.plugins import Table


def test_a_registered_thing_is_found_and_a_taken_name_refused() -> None:
    table = Table("shape", "spintune.test_shapes", {"circle": 1})
    table.register("square", 4)
    table.register("square", 4)
    assert list(table) == ["circle", "square"]
    assert table["square"] == 4
    with pytest.raises(RecipeError, match="a shape named 'circle' already"):
        table.register("circle", 2)
    table.unregister("square")
    assert "square" not in table


def test_an_unknown_name_gets_a_suggestion() -> None:
    table = Table("shape", "spintune.test_shapes", {"circle": 1, "square": 4})
    with pytest.raises(RecipeError, match=r"there is no shape 'cirle'; did you mean circle\?"):
        table["cirle"]
    with pytest.raises(RecipeError, match="there is no shape 'x'; use one of circle, square"):
        table["x"]


def package(folder: Path, module: str, text: str, entry: str, group: str = "spintune.test_shapes") -> None:
    """What pip leaves behind of a package with one module and one entry point."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(text)
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")


def test_an_installed_package_offers_more_and_a_broken_one_is_named(tmp_path: Path) -> None:
    """In a process of its own, whose path holds two packages."""
    package(tmp_path, "shapes_of_ann", "triangle = 3\n", "triangle = shapes_of_ann:triangle")
    package(tmp_path, "shapes_of_bob", "import no_such_module\n", "star = shapes_of_bob:star")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from spintune.errors import RecipeError\nfrom spintune.plugins import Table\n"
        "table = Table('shape', 'spintune.test_shapes', {'circle': 1})\n"
        "print(sorted(table), table['triangle'], 'shapes_of_bob' in sys.modules)\n"
        "try:\n    table['star']\nexcept RecipeError as error:\n    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "['circle', 'star', 'triangle'] 3 False",
        "the shape 'star' of package shapes_of_bob cannot be imported (ModuleNotFoundError: No module named "
        "'no_such_module'); fix or remove that package",
    ]


def test_an_installed_package_offers_a_checker_to_recipes(tmp_path: Path) -> None:
    """In a process of its own, whose path holds a package with a checker that is right about palindromes."""
    text = "def palindrome(answer, reference, prompt):\n    return answer == answer[::-1]\n"
    package(tmp_path, "checks_of_ann", text, "palindrome = checks_of_ann:palindrome", "spintune.checkers")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from spintune.checkers import build_checker\nfrom spintune.recipe import parse_recipe\n"
        "values = {'model': 'm', 'out': 'o', 'data': {'train': 'x.jsonl'}, 'eval': ['heldout'],\n"
        "          'evaluation': {'checker': 'palindrome'}}\n"
        "checker = build_checker(parse_recipe(values, 'r.yaml').evaluation.checker)\n"
        "print(checker.name, [checker.verdict(answer, '', '', 'row 1') for answer in ('level', 'label')])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "palindrome [1.0, 0.0]\n"
