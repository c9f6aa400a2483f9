"""A run's pairs as preference data for other trainers: rows of ``prompt``, ``chosen`` and ``rejected``."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from spintune.data.file_rows import FileRow
from spintune.data.formats.tools import calls_of
from spintune.data.preferences import turns_of_example
from spintune.errors import DataError, RunError
from spintune.export.source import refuse_existing
from spintune.records import Example, Message, Pair, ToolCall, plain_message, read_records
from spintune.run_folder import MANIFEST, iterations_of, outputs_digest, read_manifest, read_recipe
from spintune.storage import atomic_file, json_line
from spintune.text.reasoning import split_content, split_reasoning
from spintune.typed_json import JsonObject

_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


@dataclass(frozen=True)
class ExportedPairs:
    """What became of the generated answers of a run.

    Attributes:
        written: pairs in the file.
        cut: skipped, because the length limit cut them.
        unreadable: skipped, because their reasoning or calls of tools cannot be told from their content.
        identical: skipped, because they equal the real answer, and a row of equal sides teaches nothing.
    """

    written: int
    cut: int
    unreadable: int
    identical: int = 0


def export_pairs(run: Path, out: Path, iteration: int | None = None) -> ExportedPairs:
    """Writes the pairs of a run to ``out``, JSON lines.

    Prompt and answers are texts where every row is a question with two contents, else lists of messages as OpenAI's API
    writes them, with the tools of a row as JSON text in ``tools``. The chosen side is the whole reference. Reasoning
    and calls are told from the content of a generated answer, unless the reference has its reasoning in its content.

    Generated answers that were cut are skipped: other trainers would add an end token, and a model could recognize them
    by it. Skipped is also what would be written otherwise than the reference: where the reference's own tokens, read as
    the generated ones are, do not give its reasoning and calls.

    Args:
        iteration: only the pairs of this iteration; None for all.

    Raises DataError when there are no pairs to write, and StorageError where ``out`` exists.
    """
    refuse_existing(out)
    examples: dict[str, Example] = {}
    files = _files(run, iteration)
    for example in read_records(run / "data" / "train.jsonl", Example):
        examples |= {turn.id: turn for turn in [example, *turns_of_example(example)]}
    skipped: Counter[str] = Counter()
    written, texts = 0, True
    for example, answer in _answers(run, files, examples):  # a file with texts and lists in a column cannot be loaded
        if isinstance(answer, str):
            skipped[answer] += 1
        else:
            written, texts = written + 1, texts and _is_text(example, answer)
    counts = ExportedPairs(written, skipped["cut"], skipped["unreadable"], skipped["identical"])
    if not written:
        raise _nothing_to_write(run, counts)
    with atomic_file(out) as file:
        for example, answer in _answers(run, files, examples):
            if isinstance(answer, Message):
                file.write(json_line(_row(example, answer, texts)))
    return counts


def _nothing_to_write(run: Path, counts: ExportedPairs) -> DataError:
    if counts.identical:
        return DataError(
            f"{run}: no generated answer can be written: {counts.identical} equal the real one, {counts.cut} were cut, "
            f"{counts.unreadable} cannot be read back; play with data that the model does not know by heart"
        )
    if not counts.unreadable:
        return DataError(
            f"{run}: all {counts.cut} generated answers were cut at the length limit; raise spin.max_new_tokens"
        )
    return DataError(
        f"{run}: of {counts.cut + counts.unreadable} generated answers {counts.cut} were cut, and of the others the "
        "reasoning or calls of tools cannot be told from the content; take the token ids in spin/iterate-N/pairs"
    )


def _files(run: Path, iteration: int | None) -> list[Path]:
    """Files of pairs that were made from the data that the run holds now."""
    numbers = [iteration] if iteration else range(1, iterations_of(read_recipe(run).recipe) + 1)
    places = [run / f"spin/iterate-{number}/pairs/train.jsonl" for number in numbers]
    files = [path for path in places if path.is_file()]
    if not files:
        raise DataError(f"{run} holds no pairs{f' of iteration {iteration}' if iteration else ''}; name a run of SPIN")
    current = outputs_digest(run / "data")
    for path in files:
        if not (path.parent / MANIFEST).is_file() or read_manifest(path.parent).facts.get("data") != current:
            raise DataError(f"{path}: pairs of other data than {run / 'data'} holds; run the recipe again first")
    return files + [later for path in files if (later := path.parents[1] / "later.jsonl").is_file()]


def _answers(
    run: Path, files: Sequence[Path], examples: Mapping[str, Example]
) -> Iterator[tuple[Example, Message | str]]:
    """Every generated answer with its example, or why it is skipped: "identical", "cut" or "unreadable"."""
    for pair in (pair for path in files for pair in read_records(path, Pair)):
        if pair.example_id not in examples:
            known = run / "data" / "train.jsonl"
            raise RunError(f"{known}: lacks the example {pair.example_id!r:.60} of a pair; run the recipe again")
        example = examples[pair.example_id]
        readable = _is_read_back(example, pair)
        for answer in pair.generated:
            if answer.ids == pair.real.ids:
                yield example, "identical"
            elif not answer.complete:
                yield example, "cut"
            else:
                yield example, (_message(example, answer.text) if readable else None) or "unreadable"


# Reading answers ----------------------------------------------------------------------------------------------------


def _is_read_back(example: Example, pair: Pair) -> bool:
    """Whether the text of a reference's tokens gives its reasoning and calls: their marks may be control tokens."""
    reference = example.messages[-1]
    if not (reference.reasoning or reference.tool_calls):
        return True
    read = _message(example, pair.real.text) if pair.real.complete else None
    return read is not None and _parts(read) == _parts(reference)


