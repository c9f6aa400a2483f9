"""Rows of declared tasks: where their files are, and how a field, an answer and options are read."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from spintune.data.file_rows import FileRow, kind_of
from spintune.data.sources import Source, rows_of
from spintune.errors import DataError, RecipeError
from spintune.mixtures.declarations import (
    BUILTIN,
    FieldSection,
    OptionsSection,
    TaskFile,
)
from spintune.mixtures.phrasings import OPTIONS

BUILTIN_PREFIX = "builtin:"


_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def read_builtin(folder: Path, name: str, what: str) -> Path:
    known = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    stem = name.removeprefix(BUILTIN_PREFIX)
    if stem in known:
        return known[stem]
    close = difflib.get_close_matches(stem, known, 1)
    hint = (
        f"did you mean {BUILTIN_PREFIX}{close[0]}?"
        if close
        else "use one of: " + ", ".join(BUILTIN_PREFIX + n for n in known)
    )
    raise RecipeError(f"there is no built-in {what} {name}; {hint}")


def sources_of(declared: TaskFile, path: Path, folder: Path | None) -> Iterator[tuple[str, Source, str, str]]:
    """Name, source, cluster and family of each task that a file declares."""
    cluster = declared.cluster or declared.name
    family = declared.family or cluster
    own = [] if path.is_relative_to(BUILTIN) else [path.parent]
    if declared.hub is not None:
        yield declared.name, Source(declared.hub, split=declared.split), cluster, family
    elif declared.file is not None:
        yield declared.name, Source(str(_find(declared.file, path, own, folder))), cluster, family
    else:
        pattern = declared.files or ""
        for file in _find_all(pattern, declared.subfolder, path, own, folder):
            matches = [kind for glob, kind in declared.groups.items() if fnmatch.fnmatchcase(file.stem, glob)]
            if declared.groups and not matches:
                raise RecipeError(f"{path}: groups: no pattern fits {file.name}; add one, with cluster and family")
            kind = matches[0] if matches else None
            yield (
                f"{declared.name}/{file.stem}",
                Source(str(file)),
                kind.cluster if kind else cluster,
                kind.family if kind else family,
            )


def _find(name: str, path: Path, own: list[Path], folder: Path | None) -> Path:
    wanted = Path(name).expanduser()
    places = [*own, *([folder] if folder else [])]
    if not places:
        raise RecipeError(f"{path}: file {name} is to be given by you; set folder to where it is")
    for place in places:
        if (place / wanted).is_file():
            return place / wanted
    below = sorted(folder.glob(f"*/{wanted}")) if folder and not wanted.is_absolute() else []
    if len(below) == 1:
        return below[0]
    where = ", ".join(map(str, places))
    if below:
        found = ", ".join(map(str, below))
        raise DataError(f"{path}: file {name} is there more than once ({found}); set folder to the one that is meant")
    raise DataError(f"{path}: file {name} is not in {where}; set folder to where it is")


def _find_all(pattern: str, subfolder: str | None, path: Path, own: list[Path], folder: Path | None) -> list[Path]:
    places = [*own, *([folder] if folder else [])]
    if not places:
        raise RecipeError(f"{path}: files {pattern} are to be given by you; set folder to where they are")
    for place in places:
        inner = place / subfolder if subfolder and (place / subfolder).is_dir() else place
        if found := sorted(file for file in inner.glob(pattern) if file.is_file()):
            return found
    where = ", ".join(map(str, places))
    raise DataError(f"{path}: no files {pattern} in {where}; set folder to where they are")


def _rows(source: Source, columns: list[str] | None) -> Iterator[tuple[int, FileRow]]:
    if Path(source.path).suffix.lower() != ".tsv":
        yield from _numbered(rows_of(source))
        return
    yield from _tsv(Path(source.path), columns)


def _numbered(rows: Iterator[FileRow]) -> Iterator[tuple[int, FileRow]]:
    """Rows with their line, which ``where`` ends in."""
    for count, row in enumerate(rows, 1):
        number = re.search(r"(\d+)\Z", row.where)
        yield int(number[1]) if number else count, row


def _tsv(path: Path, columns: list[str] | None) -> Iterator[tuple[int, FileRow]]:
    """Tab-separated rows as the Flan collection writes them: no quoting, a literal ``\\n`` for a line break."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    names = columns
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        if not line.strip():
            continue
        values = line.split("\t")
        if names is None:
            names = values
            continue
        if len(values) != len(names):
            raise DataError(
                f"{path}:{number}: {len(values)} columns where {len(names)} are named ({', '.join(names)}); "
                "mend the row, or columns in the task"
            )
        cells = {name: value.replace("\\n", "\n") for name, value in zip(names, values, strict=True)}
        yield number, FileRow(cells, f"{path}:{number}")


