"""Every regular expression of the package on long repetitive texts: the time must grow as the text does."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
import re._constants as codes  # what a pattern is made of
import re._parser as parser
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from growth import grows_too_fast, repetitive

import spintune

SOURCES = {path: path.read_text() for path in Path(spintune.__file__).parent.rglob("*.py")}
_PARSED = re.MULTILINE | re.IGNORECASE | re.DOTALL | re.VERBOSE | re.ASCII
_ANCHORED = {"match": "match", "fullmatch": "fullmatch"}

Found = tuple[str, re.Pattern[str], str]


def found_patterns() -> Iterator[Found]:
    """Where a pattern is, the pattern, and how it is used: match, fullmatch, or a search of some kind."""
    for module in pkgutil.walk_packages(spintune.__path__, "spintune."):
        if module.name.endswith("__main__"):
            continue
        loaded = importlib.import_module(module.name)
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern):
                for use in sorted(uses(name, loaded.__file__ or "")):  # workers must collect in one order
                    yield f"{module.name}.{name}", value, use
        for call in ast.walk(ast.parse(SOURCES[Path(loaded.__file__ or "")])):
            match call:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="re"), attr=use), args=[ast.Constant(value=str(text)), *_]
                ) if use != "compile":
                    flags = re.MULTILINE if "MULTILINE" in ast.unparse(call) else re.NOFLAG
                    yield f"{module.name}:{call.lineno}", re.compile(text, flags), _ANCHORED.get(use, "sub")


def uses(name: str, module: str) -> set[str]:
    """How a module uses its pattern, or the package a public one. One that is handed on may be searched for."""
    texts = [SOURCES[Path(module)]] if name.startswith("_") else list(SOURCES.values())
    found = {
        _ANCHORED.get(use, "sub")
        for text in texts
        for use in re.findall(rf"\b{name}\.(\w+)", text)
        if use in ("match", "fullmatch", "search", "sub", "split", "finditer", "findall")
    }
    handed_on = any(re.search(rf"[(,] ?{name}[,)]", text) for text in texts)
    return found | ({"sub", "match"} if handed_on or not found else set())


PATTERNS = {(pattern, use): where for where, pattern, use in found_patterns()}


def beginnings(pattern: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """Beginnings of short matches, and the characters that the pattern names, with some that any text has."""
    chars = dict.fromkeys(" \n1a[:*")
    matches = _shortest(parser.parse(pattern.pattern, pattern.flags & _PARSED), chars)
    cuts = ("".join(match[:end]) for match in matches for end in range(1, len(match) + 1))
    return [cut for cut in dict.fromkeys(cuts) if cut][:16], list(chars)[:8]


def _shortest(items: Sequence[tuple[object, object]], chars: dict[str, None]) -> list[list[str]]:
    """Up to six short matches, in pieces; no look-around is looked at."""
    matches: list[list[str]] = [[]]
    for kind, value in items:
        pieces: list[list[str]] = [[]]
        if kind is codes.LITERAL:
            pieces = [[chr(value)]]  # type: ignore[call-overload]
        elif kind is codes.IN:
            named = [chr(code) for one, code in value if one is codes.LITERAL]  # type: ignore[attr-defined]
            chars.update(dict.fromkeys(named))
            pieces = [[named[0] if named else "1"]]
        elif kind is codes.NOT_LITERAL or kind is codes.ANY:
            pieces = [["a"]]
        elif kind is codes.BRANCH:
            pieces = [match for branch in value[1] for match in _shortest(branch, chars)]  # type: ignore[index]
        elif kind is codes.SUBPATTERN or kind is codes.ATOMIC_GROUP:
            pieces = _shortest(value[-1] if kind is codes.SUBPATTERN else value, chars)  # type: ignore[index,arg-type]
        elif isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], parser.SubPattern):
            once = _shortest(value[2], chars)
            pieces = [[*match * max(1, value[0])] for match in once]
        matches = [[*match, *piece] for match in matches for piece in pieces[:6]][:6]
    chars.update(dict.fromkeys(piece for match in matches for piece in match if not piece.isalnum()))
    return matches


USES: dict[str, Callable[[re.Pattern[Any], Any], object]] = {
    "sub": lambda pattern, text: list(pattern.finditer(text)),
    "match": lambda pattern, text: pattern.match(text),
    "fullmatch": lambda pattern, text: pattern.fullmatch(text),
}


def test_the_walk_finds_patterns() -> None:
    assert len(PATTERNS) > 60


@pytest.mark.parametrize("pattern", [r"#(?:\n\s*)*$", r"^(?:[*_]+)?[*_]*x"])
def test_a_bad_pattern_is_noticed(pattern: str) -> None:
    assert slow_texts(re.compile(pattern), "sub", most=1)


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "use"), PATTERNS, ids=(f"{where}-{use}" for (_, use), where in PATTERNS.items()))
def test_a_pattern_takes_time_in_proportion_to_the_text(pattern: re.Pattern[str], use: str) -> None:
    assert not slow_texts(pattern, use)


def slow_texts(pattern: re.Pattern[str], use: str, most: int = 3) -> dict[str, str]:
    """The beginnings of the first texts on which a pattern is too slow, and how slow it is."""
    found: dict[str, str] = {}
    of_bytes = isinstance(pattern.pattern, bytes)
    for text_of in repetitive(*beginnings(pattern)):
        if slow := grows_too_fast(lambda text: USES[use](pattern, text.encode() if of_bytes else text), text_of):
            found[text_of(60)] = slow
            if len(found) == most:
                break
    return found
