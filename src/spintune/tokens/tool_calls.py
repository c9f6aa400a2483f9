"""Tools and their calls, as chat templates take them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import orjson

from spintune.errors import DataError
from spintune.records import Example, Message, ToolCall
from spintune.tokens.rows import where
from spintune.typed_json import JsonObject


@dataclass(frozen=True)
class CallStyle:
    """How a template wants an answer that calls tools.

    Attributes:
        parsed: arguments as an object instead of JSON text.
    """

    parsed: bool


CALL_STYLES = (CallStyle(parsed=True), CallStyle(parsed=False))

PROBE_CALL = ToolCall("probe_tool", '{"place": "\ue002value"}', "probe0001")
PROBE_TOOL = orjson.dumps(
    {
        "type": "function",
        "function": {
            "name": "probe_tool",
            "description": "Looks at a place.",
            "parameters": {
                "type": "object",
                "properties": {"place": {"type": "string", "description": "Where to look."}},
                "required": ["place"],
            },
        },
    }
).decode()


def with_calls(messages: Sequence[Mapping[str, object]], style: CallStyle) -> list[JsonObject]:
    """Messages with calls and results as a template takes them: each call has an id, and each result its name.

    Ids that the data lack are made up, of nine letters and digits, as Mistral's templates want them. A result without
    an id is that of the first call without a result.
    """
    written: list[JsonObject] = []
    waiting: list[tuple[str, str]] = []
    made_up = 0
    for message in messages:
        plain: JsonObject = {key: value for key, value in message.items() if key != "calls"}
        calls = message.get("calls", ())
        if isinstance(calls, tuple) and calls:
            waiting = [(call.id or f"call{made_up + n:05d}", call.name) for n, call in enumerate(calls, 1)]
            made_up += len(calls)
            plain["tool_calls"] = [_call(call, id, style) for call, (id, _) in zip(calls, waiting, strict=True)]
        if message["role"] == "tool":
            mine = next((call for call in waiting if call[0] == message["tool_call_id"]), (waiting or [("", "")])[0])
            waiting = [call for call in waiting if call != mine]
            plain["tool_call_id"] = message["tool_call_id"] or mine[0]
            plain["name"] = message["name"] or mine[1]
        written.append(plain)
    return written


def _call(call: ToolCall, id: str, style: CallStyle) -> JsonObject:
    arguments = orjson.loads(call.arguments) if style.parsed else call.arguments
    return {"id": id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def texts_of_tools(messages: Sequence[Message], tools: Sequence[str]) -> list[str]:
    """Every text of tools and calls that the template writes itself, so that it could spell a control token."""
    called = [call for message in messages for call in message.tool_calls]
    values = [orjson.loads(tool) for tool in tools] + [_arguments(call) for call in called]
    names = [text for call in called for text in (call.name, call.id)]
    names += [text for message in messages for text in (message.name, message.call_id)]
    return [orjson.dumps(value).decode() for value in values] + names


def _arguments(call: ToolCall) -> object:
    return orjson.loads(call.arguments)


def check_calls(example: Example) -> None:
    """Raises DataError for a call whose arguments are no JSON object."""
    for message in example.messages:
        for call in message.tool_calls:
            try:
                fine = isinstance(_arguments(call), dict)
            except ValueError:
                fine = False
            if not fine:
                raise DataError(f"{where(example.source)}the arguments of the call of {call.name!r} are no JSON object")
