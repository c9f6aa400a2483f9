"""Parsers of a teacher's replies. What cannot be parsed is counted with a reason and never guessed.

Markers count only at the beginning of a line, so that a text may contain "16.", "###", "Example" or "Output:".
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TypeVar

from spintune.data.file_rows import NO_INPUT
from spintune.synthesis.examples import SeedTask, task_id
from spintune.teachers.protocol import Outcome, Reply
from spintune.text.words import one_line

T = TypeVar("T")


@dataclass
class ParsedReply:
    """The tasks in a reply, the number dropped for each reason, and why the whole reply could not be parsed, if so."""

    tasks: list[SeedTask] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    failure: str | None = None


def reply_text(outcome: Outcome, begin: str, marker: re.Pattern[str]) -> str | ParsedReply:
    """The reply with its beginning, or the reason why there is no text.

    The teacher may or may not have repeated the beginning. It has if the reply begins with a marker of that kind, with
    any number.
    """
    if not isinstance(outcome, Reply):
        return ParsedReply(failure=outcome.reason)
    if outcome.ending == "refused":
        return ParsedReply(failure="withheld")
    if not outcome.text.strip():
        return ParsedReply(failure="empty_reply")
    text = outcome.text.replace("\r\n", "\n")
    return text if marker.match(_RULE_ABOVE.sub("", text)) else begin + text


_RULE_ABOVE = re.compile(r"^\s*(?:(?:#+|-+)[ \t]*\n\s*)?")

# Self-Instruct: a numbered list of instructions ---------------------------------------------------------------------

_ITEM = re.compile(r"^[ \t]*(?:[*_#]+[ \t]*)?(?:Task[ \t]+)?(\d{1,3})[ \t]*[.):][ \t*_]*", re.MULTILINE | re.IGNORECASE)


def instructions(outcome: Outcome, begin: str) -> ParsedReply:
    """The items of a numbered list with any numbers; an item ends at an empty line.

    If the reply reached its maximum length, the last item is dropped.
    """
    text = reply_text(outcome, begin, _ITEM)
    if isinstance(text, ParsedReply):
        return text
    marks = list(_ITEM.finditer(text))
    if not marks:
        return ParsedReply(failure="unparsed")
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    texts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    items = [one_line(item.partition("\n\n")[0]).strip("*_ ") for item in texts]
    parsed = ParsedReply()
    _drop_cut_off(items, outcome, parsed)
    parsed.tasks = [SeedTask(task_id(item), item) for item in items]
    return parsed


# Self-Instruct: is it a classification task? ------------------------------------------------------------------------


_JUDGEMENT = re.compile(r"[*_#\s]*Classification[*_]*:\W*(yes|no)\b", re.IGNORECASE)


def classification(outcome: Outcome, begin: str) -> bool | str:
    """Whether the reply says Yes; or the reason why it says neither Yes nor No."""
    text = reply_text(outcome, begin, _JUDGEMENT)
    if isinstance(text, ParsedReply):
        return text.failure or "unparsed"
    said = _JUDGEMENT.match(text.strip())
    return said[1].lower() == "yes" if said else "unparsed"


# Self-Instruct: instances -------------------------------------------------------------------------------------------

_TASK = re.compile(r"^[ \t]*Task[ \t]*\d*[ \t]*:", re.MULTILINE)
_EXAMPLE = re.compile(r"^[ \t*_#]*Example[ \t]*\d*[ \t]*[.:]?[ \t*_]*$", re.MULTILINE)
_OUTPUT = re.compile(r"^[ \t*_]*Output[ \t]*\d*[ \t*_]*:[ \t*_]*", re.MULTILINE)
_INPUT = re.compile(r"^[ \t*_]*Input[ \t]*\d*[ \t*_]*:[ \t*_]*", re.MULTILINE)
_LABEL = re.compile(r"^[ \t*_#]*Class label[ \t]*\d*[ \t*_]*:[ \t*_]*", re.MULTILINE | re.IGNORECASE)


def instances_input_first(outcome: Outcome, begin: str, task: SeedTask) -> ParsedReply:
    """Inputs and outputs of ``Example N`` blocks."""
    text = reply_text(outcome, begin, _EXAMPLE)
    if isinstance(text, ParsedReply):
        return text
    parsed = ParsedReply()
    before, *blocks = _EXAMPLE.split(_TASK.split(text)[0])
    if before.strip():
        blocks.insert(0, before)
    _drop_cut_off(blocks, outcome, parsed)
    for block in blocks:
        before, *outputs = _OUTPUT.split(block)
        if not outputs:
            parsed.dropped["no_output"] += 1
            continue
        # a second output in a block has no input of its own
        output = _INPUT.split(outputs[0])[0].strip()
        parsed.tasks.append(_instance(task, _INPUT.sub("", before.strip(), count=1).strip(), output))
    if not blocks and not parsed.dropped:
        parsed.failure = "unparsed"
    return parsed


def instances_output_first(outcome: Outcome, begin: str, task: SeedTask) -> ParsedReply:
    """Class labels, each with the input that follows it, if any."""
    text = reply_text(outcome, begin, _LABEL)
    if isinstance(text, ParsedReply):
        return text
    _, *blocks = _LABEL.split(_TASK.split(text)[0])
    parsed = ParsedReply(failure=None if blocks else "unparsed")
    _drop_cut_off(blocks, outcome, parsed)
    for block in blocks:
        label, _, context = block.strip().partition("\n")
        parsed.tasks.append(_instance(task, _INPUT.sub("", context.strip(), count=1).strip(), label.strip(" *_")))
    return parsed


def _instance(task: SeedTask, context: str, output: str) -> SeedTask:
    context = _given(context)
    return SeedTask(task_id(task.instruction, context, output), task.instruction, context, output, task.classification)


# Alpaca: whole examples ---------------------------------------------------------------------------------------------

_FIELD = re.compile(
    r"^[ \t]*(?:[*_#]+[ \t]*)?(?:(\d{1,3})[ \t]*[.)][ \t]*)?[*_]*(Instruction|Input|Output)[*_]*[ \t]*:[*_]*[ \t]*",
    re.MULTILINE,
)
_RULER = re.compile(r"(?:^|\n)[ \t]*(?:#{2,}|-{3,}|\*{3,})[ \t]*(?:\n\s*)*$")
_FIELDS = ("Instruction", "Input", "Output")


def triples(outcome: Outcome, begin: str, limit: int) -> ParsedReply:
    """Instruction, input and output of each block.

    A block begins with an instruction of any number and must have its three fields in order; a broken block is dropped
    alone. If the reply reached its maximum length, the last block is dropped. Blocks beyond ``limit`` are dropped.
    """
    text = reply_text(outcome, begin, _FIELD)
    if isinstance(text, ParsedReply):
        return text
    blocks = _blocks(text)
    parsed = ParsedReply(failure=None if blocks else "unparsed")
    _drop_cut_off(blocks, outcome, parsed)
    for block in blocks[:limit]:
        if tuple(name for name, _ in block) != _FIELDS:
            parsed.dropped["broken_block"] += 1
            continue
        instruction, context, output = (content for _, content in block)
        instruction, context = one_line(instruction), _given(context)
        parsed.tasks.append(SeedTask(task_id(instruction, context, output), instruction, context, output))
    parsed.dropped["more_than_asked"] += len(blocks[limit:])
    parsed.dropped += Counter()
    return parsed


def _blocks(text: str) -> list[list[tuple[str, str]]]:
    """The fields of each block with their contents. If some fields have numbers, those without are ordinary text."""
    marks = list(_FIELD.finditer(text))
    if any(mark[1] for mark in marks):
        marks = [mark for mark in marks if mark[1]]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    blocks: list[list[tuple[str, str]]] = []
    for mark, end in zip(marks, ends, strict=True):
        if mark[2] == "Instruction":
            blocks.append([])
        if blocks:
            content = _RULER.sub("", text[mark.end() : end].rstrip())
            blocks[-1].append((mark[2], content.strip()))
    return blocks


def _given(context: str) -> str:
    """The input; empty if the teacher wrote that there is none."""
    return "" if context.strip().strip("()[].").lower() in ("", NO_INPUT, "none", "n/a", "no input") else context


def _drop_cut_off(blocks: list[T], outcome: Outcome, parsed: ParsedReply) -> None:
    """Drops the last block of a reply that reached its maximum length."""
    if blocks and isinstance(outcome, Reply) and outcome.ending == "length":
        blocks.pop()
        parsed.dropped["cut_off"] += 1
