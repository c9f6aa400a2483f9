"""Reads YAML safely: no aliases, no repeated keys, no huge files or numbers, and one-line errors."""

from __future__ import annotations

import difflib
import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from spintune.errors import RecipeError
from spintune.typed_json import JsonObject

_MAX_BYTES = 1_000_000
_MAX_NODES = 20_000  # keys and values; PyYAML reads about as many in a second
_MAX_DIGITS = 40  # of a number; one in base 60 ("1:59:59") takes time that grows with their square


class _Loader(yaml.SafeLoader):
    """Safe YAML without aliases (no billion laughs), without repeated keys, and with 2e-5 as a number."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.constructor.ConstructorError(None, None, "aliases are not allowed", self.peek_event().start_mark)
        self._nodes = getattr(self, "_nodes", 0) + 1
        if self._nodes > _MAX_NODES:
            mark = self.peek_event().start_mark
            raise yaml.constructor.ConstructorError(None, None, f"more than {_MAX_NODES:,} keys and values", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is not text", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is repeated", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)

    def construct_yaml_float(self, node: yaml.ScalarNode) -> float:
        self._check_digits(node)
        return super().construct_yaml_float(node)

    def _check_digits(self, node: yaml.ScalarNode) -> None:
        if len(node.value) > _MAX_DIGITS:
            problem = f"a number of more than {_MAX_DIGITS} characters; write it in quotes if it is text"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        self._check_digits(node)
        value = super().construct_yaml_int(node)
        if value.bit_length() > 63:
            raise yaml.constructor.ConstructorError(None, None, "an integer of more than 64 bits", node.start_mark)
        return value

    def construct_number(self, node: yaml.ScalarNode) -> float:
        return float(self.construct_scalar(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_yaml_float)
_Loader.add_constructor("!exponent", _Loader.construct_number)
_Loader.add_implicit_resolver("!exponent", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))


def parse_yaml(text: str, name: str) -> object:
    """The value that YAML text holds; ``name`` begins every error. Raises RecipeError."""
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 -- a SafeLoader
    except RecursionError:
        raise RecipeError(f"{name}: nested too deeply; this is not a recipe") from None
    except ValueError as error:  # text that looks like a number or a date, such as 2024-13-45
        raise RecipeError(f"{name}: a value cannot be read ({error}); write it in quotes if it is text") from error
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise RecipeError(f"{name}{line}: {error.problem or 'not valid YAML'}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{name}: not valid YAML ({str(error).splitlines()[0]})") from error


def read_yaml(path: Path, what: str) -> JsonObject:
    """Reads the keys of a YAML file; ``what`` ("recipe", "task") names it in errors. Raises RecipeError."""
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
        values = parse_yaml(data.decode(), str(path))
    except UnicodeDecodeError:
        raise RecipeError(f"{what} {path} is not UTF-8 text") from None
    if not isinstance(values, dict):
        hint = "; see recipes/quickstart.yaml for an example" if what == "recipe" else ""
        raise RecipeError(f"{what} {path} holds no keys{hint}")
    return values
