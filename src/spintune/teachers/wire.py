"""The answer in the JSON of an endpoint, or the error that a server put into a response of status 200."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import orjson

from spintune.teachers.protocol import Ending, Failure, Outcome, Reply
from spintune.teachers.reasoning import without_reasoning

Style = Literal["chat", "completions"]

UNFINISHED = "unfinished"
"""Reason of an answer whose end is not known to be one."""

ONLY_REASONING = "only_reasoning"
"""Reason of an answer that ended in its thought, but not for its length."""

_ENDINGS: dict[Ending, Sequence[str]] = {
    "stop": ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete"),
    "length": ("length", "max_tokens", "max_output_tokens", "model_length", "model_context_window_exceeded"),
    "refused": (
        *("content_filter", "refusal", "safety", "recitation", "blocklist", "prohibited_content", "spii", "sensitive"),
        "error_toxic",
    ),
}
_ENDING_OF = {name: ending for ending, names in _ENDINGS.items() for name in names}
# the server broke off, and may answer the next time
_BROKE_OFF = ("error", "abort", "aborted", "cancelled", "network_error", "insufficient_system_resource", "timeout")


_STATUS_OF_NAME = {
    **dict.fromkeys(("invalid_api_key", "authentication_error", "unauthenticated", "unauthorized"), 401),
    **dict.fromkeys(("insufficient_balance", "payment_required", "billing_error"), 402),
    **dict.fromkeys(("permission_error", "permission_denied", "forbidden"), 403),
    **dict.fromkeys(("model_not_found", "not_found_error", "not_found"), 404),
    **dict.fromkeys(("rate_limit_exceeded", "rate_limit_error", "resource_exhausted", "insufficient_quota"), 429),
    **dict.fromkeys(
        (
            *("invalid_request_error", "invalid_argument", "bad_request", "badrequesterror", "unsupported_parameter"),
            *("unsupported_value", "context_length_exceeded", "content_filter", "failed_precondition"),
        ),
        400,
    ),
}
_UNKNOWN_ERROR = 500


@dataclass(frozen=True)
class HiddenError:
    """An error in the body of a response of status 200, with the status that it stands for.

    Attributes:
        charged: whether an answer had begun, which the provider may charge.
    """

    status: int
    error: object
    charged: bool


def hidden_error(content: bytes) -> HiddenError | None:
    """The error in the body of a response whose own status is 200; None if it holds none.

    A gateway that has sent its status already has no other place for what went wrong upstream. An error without a code
    that says otherwise counts as one of the server, which may pass.
    """
    try:
        document = orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
    if isinstance(document, list):
        document = document[0] if document else None
    match document:
        case {"choices": [{"error": error}, *_]} if error:
            return HiddenError(_status(error), error, charged=True)
        case {"choices": [{"finish_reason": str(reason)}, *_]} if reason.lower() in _BROKE_OFF:
            return HiddenError(503, {"message": f"finish_reason {reason!r}"}, charged=True)
        case {"choices": [_, *_]}:
            return None
        case {"error": error} if error:
            return HiddenError(_status(error), error, charged=False)
        case {"object": "error"} | {"type": "error"}:
            return HiddenError(_status(document), document, charged=False)
    return None


def _status(error: object) -> int:
    """The HTTP status that an error stands for, by its number or its name."""
    if not isinstance(error, dict):
        return _UNKNOWN_ERROR
    for key in ("code", "status", "status_code", "http_status", "type"):
        value = error.get(key)
        if str(value).isdecimal() and 400 <= int(str(value)) < 600:
            return int(str(value))
        if isinstance(value, str) and (known := _STATUS_OF_NAME.get(value.lower())):
            return known
    return _UNKNOWN_ERROR


def parse_answer(content: bytes, style: Style, stop: Sequence[str] = ()) -> Outcome:
    """The answer in a response, without its thought, and cut where a stop text begins if the server did not do so."""
    try:
        document = orjson.loads(content.removeprefix(b"\xef\xbb\xbf"))
    except orjson.JSONDecodeError:
        return Failure("malformed", f"not JSON: {one_line(content.decode(errors='replace'))}")
    match document:
        case {"choices": [{**choice}, *_]}:
            return _cut(_parse_choice(choice, document.get("usage"), style), stop)
    return Failure("malformed", f"no choices: {server_says(document)}")


def _parse_choice(choice: Mapping[object, object], usage: object, style: Style) -> Outcome:
    reason = choice.get("finish_reason")
    ending = _ENDING_OF.get(reason.lower()) if isinstance(reason, str) else None
    message = choice.get("message") if style == "chat" else {"content": choice.get("text")}
    if not isinstance(message, dict):
        return Failure("malformed", "an answer without text")
    text, reasoning = _parts(message.get("content"))
    reasoning = "\n\n".join(
        filter(None, [_text(message, "reasoning_content") or _text(message, "reasoning"), reasoning])
    )
    if not text and (refusal := _text(message, "refusal")):
        text, ending = refusal, "refused"
    if text is None and not reasoning and ending in ("stop", None):
        return Failure("malformed", "an answer without text")
    if ending is None:
        return Failure(UNFINISHED, f"finish_reason {reason!r}")
    counts = _tokens(usage, "prompt_tokens"), _tokens(usage, "completion_tokens")
    if reasoning:
        text = (text or "").lstrip()  # the line breaks between thought and answer
    reply = without_reasoning(Reply(text or "", ending, *counts, reasoning=reasoning))
    if ending == "stop" and isinstance(reply, Reply) and reply.reasoning and not reply.text.strip():
        return Failure(ONLY_REASONING, "it stopped in its thought, before an answer")
    return reply


def _parts(content: object) -> tuple[str | None, str]:
    """The text and the thought of a message's content, which is a text or a list of parts."""
    if not isinstance(content, list):
        return (content if isinstance(content, str) else None), ""
    parts = [part for part in content if isinstance(part, dict)]
    if len(parts) < len(content):
        return None, ""
    thoughts = [_thought(part["thinking"]) for part in parts if "thinking" in part]
    return "".join(_text(part, "text") for part in parts), "\n\n".join(filter(None, thoughts))


