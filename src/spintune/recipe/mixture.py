"""How a recipe asks for a mixture of tasks."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from spintune.recipe.section import Count, NonNegative, Positive, Section, Share

Rows = Annotated[int, Field(ge=0)]
QuadrantName = Literal["zero_direct", "few_direct", "zero_cot", "few_cot"]


class QuadrantsSection(Section):
    """Shares of the four quadrants; they are divided by their sum."""

    zero_direct: NonNegative = Field(0.0, description="The question alone, the answer alone. [share]")
    few_direct: NonNegative = Field(0.0, description="After exemplars, the answer alone. [share]")
    zero_cot: NonNegative = Field(0.0, description="The question alone, rationale and answer. [share]")
    few_cot: NonNegative = Field(0.0, description="After exemplars, rationale and answer. [share]")

    @model_validator(mode="after")
    def _something(self) -> QuadrantsSection:
        if not sum(self.shares().values()):
            raise ValueError("the shares sum to 0; give at least one above 0")
        return self

    def shares(self) -> dict[QuadrantName, float]:
        return {
            "zero_direct": self.zero_direct,
            "few_direct": self.few_direct,
            "zero_cot": self.zero_cot,
            "few_cot": self.few_cot,
        }


class WeighingSection(Section):
    """How tasks, or groups of them, are weighed against each other."""

    groups: dict[str, GroupSection] | None = Field(None, description="Mixtures inside this one.")
    weights: dict[str, NonNegative] | None = Field(
        None, description="Fixed weights by name or pattern, in place of rates."
    )
    cap: Count | None = Field(None, description="Rows of a task that are used at most. [rows]")
    rate_maximum: Count | None = Field(None, description="Rows that count for a task's rate at most. [rows]")
    temperature: Positive | None = Field(
        None, description="Rates are taken to the power of 1/T: above 1 evens them out. Default: 1 (T5, section 3.5.2)."
    )
    quadrants: QuadrantsSection | None = Field(
        None, description="Shares of the four quadrants. Default: equal, among those a task has."
    )

    @model_validator(mode="after")
    def _weighed_once(self) -> WeighingSection:
        if self.weights is not None and self.groups is not None:
            raise ValueError("weights belongs to the groups inside; move it there")
        for name in ("groups", "weights"):
            if getattr(self, name) == {}:
                raise ValueError(f"{name} is empty; leave it out or fill it in")
        return self


class GroupSection(WeighingSection):
    """A part of a mixture: tasks or groups."""

    tasks: list[str] | None = Field(
        None, description="Names, with * and ?, or collection:, cluster: or family:NAME. Default: all tasks."
    )
    share: NonNegative | None = Field(
        None, description="Weight beside its siblings. [factor] Default: the sum of its tasks' rates."
    )

    @model_validator(mode="after")
    def _tasks_or_groups(self) -> GroupSection:
        if self.tasks is not None and self.groups is not None:
            raise ValueError("give either tasks or groups")
        if self.tasks == []:
            raise ValueError("tasks is empty; leave it out or fill it in")
        return self


class PromptingSection(WeighingSection):
    """How the rows of a mixture are put into words."""

    inversion: Share | None = Field(
        None, description="Turned-around phrasings, where a task has some. [share] Default: 0.23 (Flan: 0.3 beside 1)."
    )
    no_options: Share | None = Field(
        None,
        description="Prompts that hide the options, where a task allows it. [share] Default: 0.5 (Flan's released).",
    )
    shots: tuple[Count, Count] | None = Field(
        None, description="Fewest and most exemplars of a few-shot prompt. [exemplars] Default: 1 to 5 (Flan: 1, 2, 5)."
    )
    few_shot_tokens: Count | None = Field(
        None,
        description="Exemplars and query together. [tokens] Default: 3/4 of max_length (Flan: 1920 of 2048 + 512).",
    )

    @field_validator("shots", mode="before")
    @classmethod
    def _pair(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else value

    @model_validator(mode="after")
    def _rising(self) -> PromptingSection:
        if self.shots is not None and self.shots[0] > self.shots[1]:
            raise ValueError("shots: the fewest come first, such as [1, 5]")
        return self


class MixtureSection(PromptingSection):
    """Many tasks in many phrasings, in place of or beside plain sources."""

    tasks: list[str] = Field(description="Tasks: builtin:NAME or YAML files.")
    folder: str | None = Field(None, description="Where the files of built-in tasks are. [path]")
    examples: Count = Field(description="How many examples are made of them. [examples]")
    preset: str | None = Field(
        None, description="Published mixture: flan2021, flan2022, flan2022-ablations or flan2022-released."
    )
    held_out: list[str] = Field(
        default=[],
        description="Tasks that are only tested: names, with * and ?, or cluster:, collection:, family:NAME.",
    )
    heldout_rows: Rows | dict[str, Rows] = Field(
        50,
        description="Test rows of a task, each asked in every quadrant the task has; or by selector, the first that "
        "means a task counts, as in {qasc: 50, 'cluster:sentiment': 4, '*': 1}. [rows] Keeps evaluation short.",
    )

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @model_validator(mode="after")
    def _weighed_by_one(self) -> MixtureSection:
        if not self.tasks:
            raise ValueError("tasks is empty; name at least one")
        if self.preset is not None and (self.groups is not None or self.weights is not None):
            raise ValueError("a preset has groups of its own; leave out preset, or groups and weights")
        return self
