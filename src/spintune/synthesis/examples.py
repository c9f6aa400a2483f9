"""What instruction data is made of on its way: seed tasks, candidates, and what a teacher wrote and was kept."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import orjson

from spintune.data.formats import NO_INPUT, FileRow
from spintune.data.sources import Source, rows_of
from spintune.errors import DataError
from spintune.records import Example, Message


@dataclass(frozen=True)
class SeedTask:
    """An instruction with one instance of it. A person's seed, or a teacher's work.

    Attributes:
        id: of a seed, the id in its file or the line; else a digest of the contents.
        output: None while only the instruction is there.
        classification: whether its answers are a few labels; None when nobody said.
    """

    id: str
    instruction: str
    input: str = ""
    output: str | None = None
    classification: bool | None = None


@dataclass(frozen=True)
class SynthesisProvenance:
    """Where a written example comes from.

    Attributes:
        teacher: who wrote it.
        method: "self_instruct" or "alpaca".
        requests: what was asked, the instruction's request first: name and version of the prompt, and the digest under
            which the reply is kept.
        demonstrations: ids of the tasks that the instruction's request showed.
    """

    teacher: str
    method: str
    requests: tuple[tuple[str, str], ...]
    demonstrations: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        requests = [{"prompt": prompt, "reply": reply} for prompt, reply in self.requests]
        return {**vars(self), "requests": requests, "demonstrations": list(self.demonstrations)}


@dataclass(frozen=True)
class GeneratedExample:
    """An example that a teacher wrote."""

    task: SeedTask
    provenance: SynthesisProvenance

    @property
    def example(self) -> Example:
        """As a conversation, laid out as rows of the Alpaca format are."""
        task = self.task
        prompt = f"{task.instruction}\n\n{task.input}" if task.input else task.instruction
        return Example((Message("user", prompt), Message("assistant", task.output or "")), f"synth:{task.id}")

    def to_json(self) -> dict[str, Any]:
        task = self.task
        row = {"id": task.id, "instruction": task.instruction, "input": task.input, "output": task.output}
        return {**row, "classification": task.classification, "provenance": self.provenance.to_json()}


def task_id(instruction: str, input: str = "", output: str | None = None) -> str:
    """Content address of a task."""
    return hashlib.sha256(orjson.dumps([instruction, input, output])).hexdigest()[:16]


def read_seeds(path: str) -> list[SeedTask]:
    """The tasks of a seed file, in its order: rows as the paper has them (``instances``), or rows of Alpaca.

    A seed is never filtered: three of the paper's own would not pass its filters. Of
    several instances the first counts.

    Raises DataError for a file without such rows, and for the first broken row.
    """
    seeds = [_seed(row, number) for number, row in enumerate(rows_of(Source(path)), 1)]
    if not seeds:
        raise DataError(
            f"{path}: holds no seed tasks; give rows of instruction and instances, or of instruction and output"
        )
    return seeds


def _seed(row: FileRow, number: int) -> SeedTask:
    instruction = row.text("instruction", "an instruction")
    instance = next(row.objects("instances", "an answer")) if "instances" in row.values else row
    context = "" if instance.values.get("input") is None else instance.text("input", "an input")
    flag = row.values.get("is_classification")
    if flag is not None and not isinstance(flag, bool):
        raise DataError(f"{row.where}: is_classification is {flag!r:.40}, neither true nor false; mend the row")
    output = instance.text("output", "an answer")
    for name, text in (("instruction", instruction), ("output", output)):
        if not text.strip():
            raise DataError(f"{row.where}: a seed task with an empty {name}; fill it in or delete the row")
    given = row.values.get("id")
    bare = context.strip().lower() in ("", NO_INPUT)
    return SeedTask(
        given if isinstance(given, str) else f"seed-{number}", instruction, "" if bare else context, output, flag
    )


def one_line(text: str) -> str:
    """White space collapsed."""
    return re.sub(r"\s+", " ", text).strip()
