"""Lists of turns: ``{role, content}``, ``{from, value}`` and their kin, with reasoning, tool calls and weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import cast

from spintune.data.file_rows import FileRow, kind_of
from spintune.data.formats.tools import calls_of
from spintune.data.formats.values import (
    MEDIA,
    REASONING,
    is_blank,
    json_text,
    media_error,
    reasoning_of,
    refuse_media,
    switch,
    without_nulls,
)
from spintune.errors import RowError
from spintune.records import ROLES, Message, Role, ToolCall, plain_message

_ROLES: dict[str, Role] = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    "prompter": "user",
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "ai"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "tool_result"), "tool"),
}
_CALLING = ("function_call", "tool_call")  # roles of turns whose text is a call, as JSON
_PLAIN = {name: role for name, role in _ROLES.items() if role != "tool"}

_COMMON = frozenset(("role", "from", "content", "value", "text", *MEDIA))
_TRAINED = ("train", "weight", "loss")
_WORDS = {"yes": True, "on": True, "no": False, "off": False}
_READ: dict[Role, frozenset[str]] = {
    "system": _COMMON,
    "user": _COMMON,
    "assistant": _COMMON | {*REASONING, *_TRAINED, "tool_calls", "function_call", "train_detail"},
    "tool": _COMMON | {"tool_call_id", "call_id", "name"},
}
_TEXT_PARTS = (None, "text", "input_text", "output_text")
_MEDIA_PARTS = ("image", "audio", "video", "file")


def is_answer(turn: object) -> bool:
    """Whether a turn as a row holds it is the assistant's."""
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else None
    return _ROLES.get(str(role).lower()) == "assistant"


def read_turns(row: FileRow, key: str, ignored: list[str]) -> list[Message]:
    """The turns of the list under ``key``, or of the one object there. Adds keys without a meaning to ``ignored``.

    Raises DataError for an unknown role, a turn without a text, and for what is no text.
    """
    value = row.values.get(key)
    if isinstance(value, dict):
        value = [value]
    elif not isinstance(value, list) or not value:
        next(row.objects(key, "an answer"))  # raises
    messages: list[Message] = []
    for number, item in enumerate(cast("list[object]", value), 1):
        if plain := _plain(item):
            messages.append(plain)
        else:
            turn = FileRow.of(item, f"{row.where}: {row.named(key)} {number}")
            _add(messages, turn, key, ignored)
    return messages


def _plain(item: object) -> Message | None:
    """The message of an ordinary turn; None for one that needs a closer look."""
    if type(item) is not dict or len(item) != 2:
        return None
    name, text = item.get("role"), item.get("content")
    if name is None:
        name, text = item.get("from"), item.get("value")
    role = _PLAIN.get(name) if type(name) is str else None
    return plain_message(role, text) if role and type(text) is str else None


def _add(messages: list[Message], turn: FileRow, key: str, ignored: list[str]) -> None:
    role_key = (
        "role" if "role" in turn.values else "from" if "from" in turn.values or "value" in turn.values else "role"
    )
    name = turn.text(role_key, "a role")
    known = name.strip().lower()
    text_key = _text_key(turn, role_key)
    if known in _CALLING:
        _add_calls(messages, calls_of(turn, text_key), turn)
        return
    role = _ROLES.get(known)
    if role is None:
        raise RowError(f"{turn.where}: unknown role '{name}'; use {', '.join(ROLES)}", "unknown_role")
    refuse_media(turn, MEDIA)
    ignored.extend(
        f"{key}.{other}" for other, value in turn.values.items() if other not in _READ[role] and not is_blank(value)
    )
    if role == "assistant":
        messages.append(_assistant(turn, text_key))
    elif role == "tool":
        call_id = turn.values.get("tool_call_id") or turn.values.get("call_id") or ""
        tool = turn.values.get("name") or ""
        messages.append(Message(role, _result(turn, text_key), call_id=str(call_id), name=str(tool)))
    else:
        messages.append(Message(role, _content(turn, text_key)[0]))


