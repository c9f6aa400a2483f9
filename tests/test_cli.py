"""The command line by itself: help, exit codes, the schema. The commands at work are in tests/worlds."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune import errors
from spintune.recipe import recipe_schema

Spintune = Callable[..., Any]


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    kinds = errors.SpintuneError.__subclasses__()
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(kinds) == 12
    assert not set(codes) & {0, 1, 130}  # success, a bug, Ctrl-C


@pytest.mark.parametrize("command", ["run", "sft", "spin", "inspect", "chat", "doctor", "schema"])
def test_every_command_explains_itself(spintune: Spintune, command: str) -> None:
    result = spintune(command, "--help")
    assert result.code == 0
    assert f"spintune {command}" in result.out
    assert command in spintune("--help").out


def test_schema_prints_the_schema(spintune: Spintune) -> None:
    result = spintune("schema")
    assert result.code == 0
    assert json.loads(result.out) == recipe_schema()


def test_a_bug_is_one_line_and_its_traceback_is_kept(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spintune.recipe.recipe_schema", lambda: 1 // 0)
    result = spintune("schema")
    assert result.code == errors.InternalError.exit_code
    told = re.fullmatch(
        r"spintune: an error that spintune does not foresee: ZeroDivisionError: .*; its traceback is in (\S+), .*\n",
        result.err,
    )
    assert told
    assert Path(told[1]).read_text().endswith("ZeroDivisionError: integer division or modulo by zero\n")
    monkeypatch.setenv("SPINTUNE_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        spintune("schema")


def test_a_panic_of_rust_is_one_line(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    def fail() -> None:
        raise panic("\x1b[31mretry-limit-in-match over")

    monkeypatch.setattr("spintune.recipe.recipe_schema", fail)
    result = spintune("schema")
    assert result.code == errors.InternalError.exit_code
    assert result.err.count("\n") == 1
    assert "PanicException: \\x1b[31mretry-limit-in-match over; its traceback is in" in result.err


def test_ctrl_c_is_130_and_one_line(spintune: Spintune, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("spintune.recipe.recipe_schema", interrupted)
    result = spintune("schema")
    assert result.code == 130
    assert result.err == "spintune: stopped; the same command continues\n"
