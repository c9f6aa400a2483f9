"""Seed tasks, and the examples that a teacher generates from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import orjson

from spintune.data.file_rows import FileRow, instruction_prompt
from spintune.data.tables import rows_of
from spintune.errors import DataError
from spintune.records import Example, Message
from spintune.typed_json import JsonObject, to_json


@dataclass(frozen=True)
class SeedTask:
    """An instruction with one instance of it, written by a person (a seed) or by a teacher.

    Attributes:
        id: of a seed, the id in its file or its row number; of a generated task, a digest of its contents.
        output: None while the task has no instance yet.
        classification: whether the answers are a few labels; None if unknown.
    """

    id: str
    instruction: str
    input: str = ""
    output: str | None = None
    classification: bool | None = None


@dataclass(frozen=True)
class AnsweredPrompt:
    """A prompt with its version, such as "alpaca/1", and the key under which the reply to it is stored."""

    prompt: str
    reply: str


@dataclass(frozen=True)
class SynthesisProvenance:
    """Where a generated example comes from.

    Attributes:
        teacher: the teacher's name.
        method: "self_instruct" or "alpaca".
        requests: what the teacher was asked; the request for the instruction comes first.
        demonstrations: ids of the tasks that the request for the instruction showed.
    """

    teacher: str
    method: str
    requests: tuple[AnsweredPrompt, ...]
    demonstrations: tuple[str, ...]


@dataclass(frozen=True)
class GeneratedExample:
    """A task that a teacher wrote, with its provenance."""

    task: SeedTask
    provenance: SynthesisProvenance

    @property
    def example(self) -> Example:
        """The task as a conversation, laid out like a row of the Alpaca format."""
        task = self.task
        prompt = instruction_prompt(task.instruction, task.input)
        return Example((Message("user", prompt), Message("assistant", task.output or "")), f"synth:{task.id}")

    def to_json(self) -> JsonObject:
        """A row of the Alpaca format, with the provenance beside it."""
        return {**to_json(self.task), "provenance": to_json(self.provenance)}


def task_id(instruction: str, input: str = "", output: str | None = None) -> str:
    """A digest of the task's contents."""
    return hashlib.sha256(orjson.dumps([instruction, input, output])).hexdigest()[:16]


def read_seeds(path: str) -> list[SeedTask]:
    """Reads the tasks of a seed file in file order.

    A row has ``instruction`` and either ``instances``, as in Self-Instruct, or ``output`` and perhaps ``input``, as in
    Alpaca. Of several instances, the first is used. Seeds are never filtered: three of the paper's own would not pass
    its filters.

    Raises DataError for a file without such rows, and for the first broken row.
    """
    seeds = [_seed(row, number) for number, row in enumerate(rows_of(path), 1)]
    if not seeds:
        raise DataError(
            f"{path}: holds no seed tasks; give rows of instruction and instances, or of instruction and output"
        )
    return seeds


def _seed(row: FileRow, number: int) -> SeedTask:
    instruction = row.text("instruction", "an instruction")
    instance = next(row.objects("instances", "an answer")) if "instances" in row.values else row
    classification = row.values.get("is_classification")
    if classification is not None and not isinstance(classification, bool):
        raise DataError(
            f"{row.where}: is_classification is {classification!r:.40}, neither true nor false; correct the row"
        )
    output = instance.text("output", "an answer")
    for name, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            raise DataError(f"{row.where}: a seed task with an empty {name}; fill it in or delete the row")
    given = row.values.get("id")
    return SeedTask(
        id=given if isinstance(given, str) else f"seed-{number}",
        instruction=instruction,
        input=instance.task_input(),
        output=output,
        classification=classification,
    )