def _text_key(turn: FileRow, role_key: str) -> str:
    default = "content" if role_key == "role" else "value"
    keys = (default, "content", "value", "text")
    return next((key for key in keys if turn.values.get(key) is not None), default)


def _add_calls(messages: list[Message], calls: tuple[ToolCall, ...], turn: FileRow) -> None:
    """Calls belong to the assistant's turn right before them, if there is one: a model writes both in one go."""
    if not calls:
        raise RowError(
            f"{turn.where}: a call without a name and arguments; write it as JSON or delete the row", "missing_call"
        )
    if messages and messages[-1].role == "assistant":
        messages[-1] = replace(messages[-1], tool_calls=messages[-1].tool_calls + calls)
    else:
        messages.append(Message("assistant", "", tool_calls=calls))


def _assistant(turn: FileRow, text_key: str) -> Message:
    if not is_blank(turn.values.get("train_detail")):
        raise RowError(
            f"{turn.where}: 'train_detail' trains parts of a turn; use train: true or false on whole turns",
            "train_detail",
        )
    calls = calls_of(turn, "tool_calls") + calls_of(turn, "function_call")
    has_text = turn.values.get(text_key) is not None
    content, thought = ("", "") if calls and not has_text else _content(turn, text_key)
    switches = [trained(turn, key) for key in _TRAINED]
    return Message(
        "assistant", content, reasoning=reasoning_of(turn) or thought, tool_calls=calls, trained=False not in switches
    )


def trained(row: FileRow, key: str) -> bool | None:
    """What ``train``, ``weight`` or ``loss`` says about training on a turn or row; None where it says nothing.

    Raises DataError for a value that says neither.
    """
    value = row.values.get(key)
    if is_blank(value):
        return None
    found = _WORDS.get(value.strip().lower()) if isinstance(value, str) else None
    if found is None and (found := switch(value)) is None:
        how = " with columns: {weight: null}" if row.number else ""  # which renames keys of rows, not of turns
        raise row.wrong(key, "0 or 1", f"{value!r:.40} cannot be used; write 1 or 0, or leave it out{how}")
    return found


def _result(turn: FileRow, key: str) -> str:
    """What a tool returned: a text or parts of one, or an object or a list as JSON."""
    value = turn.values.get(key)
    if isinstance(value, dict) or (isinstance(value, list) and not all(map(_is_part, value))):
        return json_text(value, f"{turn.where}: {turn.named(key)}")
    return _content(turn, key)[0]


def _is_part(item: object) -> bool:
    if not isinstance(item, dict):
        return isinstance(item, str)
    kind = item.get("type")
    if kind is None:
        return item.keys() >= {"text"} and without_nulls(item) == {"text": item["text"]}
    return isinstance(kind, str) and (kind in _TEXT_PARTS or any(name in kind for name in _MEDIA_PARTS))


def _content(turn: FileRow, key: str) -> tuple[str, str]:
    """The text of a turn, and the reasoning that its parts hold."""
    value = turn.values.get(key)
    if isinstance(value, list) and value:
        parts = list(_parts(turn, key, value))
        return "".join(text for text, _ in parts), "".join(thought for _, thought in parts)
    return turn.text(key, "a text"), ""


def _parts(turn: FileRow, key: str, parts: list[object]) -> Iterator[tuple[str, str]]:
    """Text and reasoning of each part."""
    for number, part in enumerate(parts, 1):
        if isinstance(part, str):
            yield part, ""
            continue
        found = FileRow.of(part, f"{turn.where}: {key} {number}")
        kind = found.values.get("type")
        if isinstance(kind, str) and any(name in kind for name in _MEDIA_PARTS):
            raise media_error(found.where, kind)
        if kind in ("thinking", "reasoning"):
            yield "", found.text(str(kind) if kind in found.values else "text", "reasoning")
        elif kind in _TEXT_PARTS:
            yield found.text("text", "a text"), ""
        else:
            raise RowError(
                f"{found.where}: a part of type {kind if isinstance(kind, str) else kind_of(kind)!r} is no "
                "text; give the turn as one text or delete the row",
                "more_than_text",
            )
