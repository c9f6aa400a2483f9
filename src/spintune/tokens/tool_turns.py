"""Conversations with tools: what a template cannot write is refused, and no text of a tool becomes a control token."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TypedDict

from spintune.errors import DataError
from spintune.records import Example
from spintune.tokens.chat_template import ChatTemplate
from spintune.tokens.layout import Control, Turn, TurnExtras, fill
from spintune.tokens.rows import where
from spintune.tokens.tool_calls import check_calls, texts_of_tools


class Settled(TypedDict):
    """The shape and texts of a conversation with tools."""

    shape: tuple[Turn, ...]
    texts: list[str]


def settle_tools(template: ChatTemplate, example: Example, shape: tuple[Turn, ...], texts: list[str]) -> Settled:
    """How a conversation with tools is written.

    Names, descriptions and arguments are written by the template itself. Results of tools have placeholders like any
    content; a template may write them as JSON strings, whose texts are then escaped.

    Raises DataError for what the template cannot write, and for the text of a control token in what it writes itself.
    """
    place = where(example.source)
    check_calls(example)
    if example.tools and not template.writes_tools:
        others = (
            f"; set data.template to one of tokenizer:{', tokenizer:'.join(template.names)}" if template.names else ""
        )
        raise DataError(f"{place}the example has tools, but the chat template of {template.name} writes none{others}")
    if any(message.tool_calls for message in example.messages) and template.call_style is None:
        raise DataError(f"{place}an answer calls tools, but the chat template of {template.name} writes no calls")
    for text in texts_of_tools(example.messages, example.tools):
        _refuse_controls(template, text, place)
    results = [number for number, turn in enumerate(shape) if turn.role == "tool" and not turn.empty]
    if not results:
        return {"shape": shape, "texts": texts}
    real, parts = template.filled(shape, texts, example.tools), template.parts(shape, example.tools)
    for number in results:
        if number not in parts[1::2] and texts[number] not in real:
            raise DataError(f"{place}the chat template of {template.name} writes no results of tools")
    escaped = [json.dumps(t, ensure_ascii=False)[1:-1] if n in results else t for n, t in enumerate(texts)]
    for written in (texts, escaped):
        if fill(parts, written) == real:
            return {"shape": shape, "texts": written}
    for number in results:
        _refuse_controls(template, texts[number], place)
        message = example.messages[number]
        extras = TurnExtras(call_id=message.call_id, name=message.name, text=message.content)
        shape = (*shape[:number], replace(shape[number], empty=True, extras=extras), *shape[number + 1 :])
    return {"shape": shape, "texts": texts}


def _refuse_controls(template: ChatTemplate, text: str, place: str) -> None:
    if found := [piece.text for piece in template.splitter.split(text) if isinstance(piece, Control)]:
        raise DataError(f"{place}a tool, call or result holds the text of the control token {found[0]!r}; change it")
