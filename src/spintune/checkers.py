"""Checkers by name: whether an answer is right, given its reference and prompt (``evaluation.checker``).

Register your own in Python::

    register_checker("same_length", lambda answer, reference, prompt: len(answer) == len(reference))

or offer the function as an entry point of a package, in the group ``spintune.checkers``.
"""

from __future__ import annotations

import contextlib
import math
import re
import signal
import string
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

import orjson

from spintune.errors import DataError, MissingExtraError, RecipeError
from spintune.plugins import Table
from spintune.text import answers
from spintune.text.expressions import check_expression, last_match
from spintune.text.words import one_line

CheckFunction = Callable[[str, str, str], bool | float]
"""The verdict on (answer, reference, prompt): true or false, or a share from 0 to 1."""

CheckerSetting = str | Mapping[str, str]
"""A checker as a recipe names it: its name, ``{"regex": PATTERN}`` or ``{"json": SCHEMA_FILE}``."""

TASKS = "tasks"
"""The setting by which each task of a mixture checks its own answers (:mod:`spintune.stages.task_accuracy`)."""

SECONDS = 10.0
"""A checker that takes longer on one answer is stopped, and ends the run."""

T = TypeVar("T")


# What checks ---------------------------------------------------------------------------------------------------------

_BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}[^{}]*)*)\}")
# a minus behind a digit or a bracket is a subtraction
_FRACTION = re.compile(
    r"(?:(?<![\d)\]}])(?<![\d)\]}]\s)(?P<minus>-)\s*)?"
    r"\\[dt]?frac\s*(?:\{(?P<over>-?\d+)\}|(?P<digit>\d))\s*(?:\{(?P<under>\d+)\}|(?P<last>\d))"
)
_GROUPING = re.compile(r"\\!|(?<=\d)\\,(?=\d{3})")
_TIMES_TEN = re.compile(r"\\(?:times|cdot)\s*(?=10\s*\^)")
_DEGREES = re.compile(r"\^?\{?\\(?:circ|degree)(?![a-zA-Z])\}?")
# what may stand in a box beside a number: spacing, text, units, "about"
_BESIDE_NUMBERS = re.compile(
    r"\\(?:[,;:> ]|(?:quad|qquad|text(?:bf|it|rm|normal)?|math(?:bf|it|rm)|mbox|unit|pounds|euro|approx)(?![a-zA-Z]))"
)
_COMMAND = re.compile(r"\\[a-zA-Z]")
_AROUND = string.whitespace + "\"'`*()[]{}“”‘’«»"
_SIGN_BEFORE = re.compile(rf"(?:\+|(?P<currency>[{answers.CURRENCIES}])\s?)(?=\.?\d)")
_SPACE_BEFORE_SIGN = re.compile(rf"(?<=\d)(?:\\ )?(?=\\?[%°{answers.CURRENCIES}])")  # of an escaped text
_ENDS = ".,;:!?。！？"
# a block that ends where no fence follows is none; it is matched all the same, so that time grows as the text does
_BLOCKS = [
    re.compile(r"```(?P<kind>[a-z][\w+-]*(?=\s))?(?P<inside>.*?)(?:(?P<closed>" + close + r")|\Z)", re.I | re.M | re.S)
    for close in (r"^[ \t]*```", "```")  # a string in the block may hold a fence, but does not begin a line
]


def number(answer: str, reference: str, prompt: str = "") -> bool:
    """Whether both give the same number: after "####" or "the answer is", in a box of LaTeX, else the last one."""
    expected = _number(reference)
    return expected is not None and _number(answer) == expected


def _number(text: str) -> object:
    text = _FRACTION.sub(_division, text).replace("{,}", ",").replace("\\$", "$").replace("\\%", "%")
    text = _DEGREES.sub("", _TIMES_TEN.sub("×", _GROUPING.sub("", text)))
    boxed = _BOXED.findall(text)
    if not boxed:
        return answers.number(text)
    inside = _BESIDE_NUMBERS.sub(" ", boxed[-1])
    return None if _COMMAND.search(inside) else answers.number(inside)


def _division(fraction: re.Match[str]) -> str:
    over, under = fraction["over"] or fraction["digit"], fraction["under"] or fraction["last"]
    negative = bool(fraction["minus"]) != over.startswith("-")
    return f" {'-' * negative}{over.removeprefix('-')}/{under}"


def choice(answer: str, reference: str, prompt: str) -> bool:
    """Whether both choose the same of the prompt's options, by text or label; without options, the same label or text.

    :func:`~spintune.text.answers.options_in` says how options are found.
    """
    options = answers.options_in(prompt)
    if options:
        around = answers.characters_around(options)
        expected, given = (answers.chosen(text, options) for text in (reference, answer))
        if expected is None or given is None:
            return False
        return answers.plain_text(options[expected], around) == answers.plain_text(options[given], around)
    if (label := answers.label(reference)) is not None:
        return answers.label(answer) == label
    expected_text, given_text = (answers.announced_answers(text)[0] for text in (reference, answer))
    return bool(expected_text) and answers.same_text(expected_text, given_text)


