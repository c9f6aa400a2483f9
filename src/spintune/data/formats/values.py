"""Values of rows that several formats read: switches, lists that may be JSON text, pictures that cannot be used."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import orjson

from spintune.data.file_rows import FileRow
from spintune.errors import RowError

REASONING = ("reasoning_content", "thinking", "reasoning")
"""Keys under which data sets write what an assistant thought before it answered."""
_REASONING = frozenset(REASONING)

MEDIA = ("image", "images", "audio", "audios", "video", "videos")
"""Keys of what is no text."""

_ON, _OFF = ("true", "1", "1.0"), ("false", "0", "0.0")
_REASONING_SETTINGS = frozenset((*_ON, *_OFF, "on", "off", "yes", "no", "none", "null", "auto", "default", "enabled",
                                 "disabled", "adaptive", "extended", "unknown", "minimal", "low", "medium", "high",
                                 "xhigh", "max", "concise", "detailed", "summarized", "omitted"))  # fmt: skip
"""Values of a reasoning key that set how a model was asked to think."""
_NUMBER = re.compile(r"[+-]?[0-9][0-9.,_]*")  # of tokens to think, or a share


def is_blank(value: object) -> bool:
    """Whether a value says nothing: null, white space, an empty list or object."""
    return value is None or value == [] or value == {} or (isinstance(value, str) and not value.strip())


def switch(value: object) -> bool | None:
    """A boolean, 0 or 1, or one of them as text (as CSV files hold them); None for any other value."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, int | float | str):
        return None
    text = str(value).strip().lower()
    return True if text in _ON else False if text in _OFF else None


def refuse_media(row: FileRow, keys: Iterable[str]) -> None:
    """Raises DataError when one of the keys holds a picture, sound or film."""
    for key in keys:
        if not is_blank(row.values.get(key)):
            raise media_error(row.where, key, ", or set columns: {images: null} if the text is enough")


def media_error(where: str, name: str, otherwise: str = "") -> RowError:
    """The error about a row with more than text."""
    return RowError(
        f"{where}: '{name}' holds more than text, and models are trained on text alone; "
        f"delete the row or set on_bad_row: drop{otherwise}",
        "more_than_text",
    )


def parsed(row: FileRow, key: str, expected: str) -> object:
    """The value under ``key``; a text is read as JSON. Raises DataError when it is not JSON."""
    value = row.values[key]
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise row.wrong(key, expected, f"it is not valid JSON ({error.msg}, column {error.colno})") from error


def json_text(value: object, where: str) -> str:
    """A value as JSON text, spaced as chat templates space it.

    Raises RowError for a value that JSON has not, such as a time or bytes of a Parquet file; ``where`` begins it.
    """
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        message = f"{where}: cannot be written as JSON ({error}); give it as a text or delete the row"
        raise RowError(message, "wrong_type") from error


def without_nulls(value: object) -> object:
    """A value without the keys that are null. Parquet files give each object the keys of all others, as nulls."""
    if isinstance(value, dict):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list) else value


def reasoning_of(row: FileRow) -> str:
    """The reasoning under one of the keys :data:`REASONING`; "" where there is none.

    A boolean, a number, a setting such as "on" or "high", or an object of them is none. Raises DataError when two keys
    differ, and for other values than text.
    """
    if _REASONING.isdisjoint(row.values):
        return ""
    found = {key: _reasoning_text(row, key) for key in REASONING if not _is_setting(row.values.get(key))}
    if len(set(found.values())) > 1:
        names = " and ".join(f"'{row.named(key)}'" for key in found)
        raise RowError(f"{row.where}: {names} hold different reasoning; keep one of them", "two_reasonings")
    return next(iter(found.values()), "")


def _reasoning_text(row: FileRow, key: str) -> str:
    if isinstance(value := row.values[key], str):
        return value
    raise row.wrong(key, "a text", "give it as one text, or remove the key if it holds settings")


def _is_setting(value: object) -> bool:
    """Whether a value under a reasoning key says nothing, or only how a model was asked to think."""
    if isinstance(value, str):
        text = value.strip()
        return not text or text.lower() in _REASONING_SETTINGS or _NUMBER.fullmatch(text) is not None
    if isinstance(value, dict):
        return all(map(_is_setting, value.values()))
    return isinstance(value, int | float) or is_blank(value)
