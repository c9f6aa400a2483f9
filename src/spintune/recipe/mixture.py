"""Settings of a mixture of tasks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal, get_args

from pydantic import Field, field_validator

from spintune.recipe.section import Count, NonNegative, Positive, Section, Share, WholeNumber

QuadrantName = Literal["zero_direct", "few_direct", "zero_cot", "few_cot"]


class QuadrantsSection(Section):
    """Shares of the four quadrants: zero- or few-shot, with or without a rationale. They are divided by their sum."""

    zero_direct: NonNegative = 0.0
    """Zero-shot, answer without a rationale. [share]"""
    few_direct: NonNegative = 0.0
    """Few-shot, answer without a rationale. [share]"""
    zero_cot: NonNegative = 0.0
    """Zero-shot, rationale and answer. [share]"""
    few_cot: NonNegative = 0.0
    """Few-shot, rationale and answer. [share]"""

    def _problems(self) -> Iterator[str]:
        if not sum(self.shares().values()):
            yield "the shares sum to 0; give at least one above 0"

    def shares(self) -> dict[QuadrantName, float]:
        """The shares by quadrant."""
        return {name: getattr(self, name) for name in get_args(QuadrantName)}


class WeighingSection(Section):
    """How tasks, or groups of tasks, are weighted against each other."""

    groups: dict[str, GroupSection] | None = None
    """Groups of tasks by name, each a mixture of its own."""
    weights: dict[str, NonNegative] | None = None
    """Fixed weights by name or pattern, instead of rates."""
    cap: Count | None = None
    """Maximum rows used per task. [rows]"""
    rate_maximum: Count | None = None
    """Maximum rows that count toward a task's rate. [rows]"""
    temperature: Positive | None = None
    """Rates are raised to the power 1/T; above 1 evens them out. Default: 1 (T5, section 3.5.2)."""
    quadrants: QuadrantsSection | None = None
    """Shares of the four quadrants. Default: equal shares of those that a task has."""

    def _problems(self) -> Iterator[str]:
        if self.weights is not None and self.groups is not None:
            yield "weights and groups exclude each other; move weights into the groups"
        for name in ("groups", "weights"):
            if getattr(self, name) == {}:
                yield f"{name} is empty; leave it out or fill it in"
        for name in ("rate_maximum", "temperature"):
            if self.weights is not None and self._has_own_weight and getattr(self, name) is not None:
                yield f"{name} would do nothing beside weights, which are fixed; leave one of them out"

    @property
    def _has_own_weight(self) -> bool:
        """Whether the rates of its tasks do not decide how it is weighted itself."""
        return True


class GroupSection(WeighingSection):
    """A part of a mixture: tasks, or groups of tasks."""

    tasks: list[str] | None = None
    """Tasks: names with * and ?, or collection:NAME, cluster:NAME, family:NAME. Default: all."""
    share: NonNegative | None = None
    """Weight relative to its siblings. [factor] Default: the sum of its tasks' rates."""

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.tasks is not None and self.groups is not None:
            yield "give either tasks or groups"
        if self.tasks == []:
            yield "tasks is empty; leave it out or fill it in"

    @property
    def _has_own_weight(self) -> bool:
        return self.share is not None


class PromptingSection(WeighingSection):
    """How the rows of a mixture become prompts."""

    inversion: Share | None = None
    """Share of inverted templates (predict the input from the output), where a task has some. [share] Default: 0.23
    (Flan weights them 0.3 against 1)."""
    no_options: Share | None = None
    """Share of prompts that hide the answer options, where a task allows it. [share] Default: 0.5 (Flan's release)."""
    shots: Annotated[tuple[Count, Count], Field(strict=False)] | None = None
    """Minimum and maximum exemplars of a few-shot prompt. [exemplars] Default: 1 to 5 (Flan: 1, 2, 5)."""
    few_shot_tokens: Count | None = None
    """Maximum length of exemplars and query together. [tokens] Default: 3/4 of max_length (Flan: 1920 of 2048 +
    512)."""

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if self.shots is not None and self.shots[0] > self.shots[1]:
            yield "shots: give the minimum first, such as [1, 5]"


class MixtureSection(PromptingSection):
    """A mixture of many tasks in many phrasings."""

    tasks: list[str]
    """Tasks: builtin:NAME or YAML files."""
    folder: str | None = None
    """Folder with the data files of built-in tasks. [path]"""
    examples: Count
    """Number of examples to draw. [examples]"""
    preset: str | None = None
    """Published mixture: flan2021, flan2022, flan2022-ablations or flan2022-released."""
    held_out: list[str] = Field(default=[])
    """Tasks used only for testing: names with * and ?, or cluster:NAME, collection:NAME, family:NAME."""
    heldout_rows: WholeNumber | dict[str, WholeNumber] = 50
    """Test rows per task, each asked in every quadrant that the task has; or a number for each selector, the first that
    matches a task counts: {qasc: 50, 'cluster:sentiment': 4, '*': 1}. [rows] Default: 50 keeps evaluation short."""

    @field_validator("tasks", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        if not self.tasks:
            yield "tasks is empty; name at least one"
        if self.preset is not None and (self.groups is not None or self.weights is not None):
            yield "a preset has groups of its own; leave out preset, or groups and weights"
