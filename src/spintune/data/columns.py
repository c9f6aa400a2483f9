"""A recipe's ``columns``: which keys of a file hold what, where no format foresees them.

``columns: {prompt: customer_message, response: agent_reply, system: meta.persona}`` reads rows with these keys. A dot
leads into an object. ``null`` in place of a key says that a file's key of that meaning is not to be read, for a file
whose ``label`` is a topic and not a verdict.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from spintune.data.file_rows import FileRow
from spintune.data.formats.beside import BESIDE, LABELS, SYSTEM, TOOLS, WEIGHTS
from spintune.data.formats.format import Format
from spintune.data.formats.values import MEDIA, REASONING
from spintune.errors import DataError, RowError

Columns = Mapping[str, str | None]

_MAIN = {"prompt": "prompt", "response": "prompt", "messages": "chat", "chosen": "preference", "rejected": "preference"}
"""What makes a conversation, and the format that reads it."""

_BESIDE: dict[str, tuple[str, ...]] = {
    "system": SYSTEM,
    "history": ("history",),
    "context": ("context",),
    "tools": TOOLS,
    "reasoning": REASONING,
    "label": LABELS,
    "weight": WEIGHTS,
    "images": MEDIA,
}
"""What stands beside it, with the keys that are read as such without a mapping."""

OTHER_NAMES = {
    "prompt": ("query", "question", "instruction", "inputs", "problem", "input"),
    "response": ("completion", "answer", "output", "targets", "solution"),
}
"""What formats call a prompt and a response, for a mapping that names only one of the two."""

_KNOWN = BESIDE.union(REASONING, _MAIN)

TARGETS = (*_MAIN, *_BESIDE)
"""What a column can be mapped to."""


def problem_of(columns: Columns) -> str | None:
    """What is wrong with a mapping, or None."""
    for target, key in columns.items():
        if target not in TARGETS:
            close = difflib.get_close_matches(target, TARGETS, 1)
            advice = f"did you mean {close[0]}?" if close else f"use {', '.join(TARGETS)}"
            return f"columns cannot map to '{target}'; {advice}"
        if key is None and target in _MAIN:
            return f"columns.{target} is null; name the key that holds it, or leave it out"
        if key is not None and target == "images":
            return "columns.images can only be null: pictures and sound cannot be trained"
    main = [target for target in columns if target in _MAIN]
    if "messages" in main and len(main) > 1:
        other = next(target for target in main if target != "messages")
        return f"columns maps messages and {other}; messages hold the whole conversation, so map only one of them"
    if "response" in main and {"chosen", "rejected"} & set(main):
        return "columns maps response and chosen or rejected; map either"
    return None


def roots_of(columns: Columns) -> frozenset[str]:
    """The keys of a row that a mapping may read: each as it is, and what comes before its first dot."""
    return frozenset(part for key in columns.values() if key for part in (key, key.split(".")[0]))


@dataclass(frozen=True)
class ColumnMap:
    """A checked mapping, ready for rows."""

    columns: Columns

    @cached_property
    def format(self) -> str | None:
        """The format that the mapping decides; None when it only names what stands beside a conversation."""
        formats = [_MAIN[target] for target in self.columns if target in _MAIN]
        return "preference" if "preference" in formats else formats[0] if formats else None

    def row(self, row: FileRow) -> FileRow:
        """A row with the names that formats know. Raises DataError when a key is missing that holds a conversation."""
        values = {key: row.values[key] for key in row.values if self._keeps(key)}
        names: dict[str, str] = {}
        for target, key in self.columns.items():
            if key is None:
                continue
            name = _BESIDE[target][0] if target in _BESIDE else target
            value = row.lookup(key, f"columns.{target}") if target in _MAIN else row.find(key)
            if value is not None or target in _MAIN:
                values[name] = value
                names[name] = key
        for target, keys in self._left_open(row.values).items():
            if len(keys) == 1:
                values[target], names[target] = row.values[keys[0]], keys[0]
            elif self.format == "prompt":
                listed = ", ".join(map(str, row.values))
                reason = "missing_prompt" if target == "prompt" else "missing_answer"
                raise RowError(f"{row.where}: columns name no {target}; the row has: {listed}", reason)
        return FileRow(values, row.where, row.number, names)

    def keys(self, format: Format) -> frozenset[str] | None:
        """The keys of a file's rows that may be read; None when the format does not say."""
        return None if format.all_keys is None else format.all_keys.union(roots_of(self.columns), *self._open.values())

    def ignored(self, keys: Collection[str], format: Format) -> list[str]:
        """Keys of a row that neither the mapping nor the format has a use for."""
        kept = [key for key in keys if self._keeps(key)]
        names = [_BESIDE[target][0] if target in _BESIDE else target for target, key in self.columns.items() if key]
        unused = format.ignored([*kept, *names])
        found = {key for others in self._left_open(keys).values() if len(others) == 1 for key in others}
        used = self._taken | found
        return [key for key in keys if key in unused or (key not in kept and key not in used)]

    def check(self, path: str, mapped: Collection[str], keys: Iterable[str]) -> None:
        """Raises DataError when a key was in no row; ``mapped`` are the names that had a value, ``keys`` those seen."""
        known = sorted(keys)
        for target, key in self.columns.items():
            name = _BESIDE[target][0] if target in _BESIDE else target
            if key is not None and name not in mapped and key not in known:
                close = difflib.get_close_matches(key, known, 1)
                advice = f"did you mean {close[0]}?" if close else f"the rows have: {', '.join(known)}"
                raise DataError(f"{path}: no row has '{key}' for columns.{target}; {advice}")

    @cached_property
    def _open(self) -> dict[str, tuple[str, ...]]:
        """The other names of a prompt and a response that the mapping does not name."""
        targets = {"prompt": ("prompt", "response"), "preference": ("prompt",)}.get(self.format or "", ())
        mapped = self.columns.values()
        return {
            target: tuple(key for key in OTHER_NAMES[target] if key not in mapped)
            for target in targets
            if target not in self.columns
        }

    def _left_open(self, keys: Collection[str]) -> dict[str, list[str]]:
        """The keys of a row that may be the prompt or the response, where neither the mapping nor the row names one."""
        return {
            target: [key for key in names if key in keys] for target, names in self._open.items() if target not in keys
        }

    @cached_property
    def _taken(self) -> frozenset[str]:
        """Keys whose own meaning the mapping replaces."""
        taken = {key for target in self.columns for key in _BESIDE.get(target, (target,))}
        return frozenset(taken.union(name.split(".")[0] for name in self.columns.values() if name is not None))

    def _keeps(self, key: str) -> bool:
        """Whether a key of the row keeps its meaning."""
        return key not in self._taken and (self.format is None or key in _KNOWN)
