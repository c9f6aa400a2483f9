"""The base class of a recipe's sections, and the types that fields share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler, WithJsonSchema, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from spintune.errors import RecipeError
from spintune.plugins import Table
from spintune.text.words import one_line

ScheduleName = Literal["cosine", "linear", "constant", "wsd", "inverse_sqrt"]
OptimizerName = Literal["adamw", "adamw8bit", "muon", "rmsprop", "adafactor"]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1)]
ShareBelowOne = Annotated[float, Field(ge=0, lt=1)]
PositiveShare = Annotated[float, Field(gt=0, le=1)]
WholeNumber = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
AUTO_RATE: Literal["auto"] = "auto"
"""A learning rate that a ladder of short runs finds."""
LearningRate = Positive | Literal["auto"]
TaskName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9_.-]*$")]

T = TypeVar("T")


def known_in(table: Table[T], *others: str) -> AfterValidator:
    """Accepts the names in a table, and the others."""

    def check(name: str) -> str:
        try:
            if name not in others:
                table[name]
        except RecipeError as error:
            raise ValueError(str(error)) from error
        return name

    return AfterValidator(check)


def offered(names: Iterable[str]) -> WithJsonSchema:
    """Lets editors offer these names and accept others, since users register more."""
    return WithJsonSchema({"anyOf": [{"enum": list(names)}, {"type": "string"}]})


class Section(BaseModel):
    """A closed, frozen group of settings."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, populate_by_name=True, use_attribute_docstrings=True
    )

    def _problems(self) -> Iterator[str]:
        """What is wrong with the settings together; the first is the error."""
        yield from ()

    @model_validator(mode="after")
    def _settings_fit_together(self) -> Self:
        for problem in self._problems():
            raise ValueError(problem)
        return self

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: object) -> None:
        """Puts each description, the docstring under its setting, on one line."""
        for field in cls.model_fields.values():
            field.description = one_line(field.description or "")

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler(core_schema)
        for setting in handler.resolve_ref_schema(schema).get("properties", {}).values():
            if "description" in setting:
                setting["description"] = one_line(setting["description"])
        return schema
