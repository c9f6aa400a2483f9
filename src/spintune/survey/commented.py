"""A recipe as YAML with a comment for each setting: what it is, in the words of its documentation, and why it is so."""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import yaml

from spintune.recipe.reading import meaning_of
from spintune.recipe.yaml_files import parse_yaml
from spintune.terminal import visible
from spintune.typed_json import JsonObject

_WIDTH = 100
_PLAIN = re.compile(r"[A-Za-z_./~][\w./@:-]*")
_SMALL = 0.001  # numbers below are written with an exponent


def commented_yaml(values: JsonObject, reasons: Mapping[str, str], head: Sequence[str]) -> str:
    """The text of a recipe file.

    Args:
        reasons: by dotted key, why it has its value: a sentence that follows what the key means.
        head: lines at the top.
    """
    lines = [line for text in head for line in _comment(text, "")]
    for key, value in values.items():
        lines += ["", *_setting(key, key, value, reasons, "")]
    return "\n".join(lines) + "\n"


def _setting(name: str, path: str, value: object, reasons: Mapping[str, str], indent: str) -> Iterator[str]:
    yield from _comment(" ".join(filter(None, (meaning_of(path), reasons.get(path)))), indent)
    if isinstance(value, dict) and path not in ("data.train", "data.heldout"):
        yield f"{indent}{name}:"
        for key, inner in value.items():
            yield from _setting(key, f"{path}.{key}", inner, reasons, indent + "  ")
    else:
        yield f"{indent}{name}: {yaml_value(value)}"


def _comment(text: str, indent: str) -> list[str]:
    mark = f"{indent}# "
    return textwrap.wrap(
        visible(" ".join(text.split())),
        _WIDTH,
        initial_indent=mark,
        subsequent_indent=mark,
        break_long_words=False,
        break_on_hyphens=False,
    )


def yaml_value(value: object) -> str:
    """A value on one line of YAML, which reads back as the same value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{yaml_value(key)}: {yaml_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(yaml_value, value)) + "]"
    if isinstance(value, float) and 0 < value < _SMALL:
        return f"{value:.1e}"
    if isinstance(value, str):
        plain = _PLAIN.fullmatch(value) and not value.endswith(":") and parse_yaml(value, "") == value
        return (
            value if plain else str(yaml.safe_dump(value, default_style='"', width=1 << 20, allow_unicode=True)).strip()
        )
    return json.dumps(value)
