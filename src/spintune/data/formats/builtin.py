"""The formats that come with spintune; the package's docstring lists them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Literal

from spintune.data.file_rows import FileRow, instruction_prompt
from spintune.data.formats.beside import BESIDE, complete
from spintune.data.formats.format import Conversation, Format, RowConversation
from spintune.data.formats.oasst import OASST
from spintune.data.formats.turns import read_turns
from spintune.data.formats.values import REASONING, reasoning_of
from spintune.records import Message, plain_message

_END_OF_TEXT = "<|endoftext|>"

Pairs = tuple[tuple[str, str], ...]

_ALPACA: Pairs = (("instruction", "output"), ("instruction", "response"))
_PROMPT: Pairs = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("query", "response"),
    ("inputs", "targets"),
    ("problem", "solution"),
    ("input", "output"),
)
_QA: Pairs = (("question", "answer"), ("question", "response"))
_CHAT = ("messages",)
_SHAREGPT = ("conversations", "conversation")

_REASONED = BESIDE.union(REASONING)

_PREFERENCE_PROMPTS = ("prompt", "instruction", "question", "query", *_CHAT, *_SHAREGPT)
_SIDES = ("chosen", "rejected")


def drop_reason(conversation: Conversation) -> str | None:
    """Why a well-formed conversation is dropped: "empty_prompt", "empty_answer", or None when it is kept.

    White space alone is empty. One empty user or assistant turn among several is enough, since a model would learn to
    read or write it; an empty system message is a choice and stays. So does an assistant's turn that calls tools.
    """
    empty = set()
    for message in conversation:
        text = message.content
        if (not text or text.isspace()) and not message.tool_calls:
            empty.add(message.role)
    return "empty_prompt" if "user" in empty else "empty_answer" if "assistant" in empty else None


# Pairs of a prompt and an answer ------------------------------------------------------------------------------------


@lru_cache(4096)
def _candidates(pairs: Pairs, keys: tuple[str, ...]) -> Pairs:
    return tuple(pair for pair in pairs if pair[0] in keys and pair[1] in keys)


def _pair_of(row: FileRow, pairs: Pairs) -> tuple[str, str]:
    """The keys of prompt and answer: the first pair with two values, else the one that a row comes closest to."""
    values = row.values
    found = _candidates(pairs, tuple(values))
    if len(found) > 1:
        return next((pair for pair in found if None not in (values[pair[0]], values[pair[1]])), found[0])
    return found[0] if found else max(pairs, key=lambda pair: (pair[0] in values) + (pair[1] in values))


def _with_reasoning(row: FileRow, messages: list[Message]) -> list[Message]:
    if messages[-1].role == "assistant" and (reasoning := reasoning_of(row)):
        last = messages[-1]
        messages[-1] = replace(last, reasoning=last.reasoning or reasoning)
    return messages


def _said(row: FileRow, key: str, role: Literal["user", "assistant"], ignored: list[str]) -> list[Message]:
    """One side of a row: a text, a turn, or a list of turns."""
    value = row.values.get(key)
    if type(value) is str:
        return [plain_message(role, value)]
    if isinstance(value, dict) or (isinstance(value, list) and any(isinstance(item, dict) for item in value)):
        return read_turns(row, key, ignored)
    return [Message(role, row.text(key, "a prompt" if role == "user" else "an answer"))]


def _pair(row: FileRow, pairs: Pairs) -> Iterator[RowConversation]:
    prompt, answer = _pair_of(row, pairs)
    ignored: list[str] = []
    messages = [*_said(row, prompt, "user", ignored), *_said(row, answer, "assistant", ignored)]
    yield complete(row, _with_reasoning(row, messages), ignored)


def _qa(row: FileRow) -> Iterator[RowConversation]:
    return _pair(row, _QA)


def _prompt(row: FileRow) -> Iterator[RowConversation]:
    key = _pair_of(row, _PROMPT)[1]
    value = row.values.get(key)
    if type(value) is str and value.endswith(_END_OF_TEXT):  # written there as the stop token of another tokenizer
        row = FileRow({**row.values, key: value.removesuffix(_END_OF_TEXT)}, row.where, row.number, row.names)
    return _pair(row, _PROMPT)


def _instruction(row: FileRow, task: FileRow) -> str:
    """The user message of an instruction with an optional input.

    A blank instruction stays blank, whatever the input, so that the row counts as one without a prompt.
    """
    instruction, task_input = row.text("instruction", "a prompt"), task.task_input()
    return instruction_prompt(instruction, task_input) if instruction and not instruction.isspace() else instruction


def _alpaca(row: FileRow) -> Iterator[RowConversation]:
    values = row.values
    said = values.get("output")
    if type(said) is str and _REASONED.isdisjoint(values):  # most rows
        instruction = values.get("instruction")
        question = (
            instruction if type(instruction) is str and values.get("input") in (None, "") else _instruction(row, row)
        )
        yield RowConversation((plain_message("user", question), plain_message("assistant", said)))
        return
    answer = "output" if values.get("output") is not None else _pair_of(row, _ALPACA)[1]
    ignored: list[str] = []
    context: str | None = "context"
    task = row
    if "context" in values and isinstance(row.values.get("context"), str) and not row.task_input():
        context, task = None, FileRow({"input": row.values["context"]}, row.where)  # Dolly's name of the input
    messages = [Message("user", _instruction(row, task)), *_said(row, answer, "assistant", ignored)]
    yield complete(row, _with_reasoning(row, messages), ignored, context)


def _seeds(row: FileRow) -> Iterator[RowConversation]:
    for instance in row.objects("instances", "an answer"):
        answer = Message("assistant", instance.text("output", "an answer"))
        yield complete(row, [Message("user", _instruction(row, instance)), answer])


# Conversations ------------------------------------------------------------------------------------------------------


def _turns(*keys: str) -> Callable[[FileRow], Iterator[RowConversation]]:
    def conversations(row: FileRow) -> Iterator[RowConversation]:
        yield conversation_under(row, next((key for key in keys if row.values.get(key) is not None), keys[0]))

    return conversations


def conversation_under(row: FileRow, key: str) -> RowConversation:
    """The conversation whose turns a row has under ``key``. Raises DataError when it is none."""
    ignored: list[str] = []
    return complete(row, read_turns(row, key, ignored), ignored)


def _preference(row: FileRow) -> Iterator[RowConversation]:
    yield preferred(row, "chosen")


def preferred(row: FileRow, side: str) -> RowConversation:
    """The conversation that ends with one side of a preference row, of texts or of lists of messages.

    Without a prompt of its own, a side is the whole conversation.
    """
    ignored: list[str] = []
    answer = _said(row, side, "assistant", ignored)
    key = next((key for key in _PREFERENCE_PROMPTS if row.values.get(key) is not None), None)
    alone = answer[0].role == "assistant"
    if key is None:
        if alone:
            row.text("prompt", "a prompt")  # raises
        before: list[Message] = []
    elif key == "instruction":
        before = [Message("user", _instruction(row, row))]
    else:
        before = _said(row, key, "user", ignored)
    while before and before[-1].role == "assistant" and key != "prompt":
        before.pop()  # the whole conversation, with the better answer
    # some preference data repeats the prompt in both sides, some gives only its last question as a text
    repeated = answer[: len(before)] == before or (not alone and isinstance(row.values.get(key or ""), str))
    return complete(row, answer if repeated else [*before, *answer], ignored)


# In the order of recognition --------------------------------------------------------------------------------------


_PREFERENCES = (*((prompt, *_SIDES) for prompt in _PREFERENCE_PROMPTS), _SIDES)

BUILTIN_FORMATS = (
    Format("chat", (_CHAT,), _turns(*_CHAT), BESIDE),
    Format("sharegpt", tuple((key,) for key in _SHAREGPT), _turns(*_SHAREGPT), BESIDE),
    Format("seeds", (("instruction", "instances"),), _seeds, BESIDE),
    Format("alpaca", _ALPACA, _alpaca, _REASONED | {"input"}),
    Format("prompt", _PROMPT, _prompt, _REASONED),
    Format("qa", _QA, _qa, _REASONED),
    Format("spin", (("real", "generated"),), _turns("real"), BESIDE),
    OASST,
    Format("preference", _PREFERENCES, _preference, BESIDE | {"input"}),
)
