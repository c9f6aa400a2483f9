"""IFEval prompts and the instructions that a response to each must follow."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from spintune.data.file_rows import FileRow, kind_of
from spintune.data.tables import line_rows
from spintune.errors import DataError
from spintune.evaluation.ifeval.language import detect
from spintune.evaluation.ifeval.rules import INSTRUCTION_RULES


@dataclass(frozen=True)
class Instruction:
    """One verifiable instruction: a name of ``rules.INSTRUCTION_RULES`` and its parameters."""

    type: str
    parameters: Mapping[str, object]


@dataclass(frozen=True)
class Prompt:
    """A prompt of IFEval, with its instructions."""

    key: str
    text: str
    instructions: tuple[Instruction, ...]


def read_prompts(path: Path) -> list[Prompt]:
    """Reads prompts as JSON lines of the official form: ``key, prompt, instruction_id_list, kwargs``.

    Parameters that are null count as absent (the copy on the Hugging Face hub lists all parameters in every row).

    Raises DataError when the file is missing or empty, and with its line for the first row that is no JSON, lacks a
    key, names an unknown type, gives a type the wrong parameters, or repeats the key of an earlier row.
    """
    prompts: dict[str, Prompt] = {}
    for row in line_rows(path):
        prompt = _prompt(row)
        if prompt.key in prompts:
            raise DataError(f"{row.where}: key {prompt.key} occurs twice; give every prompt its own key")
        prompts[prompt.key] = prompt
    if not prompts:
        raise DataError(f"{path}: empty; give a file with at least one prompt")
    return list(prompts.values())


def require_langdetect(prompts: Iterable[Prompt]) -> None:
    """Raises MissingExtraError when the prompts need langdetect and it is not installed; call it before generating."""
    if any(
        INSTRUCTION_RULES[instruction.type].needs_langdetect
        for prompt in prompts
        for instruction in prompt.instructions
    ):
        detect("")


def _prompt(row: FileRow) -> Prompt:
    key = row.values.get("key")
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise row.wrong("key", "a number or text", "give every prompt a key")
    types, parameters = _list(row, "instruction_id_list"), _list(row, "kwargs")
    if len(types) != len(parameters) or not types:
        raise DataError(
            f"{row.where}: {len(types)} instructions and {len(parameters)} kwargs; "
            "give at least one instruction, and one object of kwargs for each"
        )
    instructions = [_instruction(row.where, *each) for each in zip(types, parameters, strict=True)]
    return Prompt(str(key), row.text("prompt", "a prompt"), tuple(instructions))


def _list(row: FileRow, key: str) -> list[object]:
    value = row.values.get(key)
    if not isinstance(value, list):
        raise row.wrong(key, "a list", "fix or delete the row")
    return value


def _instruction(where: str, name: object, given: object) -> Instruction:
    if not isinstance(name, str) or name not in INSTRUCTION_RULES:
        close = difflib.get_close_matches(str(name), INSTRUCTION_RULES, 1)
        advice = f"did you mean '{close[0]}'?" if close else f"use one of {', '.join(INSTRUCTION_RULES)}"
        raise DataError(f"{where}: unknown instruction type '{name}'; {advice}")
    if not isinstance(given, dict):
        raise DataError(f"{where}: the kwargs of {name} are {kind_of(given)}, not an object; use {{}} for none")
    parameters = {key: value for key, value in given.items() if value is not None}
    kinds = INSTRUCTION_RULES[name].parameters
    if parameters.keys() != kinds.keys():
        found, expected = ", ".join(parameters) or "nothing", ", ".join(kinds) or "nothing"
        raise DataError(f"{where}: {name} is given {found}; it takes {expected}")
    for key, value in parameters.items():
        if not kinds[key].fits(value):
            raise DataError(f"{where}: {key} of {name} is {value!r}; give {kinds[key].words}")
    return Instruction(name, parameters)
