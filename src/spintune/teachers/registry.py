"""Teachers and judges that a recipe can name as ``kind``, besides endpoints and models on this machine.

::

    from spintune.teachers.registry import register_teacher

    class Shouting:
        def __init__(self, marks=1): ...

    register_teacher("shouting", Shouting)

    # in the recipe: Shouting(marks=3)
    synth:
      teacher: {kind: shouting, extra: {marks: 3}}

An installed package offers teachers in its entry point group ``spintune.teachers``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

from spintune.errors import RecipeError
from spintune.plugins import Table
from spintune.teachers.protocol import Teacher
from spintune.teachers.scripted import ScriptedTeacher

TeacherFactory = Callable[..., Teacher]
"""A class or function that takes, by name, what the recipe gives as ``model`` and ``extra``, and returns a teacher."""

TEACHERS: Table[TeacherFactory] = Table("kind of teacher", "spintune.teachers", {"scripted": ScriptedTeacher.from_file})


def register_teacher(kind: str, factory: TeacherFactory) -> None:
    """Makes a teacher known to recipes as ``kind``. Raises RecipeError when the name is taken."""
    if kind == "endpoint":
        raise RecipeError("there is a kind of teacher named 'endpoint' already; choose another name")
    TEACHERS.register(kind, factory)


def build_teacher(kind: str, model: str, extra: Mapping[str, object]) -> Teacher:
    """The teacher of a recipe's ``kind``, ``model`` ("" for none) and ``extra``.

    Raises RecipeError for an unknown kind, or for settings that its factory does not take.
    """
    factory = TEACHERS[kind]
    if "model" in extra:
        raise RecipeError(f"teacher {kind!r}: model is an argument of its own; leave it out of extra")
    arguments = {"model": model, **extra} if model else dict(extra)
    try:
        inspect.signature(factory).bind(**arguments)
    except TypeError as error:
        raise RecipeError(f"teacher {kind!r}: {error}; model and extra are the arguments of its factory") from None
    return factory(**arguments)
