"""Reads a recipe from YAML with ``key.path=value`` overrides, and describes recipes as JSON Schema."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args, get_origin

from pydantic import BaseModel

from spintune.data.tables.content import kind_and_compression
from spintune.data.tables.places import KINDS
from spintune.errors import RecipeError
from spintune.recipe.checking import checked, keys_of, section_in
from spintune.recipe.evaluation import FILES_OF, HELDOUT
from spintune.recipe.other_names import meant
from spintune.recipe.packaged_recipes import find_recipe
from spintune.recipe.recipe import Recipe, SourceSection
from spintune.recipe.yaml_files import parse_yaml, read_yaml
from spintune.typed_json import JsonObject

_SOURCES = ("data.train", "data.heldout")


def load_recipe(path: Path | None, overrides: list[str] | None = None, base: JsonObject | None = None) -> Recipe:
    """Reads a recipe file, or starts from ``base``, and applies ``key.path=value`` overrides with values in YAML.

    Where there is no such file, the name is looked up among the recipes that come with spintune.

    Raises RecipeError, one line for each thing that is wrong.
    """
    return parse_recipe(recipe_values(path, overrides, base), "command line" if path is None else str(path))


def recipe_values(path: Path | None, overrides: list[str] | None = None, base: JsonObject | None = None) -> JsonObject:
    """What :func:`load_recipe` checks, as plain values. Raises RecipeError for a file or an override without form."""
    values = copy.deepcopy(base or {}) if path is None else _read_yaml(find_recipe(path))
    for override in overrides or []:
        _apply(values, override)
    return values


def parse_recipe(values: JsonObject, name: str) -> Recipe:
    """Checks plain values; ``name`` begins every error. Raises RecipeError, one line for each thing that is wrong."""
    return checked(values, Recipe, name, _elsewhere)


def _elsewhere(key: str) -> list[str]:
    """Where else a key belongs: at the top only a word of another tool, since misspelled ones are found there."""
    names = ("data", "synth", "sft", "spin", "lora", "evaluation", "judge")
    sections = {name: section_in(Recipe.model_fields[name].annotation) for name in names}
    top = meant(key, keys_of(Recipe))
    inside = {name: meant(key, keys_of(section)) for name, section in sections.items() if section}
    found = [f"{name}.{there}" for name, there in inside.items() if there]
    found = [top, *found] if top else found
    of_source = [f"data.train: {{path: FILE, {key}: ...}}"] if key in keys_of(SourceSection) else []
    return [*found, *of_source]


def keys_called(word: str, section: str | None = None) -> list[str]:
    """The keys, with their sections, that a word stands for, as other tools use it; those of ``section`` first.

    >>> keys_called("lr", "sft")
    ['sft.learning_rate', 'spin.learning_rate']
    """
    *inside, key = word.split(".")
    found = [name for name in _elsewhere(key) if " " not in name and (not inside or name.startswith(f"{inside[0]}."))]
    return sorted(found, key=lambda name: name.partition(".")[0] != section)


def every_key() -> list[str]:
    """Every key that an override can set, with its sections."""
    return list(_keys_below(Recipe, ""))


def meaning_of(key: str) -> str:
    """What a key is, in one sentence: the first of its documentation.

    >>> meaning_of("data.eval_fraction")
    'Share of the prompts held out from training.'
    """
    *inside, last = key.split(".")
    section: type[BaseModel] = Recipe
    for part in inside:
        section = section_in(section.model_fields[part].annotation) or section
    text = keys_of(section)[last]
    return re.split(r"(?<=[.])\s", text, maxsplit=1)[0]


def _keys_below(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in zip(keys_of(section), section.model_fields.values(), strict=True):
        inner = section_in(field.annotation)
        kinds = {get_origin(arm) for arm in (field.annotation, *get_args(field.annotation))}
        if inner is not None and not kinds & {list, dict}:  # an override sets those as a whole
            yield from _keys_below(inner, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def recipe_schema() -> JsonObject:
    """JSON Schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    # DataSection also accepts one source instead of a list, and a path instead of a source
    for key, section in (("train", "SourceSection"), ("heldout", "HeldoutSection")):
        source = {"anyOf": [{"type": "string"}, {"$ref": f"#/$defs/{section}"}]}
        setting = schema["$defs"]["DataSection"]["properties"][key]
        nothing = [arm for arm in setting.get("anyOf", ()) if arm == {"type": "null"}]
        for word in ("items", "type"):
            setting.pop(word, None)
        setting["anyOf"] = [*source["anyOf"], {"type": "array", "items": source}, *nothing]
    tracking = schema["properties"]["tracking"]
    tracking["anyOf"] = [{"type": "string"}, {"type": tracking.pop("type"), "items": tracking.pop("items")}]
    schema["allOf"] = [*_data_rules(), *(_file_rule(name, key) for name, key in FILES_OF.items())]
    return schema


def _data_rules() -> Iterator[JsonObject]:
    """Training needs data to train on; held-out evaluation, the default of eval, needs those or held-out ones."""
    trains = [{"required": [name], "properties": {name: {"type": "object"}}} for name in ("sft", "spin")]
    judges = [{"not": {"required": ["eval"]}}, _evaluates(HELDOUT)]
    for needing, keys in ((trains, ("train", "mixture")), (judges, ("train", "mixture", "heldout"))):
        data = {"anyOf": [{"required": [key]} for key in keys]}
        yield {"if": {"anyOf": needing}, "then": {"required": ["data"], "properties": {"data": data}}}


def _file_rule(name: str, key: str) -> JsonObject:
    file = {"required": [key], "properties": {key: {"type": "string"}}}
    return {"if": _evaluates(name), "then": {"required": ["evaluation"], "properties": {"evaluation": file}}}


def _evaluates(name: str) -> JsonObject:
    return {"required": ["eval"], "properties": {"eval": {"type": "array", "contains": {"const": name}}}}


def _read_yaml(path: Path) -> JsonObject:
    kind, _ = kind_and_compression(path.name.lower())
    if kind in KINDS and kind != ".json":
        raise RecipeError(
            f"{path}: is data, and a recipe is wanted here; spintune init writes one for it, or give --model and --data"
        )
    values = read_yaml(path, "recipe")
    for section in ("synth", "sft", "spin", "lora", "judge"):
        if section in values and values[section] is None:
            raise RecipeError(f"{path}: {section} is empty; write {section}: {{}} for its defaults, or leave it out")
    return values


def _apply(values: JsonObject, override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"override {override!r} is not of the form key.path=value")
    target = values
    for depth, part in enumerate(parts[:-1], 1):
        section = _only_source(target.get(part), override) if ".".join(parts[:depth]) in _SOURCES else target.get(part)
        if section is not None and not isinstance(section, dict):
            raise RecipeError(f"override {override!r}: {part} is not a section")
        target[part] = target = dict(section or {})
    target[parts[-1]] = parse_yaml(text, f"override {key}")


def _only_source(sources: object, override: str) -> object:
    """A source of data that is named alone, as a section. Raises RecipeError where there are several."""
    if isinstance(sources, str):
        return {"path": sources}
    if not isinstance(sources, list) or not sources:
        return sources
    if len(sources) > 1:
        key = ".".join(override.partition("=")[0].split(".")[:2])
        raise RecipeError(
            f"override {override!r}: {key} has {len(sources)} sources; give all of them, such as "
            f"'{key}=[{{path: rows.jsonl, limit: 2}}, more.jsonl]'"
        )
    return _only_source(sources[0], override)
