"""Keys beside a conversation that change what is taught, in every format: system, history, context, tools, labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from spintune.data.file_rows import FileRow, is_no_input
from spintune.data.formats.format import RowConversation
from spintune.data.formats.tools import tools_of
from spintune.data.formats.turns import read_turns, trained
from spintune.data.formats.values import MEDIA, is_blank, refuse_media, switch
from spintune.errors import RowError
from spintune.records import Message

SYSTEM = ("system", "system_prompt", "system_message")
TOOLS = ("tools", "functions")
LABELS = ("label", "kto_tag")
WEIGHTS = ("weight", "train")

BESIDE = frozenset((*SYSTEM, *TOOLS, *LABELS, *WEIGHTS, *MEDIA, "history", "context"))
"""Keys that are read in every format."""

_HISTORY_PAIRS = (
    ("question", "answer"),
    ("user", "assistant"),
    ("human", "assistant"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("query", "response"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("input", "output"),
    ("q", "a"),
)


def complete(
    row: FileRow, messages: Sequence[Message], ignored: Sequence[str] = (), context: str | None = "context"
) -> RowConversation:
    """A conversation with what stands beside it in its row, cut after its last answer to train on.

    ``context`` is None where the format has used that key itself. Raises DataError for a conversation without a prompt
    or an answer, and for a row that needs more than text.
    """
    tools: tuple[str, ...] = ()
    negative = False
    if not BESIDE.isdisjoint(row.values):
        ignored = list(ignored)
        refuse_media(row, MEDIA)
        messages = _with_system(row, _with_context(row, [*_history(row, ignored), *messages], context))
        tools = tuple(tool for key in TOOLS for tool in tools_of(row, key))
        negative = _is_negative(row, ignored)
        if False in [trained(row, key) for key in WEIGHTS]:
            messages = [replace(one, trained=False) if one.role == "assistant" else one for one in messages]
    return _cut(row, tuple(messages), tools, negative, tuple(ignored))


def _cut(
    row: FileRow, messages: tuple[Message, ...], tools: tuple[str, ...], negative: bool, ignored: tuple[str, ...]
) -> RowConversation:
    """Without what follows the last answer to train on: nothing learns from it."""
    last = messages[-1]
    asked = messages[0].role == "user" or (len(messages) > 1 and messages[1].role == "user")
    if asked and last.role == "assistant" and last.trained:  # most rows
        return RowConversation(messages, tools, "negative_label" if negative else "", False, ignored)
    roles = [message.role for message in messages]
    first = next((place for place, role in enumerate(roles) if role in ("user", "tool")), None)
    if first is None and "assistant" in roles:
        raise RowError(
            f"{row.where}: a row without a prompt (no user turn); add one or delete the row", "missing_prompt"
        )
    # an assistant that speaks first answers nothing
    answers = [place for place, role in enumerate(roles) if role == "assistant" and place > (first or 0)]
    if not answers:
        raise RowError(
            f"{row.where}: a row without an answer (its last turn is the {messages[-1].role}'s); "
            "end it with an assistant turn or delete the row",
            "missing_answer",
        )
    to_train = [place for place in answers if messages[place].trained]
    kept = messages[: (to_train or answers)[-1] + 1]
    unused = "negative_label" if negative else "" if to_train else "untrained"
    return RowConversation(kept, tools, unused, len(kept) < len(messages), ignored)


def _with_system(row: FileRow, messages: list[Message]) -> list[Message]:
    found = {key: row.text(key, "a system message") for key in SYSTEM if not is_blank(row.values.get(key))}
    own = {"the system turn": messages[0].content} if messages and messages[0].role == "system" else {}
    if len({*found.values(), *own.values()}) > 1:
        names = " and ".join([*(f"'{row.named(key)}'" for key in found), *own])
        raise RowError(
            f"{row.where}: {names} differ; keep one, or leave one out with columns: {{system: null}}", "two_systems"
        )
    return messages if own or not found else [Message("system", next(iter(found.values()))), *messages]


def _history(row: FileRow, ignored: list[str]) -> list[Message]:
    """Earlier turns: pairs of texts (LLaMA-Factory, ms-swift), objects with a question and an answer, or turns."""
    value = row.values.get("history")
    if is_blank(value):
        return []
    messages: list[Message] = []
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        if isinstance(item, dict) and ("role" in item or "from" in item):
            messages += read_turns(FileRow({"history": [item]}, row.where), "history", ignored)
        else:
            messages += _exchange(row, item, number)
    return messages


def _exchange(row: FileRow, item: object, number: int) -> list[Message]:
    where = f"{row.where}: {row.named('history')} {number}"
    if isinstance(item, list) and len(item) == 2:
        item = dict(zip(("question", "answer"), item, strict=True))
    pair = next((pair for pair in _HISTORY_PAIRS if isinstance(item, dict) and all(key in item for key in pair)), None)
    if pair is None or not isinstance(item, dict):
        raise RowError(f"{where}: not a question and an answer; write it as [question, answer]", "wrong_history")
    turn = FileRow(item, where)
    return [Message("user", turn.text(pair[0], "a question")), Message("assistant", turn.text(pair[1], "an answer"))]


def _with_context(row: FileRow, messages: Sequence[Message], key: str | None) -> list[Message]:
    """Puts the context before the first question, as a reader would meet it."""
    value = row.values.get(key) if key else None
    if is_blank(value) or not key:
        return list(messages)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        text = "\n\n".join(value)
    elif isinstance(value, str):
        text = value
    else:
        raise row.wrong(key, "a text", "name another key, or leave it out, with columns: {context: ...}")
    place = next((place for place, message in enumerate(messages) if message.role == "user"), None)
    if place is None or is_no_input(text):
        return list(messages)
    question = replace(messages[place], content=f"{text}\n\n{messages[place].content}")
    return [*messages[:place], question, *messages[place + 1 :]]


def _is_negative(row: FileRow, ignored: list[str]) -> bool:
    """Whether a label says that the answer is a bad one. A label of another kind says nothing about it."""
    verdicts = []
    for key in LABELS:
        value = row.values.get(key)
        verdict = switch(value)
        if verdict is None and not is_blank(value):
            ignored.append(key)
        elif verdict is not None and key == "label" and str(value).strip().lower() not in ("true", "false"):
            raise row.wrong(
                key,
                "a boolean",
                "write true or false if it says whether the answer is good, else set columns: {label: null}",
            )
        verdicts.append(verdict)
    return False in verdicts
