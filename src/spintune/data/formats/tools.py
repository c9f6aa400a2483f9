"""Tools and calls of them, as the data of several projects writes them.

Tools come as a list or as its JSON text, each wrapped as in OpenAI's API (``{"type": "function", "function": {...}}``)
or bare (``{"name", "description", "parameters"}``). A call comes as ``{"function": {"name", "arguments"}}`` or
``{"name", "arguments"}``, with the arguments as an object or as JSON text. A text stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from spintune.data.file_rows import FileRow
from spintune.data.formats.values import is_blank, json_text, parsed, without_nulls
from spintune.records import ToolCall


def tools_of(row: FileRow, key: str) -> tuple[str, ...]:
    """The tools under ``key``, each as the JSON text of OpenAI's description. Raises DataError for what is none."""
    if is_blank(row.values.get(key)):
        return ()
    return tuple(json_text(_tool(tool), tool.where) for tool in _objects(row, key, "a list of tools"))


def calls_of(row: FileRow, key: str) -> tuple[ToolCall, ...]:
    """The calls under ``key``: a list of them, one, or the JSON text of either. Raises DataError for what is none."""
    if is_blank(row.values.get(key)):
        return ()
    return tuple(map(_call, _objects(row, key, "tool calls")))


def _objects(row: FileRow, key: str, expected: str) -> Iterator[FileRow]:
    value = parsed(row, key, expected)
    for number, item in enumerate(value if isinstance(value, list) else [value], 1):
        found = FileRow({key: item}, row.where)
        yield FileRow.of(parsed(found, key, expected), f"{row.where}: {row.named(key)} {number}")


def _tool(row: FileRow) -> object:
    function = row.values.get("function")
    bare = FileRow.of(function, f"{row.where}: function") if function is not None else row
    bare.text("name", "a name")
    return without_nulls({"type": "function", "function": bare.values} if bare is row else row.values)


def _call(row: FileRow) -> ToolCall:
    function = row.values.get("function")
    inner = FileRow.of(function, f"{row.where}: function") if isinstance(function, dict) else row
    identity = row.values.get("id")
    return ToolCall(inner.text("name", "a name"), _arguments(inner), identity if isinstance(identity, str) else "")


def _arguments(row: FileRow) -> str:
    key = "parameters" if row.values.get("arguments") is None else "arguments"
    value = row.values.get(key)
    if is_blank(value):
        return "{}"
    if isinstance(value, dict):
        return json_text(without_nulls(value), f"{row.where}: {row.named(key)}")
    if isinstance(value, str) and isinstance(parsed(row, key, "a JSON object"), dict):
        return value
    raise row.wrong(key, "a JSON object", "write the arguments as an object with keys")
