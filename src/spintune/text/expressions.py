"""Regular expressions that a recipe or task brings. They may be a stranger's, so each search has a limit of time.

Some texts of 100 characters cost ``(a+)+$`` more steps than a year has seconds. Python's own module cannot be stopped
while it matches; the ``regex`` package can.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from functools import lru_cache

import regex

from spintune.errors import RecipeError

_SECONDS = 5.0  # of the processor, for one text
_MAX_LENGTH = 2_000  # of an expression
_MAX_REPEATED = 1_000_000  # how often the least repetitions in each other repeat something


def check_expression(pattern: str) -> str:
    """The expression itself. Raises ValueError, which says what is wrong with it."""
    try:
        _compiled(pattern)
    except (re.error, regex.error) as error:
        raise ValueError(f"not a regular expression ({error}); fix it or put it in single quotes") from error
    except (RecursionError, OverflowError) as error:
        raise ValueError("a regular expression that is nested too deeply or repeats too often; simplify it") from error
    return pattern


def has_group(pattern: str, name: str) -> bool:
    """Whether an expression has a group of that name."""
    return name in _compiled(pattern).groupindex


def first_match(pattern: str, text: str, what: str) -> str | None:
    """The first group of the first match, or all of it where there is no group; None without a match.

    Raises RecipeError, which begins with ``what``, when the search takes too long.
    """
    with _in_time(pattern, text, what):
        return _content(_compiled(pattern).search(text, timeout=_SECONDS))


def last_match(pattern: str, text: str, what: str) -> str | None:
    """As :func:`first_match`, of the last match. A group that takes no part leaves all of the match."""
    with _in_time(pattern, text, what):
        matches = list(_compiled(pattern).finditer(text, timeout=_SECONDS))
        if not matches:
            return None
        last = matches[-1]
        return str(last[1]) if last.re.groups and last[1] is not None else str(last[0])


def groups_of_matches(pattern: str, text: str, what: str) -> list[dict[str, str | None]]:
    """The named groups of every match. Raises RecipeError as :func:`first_match`."""
    with _in_time(pattern, text, what):
        return [match.groupdict() for match in _compiled(pattern).finditer(text, timeout=_SECONDS)]


def without_matches(pattern: str, text: str, what: str) -> str:
    """The text without every match. Raises RecipeError as :func:`first_match`."""
    with _in_time(pattern, text, what):
        return str(_compiled(pattern).sub("", text, timeout=_SECONDS))


def matches_whole(pattern: str, text: str, what: str) -> bool:
    """Whether the expression matches all of the text. Raises RecipeError as :func:`first_match`."""
    with _in_time(pattern, text, what):
        return _compiled(pattern).fullmatch(text, timeout=_SECONDS) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> regex.Pattern[str]:
    if len(pattern) > _MAX_LENGTH or math.prod(map(int, re.findall(r"\{(\d{1,18})", pattern))) > _MAX_REPEATED:
        raise OverflowError
    re.compile(pattern)  # the syntax is that of Python: the other module knows more
    return regex.compile(pattern, regex.VERSION0)


def _content(match: regex.Match[str] | None) -> str | None:
    if match is None:
        return None
    return (match[1] if match.re.groups else match[0]) or ""


@contextlib.contextmanager
def _in_time(pattern: str, text: str, what: str) -> Iterator[None]:
    try:
        yield
    except TimeoutError:
        raise RecipeError(
            f"{what}: the expression {pattern!r:.80} takes more than {_SECONDS:g} s on a text of {len(text):,} "
            "characters; simplify it (a repetition in a repetition is often why)"
        ) from None
