"""Reads a recipe from YAML with dotted overrides. Unknown keys are errors with a suggestion."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from spintune.errors import RecipeError
from spintune.recipe.evaluation import FILES_OF, HELDOUT
from spintune.recipe.recipe import Recipe
from spintune.recipe.section import Section

_MAX_BYTES = 1_000_000


def load_recipe(path: Path | None, overrides: list[str] | None = None, base: dict[str, Any] | None = None) -> Recipe:
    """Reads a recipe file (or starts from ``base``) and applies ``key.path=value`` overrides, values in YAML.

    Raises RecipeError, one line for each thing that is wrong.
    """
    values = dict(base or {})
    name = "command line"
    if path is not None:
        name = str(path)
        values = _read_yaml(path)
    for override in overrides or []:
        _apply(values, override)
    return parse_recipe(values, name)


def parse_recipe(values: dict[str, Any], name: str) -> Recipe:
    """Checks plain values. Raises RecipeError."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"{name}: {_explain(problem)}" for problem in error.errors() if _is_about_its_kind(problem)]
        raise RecipeError("\n".join(dict.fromkeys(lines))) from error


def recipe_schema() -> dict[str, Any]:
    """JSON Schema of a recipe file, for editors."""
    schema = Recipe.model_json_schema(by_alias=True)
    # what the validator above also takes: one source instead of a list, a path instead of a source
    source = {"anyOf": [{"type": "string"}, {"$ref": "#/$defs/SourceSection"}]}
    train = schema["$defs"]["DataSection"]["properties"]["train"]
    train.pop("items")
    train.pop("type")
    train["anyOf"] = [*source["anyOf"], {"type": "array", "items": source}]
    schema["allOf"] = [_data_rule(), *(_file_rule(name, key) for name, key in FILES_OF.items())]
    return schema


def _data_rule() -> dict[str, Any]:
    """What trains, or judges held-out examples, needs data; the default of eval does."""
    trains = [{"required": [name], "properties": {name: {"type": "object"}}} for name in ("sft", "spin")]
    data = {"anyOf": [{"required": ["train"]}, {"required": ["mixture"]}]}
    return {
        "if": {"anyOf": [*trains, {"not": {"required": ["eval"]}}, _names(HELDOUT)]},
        "then": {"required": ["data"], "properties": {"data": data}},
    }


def _file_rule(name: str, key: str) -> dict[str, Any]:
    file = {"required": [key], "properties": {key: {"type": "string"}}}
    return {"if": _names(name), "then": {"required": ["evaluation"], "properties": {"evaluation": file}}}


def _names(name: str) -> dict[str, Any]:
    return {"required": ["eval"], "properties": {"eval": {"type": "array", "contains": {"const": name}}}}


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (no billion laughs), without repeated keys, and with 2e-5 as a number."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is no text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        value = super().construct_yaml_int(node)
        if value.bit_length() > 63:
            raise yaml.constructor.ConstructorError(None, None, "an integer of more than 64 bits", node.start_mark)
        return value

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("!exponent", _Loader.construct_number)
_Loader.add_implicit_resolver("!exponent", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def _parse_yaml(text: str, name: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply; this is not a recipe") from None
    except ValueError as error:  # a number or a date of the right form but of no value, such as 2024-13-45
        raise RecipeError(f"{name}: a value cannot be read ({error}); write it in quotes if it is text") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name}{line}: {error.problem or 'not valid YAML'}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error


def read_yaml(path: Path, what: str) -> dict[str, Any]:
    """The keys of a YAML file, safely read; ``what`` ("recipe", "task") names it in errors. Raises RecipeError."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        close = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], 1)
        hint = f"; did you mean {path.parent / close[0]}?" if close else ""
        raise RecipeError(f"{what} {path} does not exist{hint}") from None
    except OSError as error:
        raise RecipeError(f"{what} {path} cannot be read ({error.strerror})") from error
    if len(data) > _MAX_BYTES:
        raise RecipeError(f"{what} {path} is larger than {_MAX_BYTES} bytes; this is not a {what}")
    try:
        values = _parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError:
        raise RecipeError(f"{what} {path} is not UTF-8 text") from None
    if not isinstance(values, dict):
        hint = "; see recipes/quickstart.yaml for an example" if what == "recipe" else ""
        raise RecipeError(f"{what} {path} holds no keys{hint}")
    return values


def _read_yaml(path: Path) -> dict[str, Any]:
    values = read_yaml(path, "recipe")
    for section in ("synth", "sft", "spin", "lora", "judge"):
        if section in values and values[section] is None:
            raise RecipeError(f"{path}: {section} is empty; write {section}: {{}} for its defaults, or leave it out")
    return values


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise RecipeError(f"override {override!r} is not of the form key.path=value")
    target = values
    for part in parts[:-1]:
        if target.get(part) is None:
            target[part] = {}
        if not isinstance(target[part], dict):
            raise RecipeError(f"override {override!r}: {part} is not a section")
        target[part] = target = dict(target[part])
    target[parts[-1]] = _parse_yaml(text, f"override {key}")


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"] if not _is_type_tag(part))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {where}{_suggestion(problem['loc'])}"
    if problem["type"] == "missing":
        return f"{where} is missing; {_description(problem['loc'])}"
    message = problem["msg"].removeprefix("Value error, ")
    given = "" if problem["type"] == "value_error" else f" (given: {problem['input']!r:.60})"
    return f"{where}: {message}{given}" if where else message


def _is_about_its_kind(problem: Any) -> bool:
    """Of a setting that takes one value or a list, pydantic tells what is wrong as either; one of them was meant."""
    if _is_type_tag(problem["loc"][-1] if problem["loc"] else ""):
        return isinstance(problem["input"], list) == str(problem["loc"][-1]).startswith("list[")
    return True


def _is_type_tag(part: Any) -> bool:
    """pydantic adds the name of the alternative it tried; readers know only keys."""
    return isinstance(part, str) and (part in {"float", "int", "constrained-float", "constrained-int"} or "[" in part)


def _section_of(location: tuple[Any, ...]) -> type[BaseModel]:
    """The section that a location's last part belongs to."""
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        inner = [_section_in(field.annotation) for name, field in section.model_fields.items() if name == part]
        section = next(filter(None, inner), section)
    return section


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field holds: itself, or one of several, or many of them."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    return next(filter(None, map(_section_in, get_args(annotation))), None)


def _keys(section: type[BaseModel]) -> dict[str, str]:
    return {field.alias or name: field.description or "" for name, field in section.model_fields.items()}


def _suggestion(location: tuple[Any, ...]) -> str:
    keys = _keys(_section_of(location))
    names = ("data", "synth", "sft", "spin", "evaluation", "judge")
    sections = {name: _section_in(Recipe.model_fields[name].annotation) for name in names}
    elsewhere = [f"{name}.{location[-1]}" for name, found in sections.items() if found and location[-1] in _keys(found)]
    close = difflib.get_close_matches(str(location[-1]), keys, 1)
    if meant := elsewhere if len(location) == 1 else close or elsewhere:
        return f"; did you mean {meant[0]}?"
    return f"; did you mean {close[0]}?" if close else f"; known here: {', '.join(keys)}"


def _description(location: tuple[Any, ...]) -> str:
    return _keys(_section_of(location)).get(str(location[-1]), "")
