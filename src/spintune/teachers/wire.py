"""The answer in the JSON of an endpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import orjson

from spintune.teachers.protocol import Ending, Failure, Outcome, Reply

_ENDINGS: dict[str, Ending] = {"length": "length", "content_filter": "refused"}


def parse_answer(content: bytes, style: Literal["chat", "completions"]) -> Outcome:
    """The answer in a response.

    Every finish reason other than "length" and "content_filter" counts as a stop: servers have names of their own for
    it.
    """
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return Failure("malformed", f"not JSON: {one_line(content.decode(errors='replace'))}")
    match document:
        case {"choices": [{**choice}, *_]}:
            return _parse_choice(choice, document.get("usage"), style)
    return Failure("malformed", f"no choices: {server_says(document)}")


def _parse_choice(choice: Mapping[object, object], usage: object, style: Literal["chat", "completions"]) -> Outcome:
    reason = choice.get("finish_reason")
    ending = _ENDINGS.get(reason, "stop") if isinstance(reason, str) else "stop"
    text, refusal = choice.get("text"), None
    if style == "chat":
        message = choice.get("message")
        text, refusal = (message.get("content"), message.get("refusal")) if isinstance(message, dict) else (None, None)
    if text is None and isinstance(refusal, str):
        text, ending = refusal, "refused"
    if text is None and ending != "stop":  # withheld, or hidden reasoning used up all tokens
        text = ""
    if not isinstance(text, str):
        return Failure("malformed", "an answer without text")
    return Reply(text, ending, _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens"))


def _tokens(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**31 else None


def server_says(body: object) -> str:
    """What a server says about an error, on one line."""
    if isinstance(body, dict):
        error = body.get("error", body)
        body = next((error[k] for k in ("message", "detail") if k in error), "") if isinstance(error, dict) else error
    return one_line("" if body is None else str(body))


def one_line(text: str) -> str:
    """The text on one line of at most 200 characters, without control characters that a terminal would obey."""
    printable = "".join(c if c.isprintable() else " " for c in text[:4000])
    line = " ".join(printable.split())
    return line if len(line) <= 200 else line[:199] + "…"
