"""Which files a folder or a pattern stands for."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from spintune.data.tables.content import COMPRESSIONS, kind_and_compression
from spintune.data.tables.table import either
from spintune.errors import DataError

KINDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".xlsx", ".parquet", ".arrow", ".feather")
"""Kinds of files that are read, by their suffixes."""

_UNREAD_KINDS = (".txt", ".xls", ".yaml", ".yml", ".zip", ".7z", ".tar", ".tgz", ".md", ".pdf", ".db", ".pkl")
FILE_SUFFIXES = frozenset((*KINDS, *COMPRESSIONS, *_UNREAD_KINDS))
"""Of names that look like hub ids but mean files: a missing ``data/train.csv`` is no hub data set of that name."""

# what describes data sets and models beside their data
_DESCRIPTIONS = {"config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}
_LISTED = 5  # names in a message

Note = Callable[[str], None]


def is_data_file(path: Path) -> bool:
    """Whether a file is of a kind that is read."""
    return kind_and_compression(path.name)[0] in KINDS and path.name not in _DESCRIPTIONS


def is_pattern(path: str) -> bool:
    """Whether a path has wildcards."""
    return glob.has_magic(path)


def files_of_pattern(path: str, note: Note) -> list[Path]:
    """The data files that a pattern matches, by name. Raises DataError when there are none."""
    # Path.glob takes no absolute pattern
    found = sorted(map(Path, glob.glob(str(Path(path).expanduser()), recursive=True)))  # noqa: PTH207
    files = [file for file in found if file.is_file()]
    if not files:
        raise DataError(f"no file matches {path}; check the pattern")
    chosen = _data_files(path, files)
    _tell(path, chosen, files, "", note)
    return chosen


def files_of_folder(path: str, split: str, note: Note) -> list[Path]:
    """The data files in a folder and below, by name; where names tell splits, those of one split.

    Raises DataError when there are none.
    """
    folder = Path(path).expanduser()
    files = [file for file in _files_below(folder) if not _is_hidden(file.relative_to(folder))]
    chosen = _data_files(path, files)
    splits = {file: _split_of(file.relative_to(folder)) for file in chosen}
    known = sorted({name for name in splits.values() if name})
    if known:
        chosen = [file for file in chosen if splits[file] == _SPLIT_OF.get(split, split)]
    if not chosen:
        raise DataError(f"{path}: has no files of split {split}; set split to one of: {', '.join(known)}")
    _tell(path, chosen, files, f" (split {split})" if known else "", note)
    return chosen


def _files_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith((".", "__", "~$")) for part in path.parts)


def _data_files(path: str, files: list[Path]) -> list[Path]:
    chosen = [file for file in files if is_data_file(file)]
    if not chosen:
        names = f" (it has {_names(files)})" if files else ""
        raise DataError(f"{path}: holds no data file{names}; give {either(KINDS)} files")
    return chosen


def _tell(path: str, chosen: list[Path], files: list[Path], which: str, note: Note) -> None:
    others = [file for file in files if file not in set(chosen)]
    if others:
        note(f"{path}: reads {len(chosen):,} of {len(files):,} files{which}, not {_names(others)}")


def _names(files: Iterable[Path]) -> str:
    names = [file.name for file in files]
    return ", ".join(names[:_LISTED]) + (", ..." if len(names) > _LISTED else "")


def _split_of(path: Path) -> str | None:
    """The split that a word in the path names: "test" for ``data/test-00000-of-00001.parquet``."""
    words = re.split(r"[-._ 0-9/]+", path.as_posix().lower())
    return next((_SPLIT_OF[word] for word in reversed(words) if word in _SPLIT_OF), None)