def contains(answer: str, reference: str, prompt: str = "") -> bool:
    """Whether the answer holds the reference in whole words, up to case and white space.

    Quotes and sentence marks around the reference do not count; its signs do, as in -5, C++ and 10%. Before a number
    "+" does not count, and a currency sign may be missing; white space beside a sign does not matter.
    """
    expected, given = (answers.plain_text(text, "").replace("\u2212", "-") for text in (reference, answer))
    expected = expected.lstrip(_AROUND).rstrip(_AROUND + _ENDS)
    return bool(expected) and re.search(_spellings(expected), given) is not None


def _spellings(expected: str) -> str:
    sign = _SIGN_BEFORE.match(expected)
    currency = sign["currency"] if sign else None
    words = _SPACE_BEFORE_SIGN.sub(r"\\s?", answers.whole_words(expected[sign.end() if sign else 0 :]))
    missing = rf"(?<![{answers.CURRENCIES}])(?<![{answers.CURRENCIES}]\s)"
    return rf"(?:(?<!-){re.escape(currency)}\s?|{missing}){words}" if currency else words


def same_json(answer: str, reference: str, prompt: str = "") -> bool:
    """Whether the answer is JSON with the reference's value; a fenced block may hold it, and 1 equals 1.0."""
    try:
        return _same_value(_json(answer), _json(reference))
    except (ValueError, RecursionError):
        return False


def _json(text: str) -> object:
    """The value of the whole text, else of a fenced block: the last one called json that is JSON, else the last one.

    Raises ValueError where there is none.
    """
    text = text.strip(string.whitespace + "\ufeff")
    with contextlib.suppress(ValueError):
        return orjson.loads(text)
    for pattern in _BLOCKS:
        blocks = [block for block in pattern.finditer(text) if block["closed"]]
        for block in sorted(blocks, key=lambda block: (block["kind"] or "").lower() == "json")[::-1]:
            with contextlib.suppress(ValueError):
                return orjson.loads(block["inside"])
    raise ValueError("no JSON")


def _same_value(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same_value(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same_value, one, other))
    # in Python True equals 1
    return isinstance(one, bool) == isinstance(other, bool) and one == other


def _follows_schema(valid: Callable[[object], bool], answer: str, reference: str, prompt: str) -> bool:
    try:
        return valid(_json(answer))
    except (ValueError, RecursionError):
        return False


def _same_match(pattern: str, answer: str, reference: str, prompt: str) -> bool:
    expected, given = (last_match(pattern, text, "evaluation.checker") for text in (reference, answer))
    return expected is not None and given is not None and one_line(given) == one_line(expected)


# By name -------------------------------------------------------------------------------------------------------------

_READS = {
    "number": "a number",
    "choice": "an option",
    "json": "JSON",
    "contains": "a text",
    "regex": "a match of the expression",
}
"""What each built-in checker looks for in a reference."""

BUILT_IN: dict[str, CheckFunction] = {"number": number, "choice": choice, "json": same_json, "contains": contains}

CHECKERS: Table[CheckFunction] = Table("checker", "spintune.checkers", BUILT_IN)


def register_checker(name: str, function: CheckFunction) -> None:
    """Makes a checker known under a name, for ``evaluation.checker``. Raises RecipeError when another has that name."""
    if name == TASKS:
        raise RecipeError(f"checker: {TASKS} is the name for the rules of a mixture's tasks; take another")
    CHECKERS.register(name, function)


class Verdicts(Protocol):
    """What judges answers: a :class:`Checker`, or the rules of a mixture's tasks."""

    @property
    def name(self) -> str:
        """For people."""

    @property
    def reads(self) -> str:
        """What a reference must hold."""

    @property
    def right_or_wrong(self) -> bool:
        """Whether every verdict is 0 or 1."""

    def verdict(self, answer: str, reference: str, prompt: str, where: str) -> float:
        """How right an answer is, from 0 to 1. ``where`` names the example."""


