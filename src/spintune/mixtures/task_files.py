"""Where the rows of a declared task are: files beside its YAML file or in a folder, built-in files, hub data sets."""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from spintune.data.file_rows import FileRow
from spintune.data.tables import rows_or_errors
from spintune.errors import DataError, RecipeError, RowError
from spintune.mixtures.declarations import BUILTIN, TaskFile

BUILTIN_PREFIX = "builtin:"


@dataclass(frozen=True)
class TaskSource:
    """One task that a file declares: its name, and where its rows are."""

    name: str
    path: str
    cluster: str
    family: str
    split: str = "train"
    columns: tuple[str, ...] | None = None

    def rows(self) -> Iterator[FileRow | RowError]:
        """Its rows, or the errors of those that cannot be read; none for an empty file.

        Raises DataError for a file that cannot be read.
        """
        file = Path(self.path)
        if self.columns is not None:
            if file.suffix.lower() != ".tsv":
                raise DataError(f"{self.path}: columns in a task name those of a .tsv file; leave them out")
            yield from _flan_rows(file, self.columns)
        elif not file.is_file() or not _is_blank(file):
            yield from rows_or_errors(self.path, self.split)


def _is_blank(file: Path) -> bool:
    with file.open("rb") as stream:
        return not any(block.strip() for block in iter(lambda: stream.read(1 << 20), b""))


def builtin_file(folder: Path, name: str, what: str) -> Path:
    """The YAML file in ``folder`` of a name, with or without ``builtin:``. Raises RecipeError, with a suggestion."""
    prefix = BUILTIN_PREFIX if name.startswith(BUILTIN_PREFIX) else ""
    known = {prefix + path.stem: path for path in sorted(folder.glob("*.yaml"))}
    if name not in known:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {close[0]}?" if close else f"use one of: {', '.join(known)}"
        raise RecipeError(f"there is no {what} {name}; {hint}")
    return known[name]


def sources_of(declared: TaskFile, path: Path, folder: Path | None) -> Iterator[TaskSource]:
    """The tasks that a file declares: one, or one for each file that a pattern matches.

    Files are searched beside the YAML file ``path``, unless that is built in, then in ``folder``.
    """
    cluster = declared.cluster or declared.name
    family = declared.family or cluster
    columns = tuple(declared.columns) if declared.columns is not None else None
    folders = ([] if path.is_relative_to(BUILTIN) else [path.parent]) + ([folder] if folder else [])
    if declared.hub is not None:
        yield TaskSource(declared.name, declared.hub, cluster, family, declared.split)
    elif declared.file is not None:
        file = _find(declared.file, path, folders, folder)
        yield TaskSource(declared.name, str(file), cluster, family, columns=columns)
    else:
        for file in _find_all(declared.files or "", declared.subfolder, path, folders):
            kinds = [kind for pattern, kind in declared.groups.items() if fnmatch.fnmatchcase(file.stem, pattern)]
            if declared.groups and not kinds:
                raise RecipeError(f"{path}: groups: no pattern fits {file.name}; add one, with cluster and family")
            names = (kinds[0].cluster, kinds[0].family) if kinds else (cluster, family)
            yield TaskSource(f"{declared.name}/{file.stem}", str(file), *names, columns=columns)


def _find(name: str, path: Path, folders: list[Path], folder: Path | None) -> Path:
    file = Path(name).expanduser()
    if not folders:
        raise RecipeError(f"{path}: file {name} is not part of the package; set folder to where it is")
    for place in folders:
        if (place / file).is_file():
            return place / file
    below = sorted(folder.glob(f"*/{file}")) if folder and not file.is_absolute() else []
    if len(below) == 1:
        return below[0]
    if below:
        found = ", ".join(map(str, below))
        raise DataError(f"{path}: file {name} is there more than once ({found}); set folder to the one you mean")
    raise DataError(f"{path}: file {name} is not in {', '.join(map(str, folders))}; set folder to where it is")


def _find_all(pattern: str, subfolder: str | None, path: Path, folders: list[Path]) -> list[Path]:
    if not folders:
        raise RecipeError(f"{path}: files {pattern} are not part of the package; set folder to where they are")
    for place in folders:
        inner = place / subfolder if subfolder and (place / subfolder).is_dir() else place
        if found := sorted(file for file in inner.glob(pattern) if file.is_file()):
            return found
    raise DataError(f"{path}: no files {pattern} in {', '.join(map(str, folders))}; set folder to where they are")


def _flan_rows(path: Path, names: tuple[str, ...]) -> Iterator[FileRow | RowError]:
    """Tab-separated rows as Flan writes them: no header, no quoting, a literal ``\\n`` for a line break."""
    for number, line in enumerate(_text_lines(path), 1):
        if not line.strip():
            continue
        values = line.split("\t")
        if len(values) != len(names):
            yield RowError(
                f"{path}:{number}: {len(values)} columns where {len(names)} are named ({', '.join(names)}); "
                "fix the row, or columns in the task",
                "wrong_columns",
            )
            continue
        cells = {name: value.replace("\\n", "\n") for name, value in zip(names, values, strict=True)}
        yield FileRow(cells, f"{path}:{number}", number)


def _text_lines(path: Path) -> Iterator[str]:
    """The lines of a file, of which any but ``\\n`` and ``\\r\\n`` are text."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as stream:
            for line in stream:
                yield line.removesuffix("\n").removesuffix("\r") if line.endswith("\n") else line
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error.reason}); save the file as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
