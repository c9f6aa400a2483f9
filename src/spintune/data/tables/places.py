"""Which files a folder or a pattern stands for."""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
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
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*")  # and a digest, in files of older versions of the hub
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

    Raises DataError when there are none, or those of several splits or folders that the split may mean.
    """
    folder = Path(path).expanduser()
    files = [file for file in _files_below(folder) if not _is_hidden(file.relative_to(folder))]
    chosen = _data_files(path, files)
    splits = {file: found for file in chosen if (found := _split_of(file.relative_to(folder)))}
    if splits:
        chosen = _files_of_split(path, split, splits)
    _tell(path, chosen, files, f" (split {split})" if splits else "", note)
    return chosen


def _files_of_split(path: str, split: str, splits: dict[Path, _Split]) -> list[Path]:
    """The files of one split, in one folder: those of exactly this name, else those whose name holds such a word."""
    name = "_".join(_words(split))
    chosen = {file: found for file, found in splits.items() if found.name == name} or {
        file: found for file, found in splits.items() if found.meaning == _SPLIT_OF.get(split)
    }
    names = sorted({found.name for found in (chosen or splits).values()})
    if not chosen:
        raise DataError(f"{path}: has no files of split {split}; set split to one of: {', '.join(names)}")
    if len(names) > 1:
        raise DataError(
            f"{path}: has several splits {split}; set split to one of: {', '.join(names)}, or give a pattern"
        )
    folders = sorted({found.folder for found in chosen.values()})
    if len(folders) > 1:
        listed = ", ".join(folders[:_LISTED]) + (", ..." if len(folders) > _LISTED else "")
        raise DataError(f"{path}: has split {split} in several folders ({listed}); give one of them, or a pattern")
    return list(chosen)


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


@dataclass(frozen=True)
class _Split:
    """Which split a path tells: "train_sft" in "data", a kind of "train", for ``data/train_sft-00000-of-00002.csv``."""

    folder: str
    name: str
    meaning: str


def _split_of(path: Path) -> _Split | None:
    """The split that the last word of this kind in a path names, in the file's name or a folder's."""
    name = path.name.lower().removesuffix("".join(kind_and_compression(path.name)))
    for place, part in reversed([*enumerate([*path.parts[:-1], _SHARD.sub("", name)])]):
        words = _words(part)
        if word := next((word for word in reversed(words) if word in _SPLIT_OF), None):
            return _Split("/".join(path.parts[:place]) or ".", "_".join(words), _SPLIT_OF[word])
    return None


def _words(name: str) -> list[str]:
    return [word for word in re.split(r"[-._ 0-9]+", name.lower()) if word]
