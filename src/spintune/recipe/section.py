"""The base class of a recipe's sections, and the types that fields share."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

ScheduleName = Literal["cosine", "linear", "constant"]
OptimizerName = Literal["adamw", "rmsprop", "adafactor"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """A closed, frozen group of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, use_attribute_docstrings=True
    )

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """Puts each description, the docstring under its setting, on one line."""
        for field in cls.model_fields.values():
            field.description = _one_line(field.description)

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        for setting in handler.resolve_ref_schema(schema).get("properties", {}).values():
            if "description" in setting:
                setting["description"] = _one_line(setting["description"])
        return schema


def _one_line(text: str | None) -> str | None:
    return text and " ".join(text.split())
