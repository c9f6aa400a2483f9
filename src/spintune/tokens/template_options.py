"""Options of a chat template: the variables that it reads besides the conversation, such as ``enable_thinking``.

A template is asked for its variables, so that a misspelled one is an error and not a setting without effect.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING

from jinja2 import TemplateError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from spintune.errors import ModelError
from spintune.text.words import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TemplateOptions = Mapping[str, str | int | float | bool]

_GIVEN = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}
"""Variables that every rendering sets."""


class _Generation(Extension):
    """transformers' ``{% generation %}``, which marks text and changes none."""

    tags = {"generation"}  # noqa: RUF012 -- jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@cache
def variables_of(source: str) -> frozenset[str]:
    """The variables that a template reads and does not make itself, or whose default it sets where they are not given.

    >>> sorted(variables_of("{% set a = 1 %}{% if not b is defined %}{% set b = a %}{% endif %}{{ b }}{{ c }}"))
    ['b', 'c']

    Raises jinja2.TemplateError for a template that cannot be parsed.
    """
    tree = ImmutableSandboxedEnvironment(extensions=[loopcontrols, _Generation]).parse(source)
    made = {name.name for name in tree.find_all(nodes.Name) if name.ctx != "load"}
    made |= {macro.name for macro in tree.find_all(nodes.Macro)}
    asked = {
        node.node.name
        for node in tree.find_all((nodes.Test, nodes.Filter))
        if node.name in ("defined", "undefined", "default", "d") and isinstance(node.node, nodes.Name)
    }
    return frozenset(meta.find_undeclared_variables(tree) - (made - asked) - _GIVEN)


def options_of(tokenizer: PreTrainedTokenizerBase, source: str) -> list[str]:
    """The names of the options that may be set for a template. Raises ModelError when it cannot be parsed."""
    try:
        return sorted(variables_of(source) - _set_by_tokenizer(tokenizer))
    except TemplateError as error:
        name = tokenizer.name_or_path or "this tokenizer"
        raise ModelError(f"{name}: the chat template fails: {one_line(str(error))}") from error


def check_options(tokenizer: PreTrainedTokenizerBase, source: str, options: TemplateOptions) -> None:
    """Raises ModelError for an option that the template does not read, or that every rendering sets by itself."""
    for key in options:
        if key in _GIVEN | _set_by_tokenizer(tokenizer):
            raise ModelError(f"data.template_options.{key}: every rendering sets {key} by itself; leave it out")
        if key not in (known := options_of(tokenizer, source)):
            name = tokenizer.name_or_path or "this tokenizer"
            others = f"it reads {', '.join(known)}" if known else "it reads no options"
            raise ModelError(f"{name}: the chat template does not read {key} of data.template_options; {others}")


def with_defaults(source: str, options: TemplateOptions) -> str:
    """The template with these options as defaults: rendered without them, it writes what it was trained with."""
    lines = (f"{{% if {k} is not defined %}}{{% set {k} = {_literal(v)} %}}{{% endif %}}" for k, v in options.items())
    before = "".join(f"{line}\n" for line in lines)  # the line break after a block is not written
    return source if source.startswith(before) else before + source


def in_words(options: TemplateOptions) -> str:
    """Options as they stand in a recipe."""
    return ", ".join(f"{key}: {_literal(value)}" for key, value in options.items())


def _literal(value: str | float | bool) -> str:
    return json.dumps(value, ensure_ascii=False)


def _set_by_tokenizer(tokenizer: PreTrainedTokenizerBase) -> set[str]:
    arguments = inspect.signature(tokenizer.apply_chat_template).parameters
    return {*arguments, *tokenizer.SPECIAL_TOKENS_ATTRIBUTES, *tokenizer.special_tokens_map}
