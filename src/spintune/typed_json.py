"""Typed records as JSON and back, checked where they are read."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from spintune.errors import RunError

T = TypeVar("T")


def to_json(record: Any) -> Any:
    """A dataclass, with all it holds, as plain values: dicts, lists, texts and numbers."""
    return _adapter(record.__class__).dump_python(record, mode="json")


def from_json(kind: type[T], value: object, where: object) -> T:
    """The record of type ``kind`` that plain values hold. Fields that the type does not know are passed over.

    Raises RunError, which names ``where`` and the field, when they hold none.
    """
    try:
        found: T = _adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or kind.__name__
        raise RunError(f"{where}: {field}: {problem['msg'].lower()}; delete it and run again") from error
    return found


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