def rows_or_none(source: Source, declared: TaskFile) -> Iterator[tuple[int, FileRow]]:
    """The rows; none for an empty file, of which the caller says which task it leaves without rows."""
    if not Path(source.path).is_file() or Path(source.path).read_bytes().strip():
        yield from _rows(source, declared.columns)


def read_field(spec: FieldSection, name: str, row: FileRow) -> str:
    text = _text(row.lookup(spec.from_, f"field {name}"), spec.from_, row)
    if spec.pattern is not None:
        match = re.search(spec.pattern, text)
        if match is None:
            raise DataError(
                f"{row.where}: fields.{name}: pattern {spec.pattern!r} is not in '{spec.from_}'; mend row or task"
            )
        text = (match[1] if match.re.groups else match[0]) or ""
    if spec.remove is not None:
        text = re.sub(spec.remove, "", text)
    text = text.strip()
    if spec.map is not None:
        if text not in spec.map:
            known = ", ".join(spec.map)
            raise DataError(f"{row.where}: fields.{name}: map has no entry for {text!r:.60}; it has: {known}")
        text = spec.map[text]
    return text


def _text(value: Any, key: str, row: FileRow) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a text; name a key that holds text")


def read_choice(
    spec: OptionsSection | None, answer: FieldSection, text: str, row: FileRow
) -> tuple[tuple[str, ...], int | None]:
    """The options of a row, and which of them the answer means."""
    if spec is None:
        return (), None
    labels, options = _options(spec, row)
    if not options:
        raise DataError(f"{row.where}: no options found in '{spec.from_}'; mend the row, or options in the task")
    if not all(options):
        raise DataError(f"{row.where}: an option in '{spec.from_}' is empty; mend the row, or options in the task")
    if answer.is_ == "index":
        known = [str(place) for place in range(len(options))]
    elif answer.is_ == "label":
        known = labels
    else:
        known = options
    if text not in known:
        raise DataError(
            f"{row.where}: the answer {text!r:.60} is none of the options' "
            f"{ {'index': 'places', 'label': 'labels', 'text': 'texts'}[answer.is_] }: {', '.join(known):.120}"
        )
    return tuple(options), known.index(text)


def _options(spec: OptionsSection, row: FileRow) -> tuple[list[str], list[str]]:
    """Labels and texts. Options without labels of their own have A, B, C, ... or, past Z, numbers from 1."""
    if spec.fixed is not None:
        texts = [text.strip() for text in spec.fixed]
        return _position_labels(len(texts)), texts
    key = spec.from_ or ""
    value = row.lookup(key, f"field {OPTIONS}")
    if isinstance(value, list):
        texts = [_text(option, key, row).strip() for option in value]
        return _position_labels(len(texts)), texts
    if spec.each is None:
        raise DataError(f"{row.where}: '{key}' is {kind_of(value)}, not a list; say in options.each how to cut it up")
    matches = [match.groupdict() for match in re.finditer(spec.each, _text(value, key, row))]
    texts = [(match["text"] or "").strip() for match in matches]
    if matches and "label" in matches[0]:
        return [(match["label"] or "").strip() for match in matches], texts
    return _position_labels(len(texts)), texts


def _position_labels(count: int) -> list[str]:
    return list(_LETTERS[:count]) if count <= len(_LETTERS) else [str(place + 1) for place in range(count)]
