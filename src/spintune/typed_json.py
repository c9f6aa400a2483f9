"""Typed records as JSON and back, checked where they are read."""

from __future__ import annotations

from dataclasses import MISSING, fields
from functools import cache
from typing import Any, TypeVar

from pydantic import SerializerFunctionWrapHandler, TypeAdapter, ValidationError, model_serializer

from spintune.errors import RunError

T = TypeVar("T")

JsonObject = dict[str, Any]
"""A JSON object as read."""


class OmitEmpty:
    """Base of dataclasses whose optional fields, those with a default, are left out of JSON while None or empty."""

    @model_serializer(mode="wrap")
    def _serialize(self, serialize: SerializerFunctionWrapHandler) -> JsonObject:
        required = {
            field.name
            for field in fields(self)  # type: ignore[arg-type]
            if field.default is MISSING and field.default_factory is MISSING
        }
        return {
            key: value
            for key, value in serialize(self).items()
            if key in required or value not in (None, [], {}, ()) or self.keeps_empty(key)
        }

    def keeps_empty(self, field: str) -> bool:
        """Whether an optional field is written although it is None or empty."""
        return False


def to_json(record: object) -> Any:
    """A dataclass, with all it holds, as plain values: dicts, lists, texts and numbers."""
    return adapter(type(record)).dump_python(record, mode="json", by_alias=True)  # type: ignore[arg-type]


def from_json(kind: type[T], value: object, where: object) -> T:
    """The record of type ``kind`` that plain values hold. Fields that the type does not know are passed over.

    Raises RunError, which names ``where`` and the field, when they hold none.
    """
    try:
        found: T = adapter(kind).validate_python(value)  # type: ignore[arg-type]
    except ValidationError as error:
        raise RunError(f"{where}: {first_problem(error, kind.__name__)}; delete it and run again") from error
    return found


def first_problem(error: ValidationError, whole: str) -> str:
    """The first thing that is wrong, after the field where it is; ``whole`` stands for the record itself."""
    problem = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, problem['loc'])) or whole}: {problem['msg'].lower()}"


@cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Pydantic's reader and writer of a type; building one takes milliseconds."""
    return TypeAdapter(kind)