@dataclass(frozen=True)
class Checker:
    """A checker that is ready to judge.

    Attributes:
        name: for people.
        reads: what a reference must hold.
        right_or_wrong: whether every verdict is 0 or 1.
    """

    name: str
    function: CheckFunction
    reads: str
    right_or_wrong: bool

    def verdict(self, answer: str, reference: str, prompt: str, where: str) -> float:
        """How right an answer is, from 0 to 1. ``where`` names the example.

        Raises DataError, in one line, for a checker that raises, takes too long, or gives something else.
        """
        told = f"{where}: the checker {self.name}"
        try:
            value = _in_time(lambda: self.function(answer, reference, prompt))
        except _OutOfTimeError:
            raise DataError(
                f"{told} takes more than {SECONDS:g} s on an answer of {len(answer):,} characters; make it faster"
            ) from None
        except RecipeError as error:  # a regular expression that takes too long
            raise DataError(f"{where}: {error}") from error
        except Exception as error:  # whatever a user's function raises
            raise DataError(f"{told} fails ({type(error).__name__}: {one_line(str(error)):.200}); fix it") from error
        try:
            share = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError):
            share = math.nan
        if not 0 <= share <= 1:
            raise DataError(f"{told} gives {value!r:.60}, not true, false or a number from 0 to 1; fix it")
        return share


def check_setting(setting: object) -> CheckerSetting:
    """A recipe's ``checker`` as it is. Raises ValueError, which says what is wrong with it."""
    if isinstance(setting, str):
        if setting == "regex":
            raise ValueError("regex needs an expression; write {regex: PATTERN}")
        if setting == TASKS:
            return setting
        try:
            CHECKERS[setting]
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return setting
    if not isinstance(setting, Mapping) or len(setting) != 1 or not all(isinstance(one, str) for one in _flat(setting)):
        raise ValueError(f"give a name, {{regex: PATTERN}} or {{json: SCHEMA_FILE}} (given: {setting!r:.60})")
    ((kind, value),) = setting.items()
    if kind not in ("regex", "json"):
        raise ValueError(f"only regex and json take a value (given: {kind!r:.60}); name other checkers alone")
    if kind == "regex":
        check_expression(value)
    return dict(setting)


def _flat(setting: Mapping[object, object]) -> list[object]:
    return [*setting.keys(), *setting.values()]


def build_checker(setting: CheckerSetting) -> Checker:
    """The checker that a recipe names, other than :data:`TASKS`. Reads its schema file if there is one.

    Raises RecipeError or MissingExtraError, in one line.
    """
    if isinstance(setting, str):
        function = CHECKERS[setting]
        if not callable(function):
            raise RecipeError(f"the checker {setting!r} is no function of (answer, reference, prompt); fix its package")
        return Checker(setting, function, _READS.get(setting, "what it looks for"), setting in BUILT_IN)
    ((kind, value),) = setting.items()
    if kind == "regex":
        return Checker("regex", partial(_same_match, value), _READS["regex"], True)
    return Checker("json", partial(_follows_schema, _schema(Path(value))), "JSON that follows the schema", True)


def _schema(path: Path) -> Callable[[object], bool]:
    """Whether a value follows the JSON Schema in a file. Nothing is fetched from the network."""
    try:
        from jsonschema.validators import validator_for
        from referencing import Registry
    except ImportError as error:
        raise MissingExtraError(
            "evaluation.checker: {json: FILE} needs the package jsonschema; pip install jsonschema, or use json alone"
        ) from error
    try:
        schema = orjson.loads(path.read_bytes())
        kind = validator_for(schema)
        kind.check_schema(schema)
    except OSError as error:
        raise RecipeError(f"evaluation.checker: {path}: {error.strerror or error}; check the path") from error
    except Exception as error:  # no JSON, or one of jsonschema's own errors
        message = one_line(getattr(error, "message", str(error)))
        raise RecipeError(f"evaluation.checker: {path} is no JSON Schema ({message:.200}); fix it") from error
    validator = kind(schema, registry=Registry())
    return lambda value: bool(validator.is_valid(value))


# A limit of time -----------------------------------------------------------------------------------------------------


class _OutOfTimeError(BaseException):
    """No Exception, since a checker may catch those."""


def _in_time(call: Callable[[], T]) -> T:
    """The result of a call, which gets :data:`SECONDS`. Raises _OutOfTimeError after them.

    In the main thread a signal stops it, also inside Python's ``re`` and in a loop. Elsewhere a thread goes on alone.
    """
    if threading.current_thread() is threading.main_thread() and hasattr(signal, "setitimer"):
        return _interrupted(call)
    return _left_alone(call)


def _interrupted(call: Callable[[], T]) -> T:
    def stop(*_: object) -> None:
        raise _OutOfTimeError

    before = signal.signal(signal.SIGALRM, stop)
    # again each second, for a function that goes on after the first
    timer = signal.setitimer(signal.ITIMER_REAL, SECONDS, 1.0)
    try:
        return call()
    finally:
        signal.setitimer(signal.ITIMER_REAL, *timer)
        signal.signal(signal.SIGALRM, before)


def _left_alone(call: Callable[[], T]) -> T:
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(SECONDS)
    if errors:
        raise errors[0]
    if not results:
        raise _OutOfTimeError
    return results[0]
