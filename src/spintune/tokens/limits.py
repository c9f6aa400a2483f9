"""Bounds the work of a chat template, which comes with a model and is a program.

Jinja's sandbox keeps a template from files and from Python, but not from nested loops, or from a string that doubles
with each step. Python tells of each line that a template runs: after so many of them, or once memory has grown by so
much, it is stopped.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterator
from types import FrameType

import jinja2
from jinja2 import nodes

from spintune.errors import ModelError
from spintune.portable import peak_memory

MAX_LINES = 1_000_000  # of the template's compiled code; a turn takes some 20 to 200
MAX_GROWTH = 1_000_000  # of the process's memory [kB]
_FILE = "<template>"  # what Jinja calls the code of a template


class TemplateLimitError(Exception):
    """A template that does not come to an end."""


class _Watch:
    """A trace function; see :func:`sys.settrace`. Only lines of templates are looked at."""

    def __init__(self) -> None:
        self._lines = 0
        self._memory = peak_memory()

    def __call__(self, frame: FrameType, event: str, argument: object) -> _Watch | None:
        if frame.f_code.co_filename != _FILE:
            return None
        self._lines += 1
        if self._lines > MAX_LINES:
            raise TemplateLimitError(f"it runs more than {MAX_LINES:,} steps")
        if peak_memory() > self._memory + MAX_GROWTH:
            raise TemplateLimitError(f"it takes more than {MAX_GROWTH // 1000:,} MB")
        return self


def check_constants(source: str, name: str) -> None:
    """Refuses a template that computes with huge numbers, which Jinja does before it runs a line. Raises ModelError."""
    try:
        parsed = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(source)  # noqa: S701
    except (jinja2.TemplateError, RecursionError):
        return  # with tags of transformers' own; or no template, as its first use will say
    factors = [
        node.value
        for product in parsed.find_all(nodes.Mul)
        for node in product.find_all(nodes.Const)
        if isinstance(node.value, int)
    ]
    powers = parsed.find(nodes.Pow) is not None
    if powers or math.prod(max(1, abs(factor)) for factor in factors) > MAX_LINES:
        raise ModelError(f"{name}: the chat template computes with huge numbers; set data.template")


@contextlib.contextmanager
def limited_template() -> Iterator[None]:
    """Inside, a template that runs in this thread raises TemplateLimitError where it does too much."""
    before = sys.gettrace()
    sys.settrace(_Watch())
    try:
        yield
    finally:
        sys.settrace(before)
