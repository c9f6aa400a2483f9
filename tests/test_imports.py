"""Import cost is part of the design: help, recipes, records and data never load torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "datasets", "tensorboard")


def loaded_by(program: str, *arguments: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded at the end of a program."""
    ending = "\nimport sys as s\ns.stderr.write(' '.join({name.partition('.')[0] for name in s.modules}))"
    result = subprocess.run(
        [sys.executable, "-c", program + ending, *arguments], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return set(result.stderr.splitlines()[-1].split())


@pytest.mark.parametrize(
    ("arguments", "more"),
    [
        (("--help",), {"numpy", "pydantic", "rich", "hashlib"}),  # what commands import
        (("run", "--help"), {"numpy"}),  # typer itself looks for pydantic there
    ],
)
def test_help_loads_neither_torch_nor_transformers(arguments: tuple[str, ...], more: set[str]) -> None:
    program = (
        "from spintune.cli import main\ntry:\n    main()\nexcept SystemExit as ending:\n    assert not ending.code"
    )
    assert not loaded_by(program, *arguments) & {*HEAVY, *more}


def test_everything_before_the_model_is_imported_without_torch() -> None:
    program = (
        "import importlib, pkgutil\nimport spintune.data, spintune.recipe, spintune.records, spintune.run_folder\n"
        "for module in pkgutil.iter_modules(spintune.data.__path__):\n"
        "    importlib.import_module(f'spintune.data.{module.name}')\n"
        "import spintune.storage, spintune.errors, spintune.progress, spintune.console\n"
        "import spintune.doctor, spintune.tracking, spintune.evaluation.statistics\n"
    )
    assert not loaded_by(program) & set(HEAVY)


def test_reading_data_and_checking_a_recipe_load_no_torch() -> None:
    program = (
        "from spintune.data.sources import Source, read_sources\nfrom spintune.recipe import parse_recipe\n"
        "parse_recipe({'out': 'o', 'model': 'm', 'data': {'train': 'builtin:seeds'}}, 't')\n"
        "assert read_sources([Source('builtin:seeds')], 0).examples\n"
    )
    assert not loaded_by(program) & set(HEAVY)
