"""Reads the fields, the options and the right option of a task's row."""

from __future__ import annotations

import string
from collections.abc import Mapping

from spintune.data.file_rows import FileRow, kind_of
from spintune.errors import DataError
from spintune.mixtures.declarations import FieldSection, OptionsSection
from spintune.mixtures.phrasings import OPTIONS
from spintune.text.expressions import first_match, groups_of_matches, without_matches


def read_field(spec: FieldSection, name: str, row: FileRow) -> str:
    """The text of a field. One that is null, blank, or lacks its key is empty.

    Raises DataError for a value that is neither text nor number, and for a pattern or map that does not fit a text.
    """
    value = row.find(spec.from_)
    text = "" if value is None else _text(value, spec.from_, row)
    if not text.strip():
        return (spec.map or {}).get("", "")
    if spec.pattern is not None:
        found = first_match(spec.pattern, text, f"{row.where}: fields.{name}.pattern")
        if found is None:
            raise DataError(
                f"{row.where}: fields.{name}: pattern {spec.pattern!r} is not in '{spec.from_}'; fix row or task"
            )
        text = found
    if spec.remove is not None:
        text = without_matches(spec.remove, text, f"{row.where}: fields.{name}.remove")
    text = text.strip()
    if spec.map is None:
        return text
    if text not in spec.map:
        known = ", ".join(spec.map)
        raise DataError(f"{row.where}: fields.{name}: map has no entry for {text!r:.60}; it has: {known}")
    return spec.map[text]


def missing_fields(keys: Mapping[str, str], row: FileRow) -> dict[str, str]:
    """The fields, with their keys, that the row lacks."""
    absent = object()
    return {name: key for name, key in keys.items() if row.find(key, absent) is absent}


def lacks_options(spec: OptionsSection | None, row: FileRow) -> bool:
    """Whether options are read from the row, and it has none: null, blank or no such key."""
    if spec is None or spec.from_ is None:
        return False
    value = row.find(spec.from_)
    return value is None or (isinstance(value, str) and not value.strip())


def read_choice(
    spec: OptionsSection | None, answer: FieldSection, text: str, row: FileRow
) -> tuple[tuple[str, ...], int | None]:
    """The options of a row, and which of them the answer ``text`` means.

    Raises DataError for options that cannot be read, and an answer that is none of them.
    """
    if spec is None:
        return (), None
    labels, options = _options(spec, row)
    if not options:
        raise DataError(f"{row.where}: no options found in '{spec.from_}'; fix the row, or options in the task")
    if not all(options):
        raise DataError(f"{row.where}: an option in '{spec.from_}' is empty; fix the row, or options in the task")
    places = list(map(str, range(len(options))))
    what, known = {"index": ("places", places), "label": ("labels", labels), "text": ("texts", options)}[answer.is_]
    if text not in known:
        raise DataError(f"{row.where}: the answer {text!r:.60} is none of the options' {what}: {', '.join(known):.120}")
    return tuple(options), known.index(text)


def _options(spec: OptionsSection, row: FileRow) -> tuple[list[str], list[str]]:
    """Labels and texts. Options without labels of their own have A, B, C, ... or, past Z, numbers from 1."""
    if spec.fixed is not None:
        return _labeled([text.strip() for text in spec.fixed])
    key = spec.from_ or ""
    value = row.lookup(key, f"field {OPTIONS}")
    if isinstance(value, list):
        return _labeled([_text(option, key, row).strip() for option in value])
    if spec.each is None:
        raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a list; say in options.each how to split it")
    matches = groups_of_matches(spec.each, _text(value, key, row), f"{row.where}: options.each")
    texts = [(match["text"] or "").strip() for match in matches]
    if matches and "label" in matches[0]:
        return [(match["label"] or "").strip() for match in matches], texts
    return _labeled(texts)


def _labeled(texts: list[str]) -> tuple[list[str], list[str]]:
    letters = string.ascii_uppercase
    count = len(texts)
    labels = list(letters[:count]) if count <= len(letters) else [str(place) for place in range(1, count + 1)]
    return labels, texts


def _text(value: object, key: str, row: FileRow) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a text; name a key that holds text")
