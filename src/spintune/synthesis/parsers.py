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
from spintune.synthesis.layout import unguarded, unwrapped, without_fence, without_frame, without_label, without_remark
from spintune.teachers.protocol import Outcome, Reply
from spintune.teachers.reasoning import without_reasoning
from spintune.text.words import one_line

T = TypeVar("T")

MAX_REPLY = 500_000
"""A longer reply is not read: no answer to what is asked here comes near it. [characters]"""
MAX_FIELD = 100_000
"""A task with a longer instruction, input or output is dropped. [characters]"""
MAX_ITEMS = 100
"""Instructions of one reply that are read; each is compared with all that were accepted."""


@dataclass
class ParsedReply:
    """The tasks in a reply, the number dropped for each reason, and why the whole reply could not be parsed, if so."""

    tasks: list[SeedTask] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)
    failure: str | None = None

    def add(self, task: SeedTask) -> None:
        """Keeps a task, unless one of its texts is too long."""
        if max(len(text or "") for text in (task.instruction, task.input, task.output)) > MAX_FIELD:
            self.dropped["too_long"] += 1
        else:
            self.tasks.append(task)


def reply_text(outcome: Outcome, start: re.Pattern[str]) -> str | ParsedReply:
    """The answer in a reply, without thought and without fences around items; or the reason why there is none."""
    if isinstance(outcome, Reply) and len(outcome.text) > MAX_REPLY:
        return ParsedReply(failure="reply_too_long")
    outcome = without_reasoning(outcome)
    if not isinstance(outcome, Reply):
        return ParsedReply(failure=outcome.reason)
    if outcome.ending == "refused":
        return ParsedReply(failure="withheld")
    if not outcome.text.strip():
        return ParsedReply(failure="cut_in_reasoning" if outcome.reasoning else "empty_reply")
    return unwrapped(outcome.text.replace("\r\n", "\n"), start)


# Self-Instruct: a numbered list of instructions ---------------------------------------------------------------------

_ITEM = re.compile(
    r"^([ \t]*)(?:[*_#]+[ \t]*)?(?:Task[ \t]+)?(\d{1,3})[ \t]*[.):](?!\d)(?:[ \t_]|\*(?!\*)|\*\*(?=[ \t\n]|$))*",
    re.MULTILINE | re.IGNORECASE,
)
_TASK_LABEL = re.compile(r"[*_]*(?:Task|Instruction)(?:[ \t]+\d{1,3})?[*_]*[ \t]*:[*_]*[ \t]*", re.IGNORECASE)
_CHAT = re.compile(
    r"\W*+(?:sure|certainly|of course|absolutely|okay|ok|here (?:are|is)|here(?:'|’)s|below (?:are|is)|great)\b"
    r"|(?:[^\n:]*+:)++\W*+$",
    re.IGNORECASE,
)


def instructions(outcome: Outcome, begin: str) -> ParsedReply:
    """The items of a numbered list with any numbers; an item ends at an empty line.

    Text before the first number is the teacher's preamble, unless the reply goes on from ``begin``: then the next
    number follows. If the reply reached its maximum length, the last item is dropped.
    """
    text = reply_text(outcome, _ITEM)
    if isinstance(text, ParsedReply):
        return text
    first = _ITEM.search(text)
    if first is None:
        if "\n" in text.strip() or _CHAT.match(text):
            return ParsedReply(failure="unparsed")
        text = begin + text
    elif text[: first.start()].strip() and first[2] == _following(begin):
        text = begin + text
    marks = list(_ITEM.finditer(text))
    if not marks:
        return ParsedReply(failure="unparsed")
    # a list inside an item stands further to the right
    marks = [mark for mark in marks if len(mark[1]) <= len(marks[0][1]) + 1]
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    texts = [text[mark.end() : end].strip() for mark, end in zip(marks, ends, strict=True)]
    items = [_item(content) for content in _without_last_remark(texts)]
    parsed = ParsedReply()
    _drop_cut_off(items, outcome, parsed)
    for item in items[:MAX_ITEMS]:
        parsed.add(SeedTask(task_id(item), item))
    parsed.dropped["more_than_asked"] += len(items[MAX_ITEMS:])
    parsed.dropped += Counter()
    return parsed


def _following(begin: str) -> str:
    """The number after that of the beginning."""
    number = re.match(r"\d+", begin)
    return str(int(number[0]) + 1) if number else ""