def _thought(content: object) -> str:
    """A thought, which is a text or a list of parts with texts."""
    if isinstance(content, list):
        return "".join(_text(part, "text") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def _text(values: Mapping[object, object], name: str) -> str:
    value = values.get(name)
    return value if isinstance(value, str) else ""


def _cut(outcome: Outcome, stop: Sequence[str]) -> Outcome:
    """The outcome as if the server had stopped at the first stop text."""
    if not isinstance(outcome, Reply) or outcome.ending == "refused":
        return outcome
    found = [at for text in stop if (at := outcome.text.find(text)) >= 0]
    return replace(outcome, text=outcome.text[: min(found)], ending="stop") if found else outcome


def _tokens(usage: object, name: str) -> int | None:
    count = usage.get(name) if isinstance(usage, dict) else None
    return count if type(count) is int and 0 <= count < 2**31 else None


def server_says(body: object) -> str:
    """What a server says about an error, on one line, with what the server behind it said."""
    if isinstance(body, list) and body:
        body = body[0]
    if isinstance(body, dict):
        error = body.get("error", body)
        body = next((error[k] for k in ("message", "detail") if k in error), "") if isinstance(error, dict) else error
        match error:
            case {"metadata": {"raw": str(raw)}}:
                body = f"{body}: {raw}"
    return one_line("" if body is None else str(body))


def one_line(text: str) -> str:
    """The text on one line of at most 200 characters, without control characters that a terminal would obey."""
    printable = "".join(c if c.isprintable() else " " for c in text[:4000])
    line = " ".join(printable.split())
    return line if len(line) <= 200 else line[:199] + "…"
