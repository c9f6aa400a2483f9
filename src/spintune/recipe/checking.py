"""Checks plain values against a section, and says in plain words which key is wrong and what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from spintune.errors import RecipeError
from spintune.recipe.other_names import counted, nearest
from spintune.recipe.section import Section
from spintune.recipe.yaml_files import read_yaml

S = TypeVar("S", bound=BaseModel)

_MOVED = {"spin.metric": "evaluation.metric"}
"""Keys of earlier versions, with where they are now."""

Elsewhere = Callable[[str], list[str]]
"""The full keys of other sections that have a key of this name."""


def read_section(path: Path, section: type[S], what: str) -> S:
    """Reads and checks a YAML file; ``what`` ("task") names it in errors.

    Raises RecipeError, one line (file and key) for each thing that is wrong.
    """
    return checked(read_yaml(path, what), section, str(path))


def checked(values: Mapping[str, object], section: type[S], name: str, elsewhere: Elsewhere = lambda key: []) -> S:
    """Checks plain values as a section.

    Raises RecipeError, one line for each thing that is wrong, which begins with ``name``.
    """
    try:
        return section.model_validate(dict(values))
    except ValidationError as error:
        lines = [f"{name}: {_explain(one, section, elsewhere)}" for one in _numbers_or_words(_meant(error.errors()))]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error


def section_in(annotation: object) -> type[Section] | None:
    """The section that a field of this type holds: itself, one of several, or the items of a list or mapping."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(section_in, get_args(annotation))), None)


def keys_of(section: type[BaseModel]) -> dict[str, str]:
    """The keys of a section, each with its description."""
    return {field.alias or name: field.description or "" for name, field in section.model_fields.items()}


def _explain(problem: ErrorDetails, root: type[BaseModel], elsewhere: Elsewhere) -> str:
    location, where = problem["loc"], _key_of(problem)
    if problem["type"] == "extra_forbidden" and where in _MOVED:
        return f"{where} is now {_MOVED[where]}; write it there"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}; {_suggestion(location, root, elsewhere)}"
    if problem["type"] == "missing":
        key = str(location[-1])
        meaning = (keys_of(_section_of(location, root)).get(key) or "").replace(". [", " [").removesuffix(".")
        return f"{where} is missing; add '{key}: ...'" + (f" ({meaning[:1].lower()}{meaning[1:]})" if meaning else "")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"{where}: {message}" if where else message
    hint = "; put it in quotes" if isinstance(problem["input"], bool) and problem["type"] == "string_type" else ""
    given = (
        "" if location[-1:] in [("url",), ("key_variable",)] else f" (given: {problem['input']!r:.60})"
    )  # maybe a key
    return f"{where}: {message}{given}{hint}"


def _key_of(problem: ErrorDetails) -> str:
    return ".".join(str(part) for part in problem["loc"] if not _is_type_tag(part))


def _numbers_or_words(problems: Sequence[ErrorDetails]) -> Iterator[ErrorDetails]:
    """Of a field that takes a number or a word, pydantic reports what is wrong as both: here it is one problem."""
    words = {_key_of(one): one["ctx"]["expected"] for one in problems if one["type"] == "literal_error"}
    others = {_key_of(one) for one in problems if one["type"] != "literal_error"}
    for one in problems:
        key = _key_of(one)
        if one["type"] == "literal_error" and key in others:
            continue
        if key in words and key in others:
            one["msg"] += f", or {words[key]}"
        yield one


def _meant(problems: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Without the halves of errors that were not meant, unless a field has no other half: it takes no list."""
    keys = [f"{_key_of(one)}." for one in problems if _was_meant(one)]
    return [one for one in problems if _was_meant(one) or not any(key.startswith(f"{_key_of(one)}.") for key in keys)]


def _was_meant(problem: ErrorDetails) -> bool:
    """False for the half of an error that assumes a list where one value was given, or one value for a list.

    Of a field that takes either, pydantic reports what is wrong as both.
    """
    tag = problem["loc"][-1] if problem["loc"] else ""
    return not _is_type_tag(tag) or isinstance(problem["input"], list) == str(tag).startswith("list[")


def _is_type_tag(part: int | str) -> bool:
    """Whether a part of a location names an alternative that pydantic tried, and is not a key."""
    return isinstance(part, str) and re.match(r"(constrained-)?(float|int)$|[a-z-]+\[", part) is not None


def _section_of(location: tuple[int | str, ...], root: type[BaseModel]) -> type[BaseModel]:
    """The section that the last key of a location belongs to."""
    section = root
    for part in location[:-1]:
        inside = [section_in(field.annotation) for name, field in section.model_fields.items() if name == part]
        section = next(filter(None, inside), section)
    return section


def _suggestion(location: tuple[int | str, ...], root: type[BaseModel], elsewhere: Elsewhere) -> str:
    key, keys = str(location[-1]), keys_of(_section_of(location, root))
    close = nearest(key, keys)
    full = [".".join((*map(str, location[:-1]), close))] if close else []
    # at the top a key of a section is more likely forgotten its section than misspelled
    found = [*elsewhere(key), *full] if len(location) == 1 else [*full, *elsewhere(key)]
    return f"did you mean {found[0]}? {counted(found[0])}".rstrip() if found else f"known here: {', '.join(keys)}"
