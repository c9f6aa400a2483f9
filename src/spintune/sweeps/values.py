"""The words of a sweep: keys with several values, ``seed=0..4``, and overrides that hold for every run."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from spintune.errors import RecipeError
from spintune.recipe.yaml_files import parse_yaml
from spintune.storage import digest_json

SEED = "seed"
MAX_RUNS = 50
"""More runs than this have to be asked for."""

_MOST_RUNS = 10_000
_RANGE = re.compile(r"\s*(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})\s*")
_MAX_NAME = 120  # characters of a folder's name; file systems take 255 bytes


@dataclass(frozen=True)
class SweepValues:
    """What a sweep varies, and what it does not.

    Attributes:
        axes: the values of each key that has several, in the order of the command line.
        fixed: overrides for all runs.
    """

    axes: Mapping[str, Sequence[object]]
    fixed: tuple[str, ...]

    def product(self) -> list[dict[str, object]]:
        """The values of each run. The seed changes last, so that all settings of one seed stand together."""
        keys = sorted(self.axes, key=lambda key: key != SEED)  # sorting keeps the order of equals
        found = [dict(zip(keys, values, strict=True)) for values in product(*(self.axes[key] for key in keys))]
        return [{key: values[key] for key in self.axes} for values in found]


def read_values(words: Sequence[str], many: bool = False) -> SweepValues:
    """Reads the words behind a recipe: ``key=a..b``, ``key=[a, b]``, or an ordinary override.

    Args:
        many: whether more runs than :data:`MAX_RUNS` are meant.

    Raises RecipeError for a range or list without values, a key with values twice, too many runs, and none to vary.
    """
    axes: dict[str, Sequence[object]] = {}
    fixed: list[str] = []
    for word in words:
        key, separator, text = word.partition("=")
        if not separator:
            raise RecipeError(f"{word!r:.80} is not of the form key.path=value, key=a..b or key=[a,b]")
        values = _values(key.strip(), text)
        if values is None:
            fixed.append(word)
        else:
            if key.strip() in axes:
                raise RecipeError(f"{key.strip()} has values twice; give them in one range or list")
            axes[key.strip()] = values
    if both := [word.partition("=")[0].strip() for word in fixed if word.partition("=")[0].strip() in axes]:
        raise RecipeError(f"{both[0]} has several values and one for all runs; leave one out")
    if "out" in axes:
        raise RecipeError("out has several values; give one folder, in which each run has its own")
    if not axes:
        raise RecipeError("nothing varies; give a key several values: seed=0..4 or 'spin.loss=[logistic,space]'")
    _check_number(math.prod(map(len, axes.values())), many)
    return SweepValues(axes, tuple(fixed))


def _values(key: str, text: str) -> Sequence[object] | None:
    """The values of a key; None for one value that is no range and no list."""
    if found := _RANGE.fullmatch(text):
        first, last = map(int, found.groups())
        if last < first:
            raise RecipeError(f"{key}={text} is an empty range; the smaller number comes first")
        return range(first, last + 1)
    value = parse_yaml(text, f"override {key}")
    if value == []:
        raise RecipeError(f"{key}=[] has no values; a value that is an empty list is {key}=[[]]")
    return value if isinstance(value, list) else None


def _check_number(runs: int, many: bool) -> None:
    if runs > _MOST_RUNS:
        raise RecipeError(f"a sweep of {runs:,} runs is more than {_MOST_RUNS:,}; give fewer values")
    if runs > MAX_RUNS and not many:
        raise RecipeError(f"this sweep has {runs:,} runs; say --yes if you mean that, or --dry-run to see them")


# Names ---------------------------------------------------------------------------------------------------------------


def label(values: Mapping[str, object]) -> str:
    """Values as text: ``spin.loss=space, spin.lambda=0.1``."""
    return ", ".join(f"{key}={as_text(value)}" for key, value in values.items())


def as_overrides(values: Mapping[str, object]) -> list[str]:
    """Values as overrides; a JSON text is a YAML text."""
    return [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in values.items()]


def folder_names(product: Sequence[Mapping[str, object]]) -> list[str]:
    """A readable folder name for each run, such as ``seed=0,spin.loss=space``.

    Other characters than letters, digits and ``._+=,-`` become hyphens. A name that is long or would be another run's
    too ends in a digest.
    """
    names = [",".join(f"{key}={_plain(as_text(value))}" for key, value in values.items()) for values in product]
    counts = Counter(name.lower() for name in names)  # some file systems take capitals for small letters
    return [
        name
        if len(name) <= _MAX_NAME and counts[name.lower()] == 1
        else f"{name[:_MAX_NAME]}~{digest_json(dict(values))[:8]}"
        for name, values in zip(names, product, strict=True)
    ]


def as_text(value: object) -> str:
    """A value as it stands on a command line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _plain(text: str) -> str:
    number = text.removeprefix("-")
    plain = re.sub(r"[^A-Za-z0-9._+]+", "-", number).strip("-") or "empty"
    return f"-{plain}" if number != text and plain == number else plain
