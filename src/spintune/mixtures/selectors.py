"""Selectors of tasks: a name, a pattern of names, or ``collection:``, ``cluster:`` or ``family:`` and a pattern."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Sequence

from spintune.errors import RecipeError
from spintune.mixtures.tasks import MixtureTask

_KINDS = ("collection", "cluster", "family")
_LISTED = 8


def select(selectors: Sequence[str], tasks: Sequence[MixtureTask], where: str) -> list[MixtureTask]:
    """The tasks that match any of the selectors, in their order.

    Raises RecipeError, which begins with ``where``, for a selector that matches no task.
    """
    for selector in selectors:
        if not any(matches(selector, task) for task in tasks):
            raise RecipeError(f"{where}: there is no task {selector} in this mixture; {_hint(selector, tasks)}")
    return [task for task in tasks if any(matches(selector, task) for selector in selectors)]


def matches(selector: str, task: MixtureTask) -> bool:
    """Whether a selector matches a task."""
    kind, pattern = _parse(selector)
    return fnmatch.fnmatchcase(getattr(task, kind), pattern)


def _parse(selector: str) -> tuple[str, str]:
    """The attribute of a task, and the pattern that it must match."""
    kind, colon, pattern = selector.partition(":")
    return (kind, pattern) if colon and kind in _KINDS else ("name", selector)


def _hint(selector: str, tasks: Sequence[MixtureTask]) -> str:
    kind, pattern = _parse(selector)
    known = sorted({getattr(task, kind) for task in tasks})
    if close := difflib.get_close_matches(pattern, known, 1):
        return f"did you mean {'' if kind == 'name' else f'{kind}:'}{close[0]}?"
    return f"known here: {', '.join(known[:_LISTED])}{', ...' if len(known) > _LISTED else ''}"