def _without_last_remark(texts: list[str]) -> list[str]:
    """Cuts the last item after its first line if all others have one line: what follows is a remark about the list."""
    *others, last = texts
    line, _, rest = last.partition("\n")
    if others and rest[:1].strip() and not any("\n" in other for other in others):
        return [*others, line]
    return texts


def _item(content: str) -> str:
    """One instruction on one line, without the marks around it and the title before it."""
    content = without_frame(without_fence(unguarded(content)))
    label = _TASK_LABEL.match(content)
    paragraphs = without_label(content[label.end() :] if label else content)
    return one_line(paragraphs.partition("\n\n")[0]).strip("*_ ")


# Self-Instruct: is it a classification task? ------------------------------------------------------------------------


_JUDGEMENT = re.compile(r"^[*_# \t]*Classification[*_]*:\W*(yes|no)\b", re.IGNORECASE | re.MULTILINE)


def classification(outcome: Outcome, begin: str) -> bool | str:
    """Whether the reply says Yes; or the reason why it says neither Yes nor No."""
    text = reply_text(outcome, _JUDGEMENT)
    if isinstance(text, ParsedReply):
        return text.failure or "unparsed"
    said = _JUDGEMENT.search(text) or _JUDGEMENT.match(begin + text)
    return said[1].lower() == "yes" if said else "unparsed"


# Self-Instruct: instances -------------------------------------------------------------------------------------------

# Possessive: what follows a run of white space and marks may begin with some too, and would be tried from each of them.
_TASK = re.compile(r"^[ \t*_#]*+Task[ \t]*+\d*+[*_]*+[ \t]*+:[^\n]*", re.MULTILINE)
_EXAMPLE = re.compile(r"^[ \t*_#]*+Example[ \t]*+\d*+[ \t]*+[.:]?+[ \t*_]*+$", re.MULTILINE)
_OUTPUT = re.compile(r"^[ \t*_]*+Output[ \t]*+\d*+[ \t*_]*+:[ \t*_]*", re.MULTILINE)
_INPUT = re.compile(r"^[ \t*_]*+Input[ \t]*+\d*+[ \t*_]*+:[ \t*_]*", re.MULTILINE)
_EXAMPLE_OR_FIELD = re.compile("|".join(mark.pattern for mark in (_EXAMPLE, _OUTPUT, _INPUT)), re.MULTILINE)
_MAX_LABEL_WORDS = 8
_PREAMBLE = re.compile(r"\A[^\n]*:[*_ \t]*(?:\n[ \t]*\n\s*|\Z)")
_LABEL = re.compile(r"^[ \t*_#]*+Class label[ \t]*+\d*+[ \t*_]*+:[ \t*_]*", re.MULTILINE | re.IGNORECASE)


def instances_input_first(outcome: Outcome, begin: str, task: SeedTask) -> ParsedReply:
    """Inputs and outputs of ``Example N`` blocks."""
    text = reply_text(outcome, _EXAMPLE_OR_FIELD)
    if isinstance(text, ParsedReply):
        return text
    parsed = ParsedReply()
    before, *blocks = _EXAMPLE.split(_own_part(text))
    if not blocks or _EXAMPLE_OR_FIELD.search(before):
        blocks.insert(0, before)
    _drop_cut_off(blocks, outcome, parsed)
    for block in blocks:
        before, *outputs = _OUTPUT.split(block)
        if not outputs:
            parsed.dropped["no_output"] += 1
            continue
        # a second output in a block has no input of its own
        output = without_remark(_INPUT.split(outputs[0])[0])
        parsed.add(_instance(task, _input(before), output))
    if not blocks and not parsed.dropped:
        parsed.failure = "unparsed"
    return parsed


def _own_part(text: str) -> str:
    """What the reply says about the task asked for: after the task, if it repeats that, and before another one."""
    before, *others = _TASK.split(text)
    if others and not _EXAMPLE_OR_FIELD.search(before):
        return others[0]
    return before


def _input(before: str) -> str:
    """The input that stands before an output, without a preamble: a paragraph of its own that ends with a colon."""
    before = _PREAMBLE.sub("", before.strip())
    return without_frame(_INPUT.sub("", before, count=1))


