"""Tables of named things that users extend: losses, data formats, teachers, generators, metrics, trackers.

A name is looked up among the built-in things and those registered from Python, then among the entry points of installed
packages. An entry point is imported only when its name is asked for.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import Generic, TypeVar

from spintune.errors import RecipeError

T = TypeVar("T")


class Table(Generic[T]):
    """Things of one kind by name.

    Args:
        kind: what they are, for errors: "loss", "data format".
        group: entry point group in which other packages offer more of them, such as ``spintune.losses``.
        builtin: those that come with spintune.
        elsewhere: names of other tools for things in this table, for errors.
    """

    def __init__(
        self,
        kind: str,
        group: str,
        builtin: Mapping[str, T] | Iterable[tuple[str, T]] = (),
        elsewhere: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kind, self.group, self.elsewhere = kind, group, elsewhere
        self._known: dict[str, T] = dict(builtin)

    def register(self, name: str, value: T) -> None:
        """Adds a thing, or replaces one that was registered with the same value.

        Raises RecipeError when the name is taken by another.
        """
        if name in self._known and self._known[name] != value:
            raise RecipeError(f"there is a {self.kind} named {name!r} already; choose another name")
        self._known[name] = value

    def unregister(self, name: str) -> None:
        """Removes a thing that was registered, if it is there."""
        self._known.pop(name, None)

    def __contains__(self, name: object) -> bool:
        return name in self._known or name in self._offered

    def __iter__(self) -> Iterator[str]:
        """The names: built-in ones first, then registered ones, then those of installed packages."""
        return iter(dict.fromkeys((*self._known, *self._offered)))

    def __getitem__(self, name: str) -> T:
        """The thing called ``name``. Raises RecipeError when there is none or its package cannot be imported."""
        if name not in self._known:
            offered = self._offered.get(name)
            if offered is None:
                raise RecipeError(self.unknown(name))
            self._known[name] = self._import(offered)
        return self._known[name]

    def unknown(self, name: object) -> str:
        """What to tell a user who asks for a name that does not exist."""
        names = list(self)
        other = self.elsewhere.get(str(name).lower())
        close = [other] if other in names else difflib.get_close_matches(str(name), names, 1)
        advice = f"did you mean {close[0]}?" if close else f"use one of {', '.join(names)}"
        return f"there is no {self.kind} {str(name)!r}; {advice}"

    @property
    def _offered(self) -> dict[str, EntryPoint]:
        return _entry_points(self.group, tuple(sys.path))

    def _import(self, offered: EntryPoint) -> T:
        try:
            value: T = offered.load()
        except Exception as error:  # whatever the other package raises
            package = offered.dist.name if offered.dist else offered.value
            raise RecipeError(
                f"the {self.kind} {offered.name!r} of package {package} cannot be imported "
                f"({type(error).__name__}: {error}); fix or remove that package"
            ) from error
        return value


@cache
def _entry_points(group: str, path: tuple[str, ...]) -> dict[str, EntryPoint]:
    """What the installed packages on ``path`` offer, by name; finding it takes tens of milliseconds."""
    return {one.name: one for one in entry_points(group=group)}