def _parts(message: Message) -> tuple[object, ...]:
    calls = [(call.name, orjson.loads(call.arguments)) for call in message.tool_calls]
    return message.reasoning.strip(), message.content.strip(), calls


def _message(example: Example, text: str) -> Message | None:
    """An answer to an example as a message; None where its parts cannot be told."""
    apart = split_content(example.answer)[1] is None
    thought, said = split_reasoning(text) if apart else ("", text)
    if said is None:
        return None
    names = _tool_names(example)
    parts = _without_calls(said, names) if names else (said, ())
    return Message("assistant", parts[0], reasoning=thought, tool_calls=parts[1]) if parts else None


def _tool_names(example: Example) -> set[str]:
    called = {call.name for message in example.messages for call in message.tool_calls}
    return called.union(str(orjson.loads(tool)["function"]["name"]) for tool in example.tools)


def _without_calls(text: str, names: set[str]) -> tuple[str, tuple[ToolCall, ...]] | None:
    """Content and calls of a text; None where it holds a call in another form than most models write."""
    calls: list[ToolCall] = []
    for found in _CALL.finditer(text):
        try:
            (call,) = calls_of(FileRow({"call": found[1]}, "an answer"), "call")
        except (DataError, ValueError):
            return None
        calls.append(call)
    content = _CALL.sub("", text).strip() if calls else text
    return None if _looks_like_call(content, names) else (content, tuple(calls))


def _looks_like_call(text: str, names: set[str]) -> bool:
    """Whether a text may hold a call in another form, all of which name a tool beside brackets."""
    if "tool_call>" in text:
        return True
    return any(name in text and (f"{name}(" in text or re.search("[{<]", text)) for name in names)


# Writing rows -------------------------------------------------------------------------------------------------------


def _is_text(example: Example, rejected: Message) -> bool:
    """Whether a row is a question with two contents and nothing else."""
    asked = [message.role for message in example.prompt] == ["user"]
    sides = (*example.messages, rejected)
    return asked and not example.tools and all(one == plain_message(one.role, one.content) for one in sides)


def _row(example: Example, rejected: Message, texts: bool) -> JsonObject:
    if texts:
        return {"prompt": example.prompt[0].content, "chosen": example.answer, "rejected": rejected.content}
    row: JsonObject = {
        "prompt": [_turn(message) for message in example.prompt],
        "chosen": [_turn(example.messages[-1])],
        "rejected": [_turn(rejected)],
    }
    return row | ({"tools": f"[{', '.join(example.tools)}]"} if example.tools else {})


def _turn(message: Message) -> JsonObject:
    """A message as OpenAI's API writes it, without the keys that say nothing."""
    calls = [
        ({"id": call.id} if call.id else {})
        | {"type": "function", "function": {"name": call.name, "arguments": call.arguments}}
        for call in message.tool_calls
    ]
    more = {
        "reasoning_content": message.reasoning,
        "tool_calls": calls,
        "tool_call_id": message.call_id,
        "name": message.name,
    }
    turn: JsonObject = {"role": message.role, "content": message.content}
    turn |= {key: value for key, value in more.items() if value}
    return turn if message.trained else turn | {"train": False}
