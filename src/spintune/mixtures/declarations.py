"""The keys of task, phrasing and preset files: closed, typed and described."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from spintune.recipe import Section
from spintune.recipe.mixture import PromptingSection
from spintune.recipe.section import TaskName
from spintune.text.expressions import check_expression, has_group

BUILTIN = Path(__file__).parent / "builtin"

Check = Literal["number", "option", "text"]


Expression = Annotated[str, AfterValidator(check_expression)]


class FieldSection(Section):
    """How to read a field from a row. White space around it is removed."""

    from_: str = Field(alias="from", description="Key of the row; a dot leads into an object (choices.text).")
    pattern: Expression | None = Field(None, description="Keep the first group of its first match, or the whole match.")
    remove: Expression | None = Field(None, description="Remove every match.")
    map: dict[str, str] | None = Field(None, description="Replace texts, such as a label's number by its name.")
    is_: Literal["text", "label", "index"] = Field(
        "text",
        alias="is",
        description="For the answer of a task with options: the option's text, its label, or its place from 0.",
    )


class OptionsSection(Section):
    """The answers to choose from: the same for all rows (fixed), or read from each row."""

    fixed: list[str] | None = Field(None, description="Options of every row.")
    from_: str | None = Field(None, alias="from", description="Key of the row: a list of texts, or one text to split.")
    each: Expression | None = Field(
        None, description="Matches one option of a text, with a group named text and an optional group label."
    )
    labels: Literal["any", "letters"] = Field(
        "any", description="letters: list them as A, B, C, ... only, because rationales refer to those."
    )
    optional: bool = Field(False, description="Whether the question can be answered without seeing them.")

    def _problems(self) -> Iterator[str]:
        if (self.fixed is None) == (self.from_ is None):
            yield "give either fixed or from"
        if self.fixed is not None and not self.fixed:
            yield "fixed is empty; name the options"
        if self.each is not None and not has_group(self.each, "text"):
            yield "each lacks a group named text: (?P<text>...)"


class PhrasingSection(Section):
    """One way to ask and to answer."""

    input: str = Field(description="What is asked, with {field} for the fields of the row.")
    target: str = Field(description="What is answered, with {answer}; before it {rationale} in a chain of thought.")
    cue: str = Field("", description="Text before the answer, such as '\\nAnswer: '. Default: the few-shot frame's.")


class PhrasingsFile(Section):
    """Phrasings that tasks share."""

    about: str = Field("", description="What they are for.")
    direct: list[PhrasingSection] = Field(default=[], description="The answer alone.")
    cot: list[PhrasingSection] = Field(default=[], description="The rationale, then the answer.")
    inverted: list[PhrasingSection] = Field(default=[], description="The inverted task.")


class KindSection(Section):
    """The cluster and family of a file in a folder of tasks."""

    cluster: str = Field(description="Tasks that are held out together.")
    family: str = Field(description="Kind of task, such as classification.")


class TaskFile(Section):
    """A task: its data, fields and phrasings."""

    name: TaskName = Field(description="Letters, digits, dots, dashes and underscores.")
    about: str = Field("", description="What it is and where it comes from.")
    collection: str = Field("own", description="Group of a preset: muffin, t0, niv2, cot, dialog or own.")
    cluster: str = Field("", description="Tasks that are held out together; default: the task's own name.")
    family: str = Field("", description="Kind of task, such as classification; default: the cluster.")
    file: str | None = Field(None, description="File beside this one or in the mixture's folder: .jsonl, .tsv, ...")
    files: str | None = Field(None, description="Pattern of files, each a task of its own: '*.jsonl'.")
    subfolder: str | None = Field(None, description="Subfolder to search for files, if it exists.")
    hub: str | None = Field(None, description="Hub id owner/name[@revision] instead of a file.")
    split: str = Field("train", description="Split of a hub data set.")
    columns: list[str] | None = Field(
        None, description="Names of the columns of a .tsv file as Flan writes it: no header, no quotes, \\n in a line."
    )
    fields: dict[str, FieldSection] = Field(description="Fields of phrasings, each with its key of the row.")
    options: OptionsSection | None = Field(None, description="Answers to choose from.")
    check: Check | None = Field(
        None,
        description="How to check an answer: number, option or text. Default: option or text.",
    )
    phrasings: list[str] = Field(default=[], description="Shared phrasings: builtin:NAME or a YAML file.")
    direct: list[PhrasingSection] = Field(default=[], description="The answer alone.")
    cot: list[PhrasingSection] = Field(default=[], description="The rationale, then the answer.")
    inverted: list[PhrasingSection] = Field(default=[], description="The inverted task.")
    groups: dict[str, KindSection] = Field(
        default={},
        description="For files: patterns of file names, each with cluster and family; the first match counts.",
    )

    @field_validator("fields", mode="before")
    @classmethod
    def _key_alone(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {name: {"from": spec} if isinstance(spec, str) else spec for name, spec in value.items()}

    @field_validator("options", mode="before")
    @classmethod
    def _list_is_fixed(cls, value: object) -> object:
        return {"fixed": value} if isinstance(value, list) else value

    @field_validator("phrasings", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return [value] if isinstance(value, str) else value

    def _problems(self) -> Iterator[str]:
        if sum(where is not None for where in (self.file, self.files, self.hub)) != 1:
            yield "give one of file, files and hub"
        if "answer" not in self.fields:
            yield "fields lacks answer; say which key holds it"
        if "options" in self.fields:
            yield "fields.options: options has a section of its own; move it there"
        if not (self.phrasings or self.direct or self.cot):
            yield "no phrasings; write some under direct or cot, or name phrasings: builtin:NAME"
        if self.check == "option" and self.options is None:
            yield "check: option needs options"
        if self.files is None and (self.groups or self.subfolder):
            yield "groups and subfolder belong to files"


class PresetFile(PromptingSection):
    """A published mixture."""

    name: str = Field(description="What a recipe calls it.")
    about: str = Field(description="What it is, its source, and what differs here.")