def instances_output_first(outcome: Outcome, begin: str, task: SeedTask) -> ParsedReply:
    """Class labels, each with the input that follows it, if any."""
    text = reply_text(outcome, _LABEL)
    if isinstance(text, ParsedReply):
        return text
    before, *blocks = _LABEL.split(_own_part(text) if _LABEL.search(text) else _TASK.split(text)[0])
    if before.strip() and not _is_preamble(before):
        blocks.insert(0, before)
    parsed = ParsedReply(failure=None if blocks else "unparsed")
    _drop_cut_off(blocks, outcome, parsed)
    for block in blocks:
        label, _, context = block.strip().partition("\n")
        context = without_remark(_INPUT.sub("", context.strip(), count=1))
        parsed.add(_instance(task, context, without_frame(label).strip(" *_")))
    return parsed


def _is_preamble(before: str) -> bool:
    """Whether the text before the first label mark is no label: it announces something, or is too long."""
    return before.rstrip(" *_#\n-").endswith(":") or len(before.strip().partition("\n")[0].split()) > _MAX_LABEL_WORDS


def _instance(task: SeedTask, context: str, output: str) -> SeedTask:
    context, output = unguarded(_given(context)), unguarded(output)
    return SeedTask(task_id(task.instruction, context, output), task.instruction, context, output, task.classification)


# Alpaca: whole examples ---------------------------------------------------------------------------------------------

_FIELD = re.compile(
    r"^[ \t]*+(?:[-•>][ \t]++)?(?:[*_#]++[ \t]*+)?+(?:(\d{1,3})[ \t]*+[.)][ \t]*+)?[*_]*+(Instruction|Input|Output)"
    r"(?:[ \t]++(\d{1,3}))?[*_]*+[ \t]*+:[*_]*[ \t]*",
    re.MULTILINE,
)
_INSTRUCTION = re.compile(_FIELD.pattern.replace("|Input|Output", ""), re.MULTILINE)
_FIELDS = ("Instruction", "Input", "Output")


def triples(outcome: Outcome, begin: str, limit: int) -> ParsedReply:
    """Instruction, input and output of each block.

    A block begins with an instruction of any number and must have its three fields in order; a broken block is dropped
    alone. If the reply reached its maximum length, the last block is dropped. Blocks beyond ``limit`` are dropped.
    """
    text = reply_text(outcome, _INSTRUCTION)
    if isinstance(text, ParsedReply):
        return text
    first = _FIELD.search(text)
    blocks = _blocks(text if first and first[2] == "Instruction" else begin + text)
    parsed = ParsedReply(failure=None if blocks else "unparsed")
    _drop_cut_off(blocks, outcome, parsed)
    for block in blocks[:limit]:
        if tuple(name for name, _ in block) != _FIELDS:
            parsed.dropped["broken_block"] += 1
            continue
        instruction, context, output = (content for _, content in block)
        instruction, context = one_line(without_label(instruction)), _given(context)
        instruction, context, output = map(unguarded, (instruction, context, output))
        parsed.add(SeedTask(task_id(instruction, context, output), instruction, context, output))
    parsed.dropped["more_than_asked"] += len(blocks[limit:])
    parsed.dropped += Counter()
    return parsed


def _blocks(text: str) -> list[list[tuple[str, str]]]:
    """The fields of each block with their contents. If some fields of a name have numbers, those without are text."""
    marks = list(_FIELD.finditer(text))
    numbered = {mark[2] for mark in marks if mark[1] or mark[3]}
    marks = [mark for mark in marks if mark[1] or mark[3] or mark[2] not in numbered]
    ends = [*(mark.start() for mark in marks[1:]), len(text)][: len(marks)]
    blocks: list[list[tuple[str, str]]] = []
    for mark, end in zip(marks, ends, strict=True):
        if mark[2] == "Instruction":
            blocks.append([])
        if blocks:
            content = text[mark.end() : end]
            blocks[-1].append((mark[2], without_remark(content) if end == len(text) else without_frame(content)))
    return blocks


def _given(context: str) -> str:
    """The input; empty if the teacher wrote that there is none."""
    return "" if context.strip().strip("()[].").lower() in ("", NO_INPUT, "none", "n/a", "no input") else context


def _drop_cut_off(blocks: list[T], outcome: Outcome, parsed: ParsedReply) -> None:
    """Drops the last block of a reply that reached its maximum length."""
    if blocks and isinstance(outcome, Reply) and outcome.ending == "length":
        blocks.pop()
        parsed.dropped["cut_off"] += 1
