"""Data sets of the Hugging Face hub, and folders that the datasets library saved."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING

from spintune.data.tables.arrow_rows import dataset_table, stream_table
from spintune.data.tables.table import RowTable, first_line
from spintune.errors import DataError
from spintune.hub import only_if_reachable

if TYPE_CHECKING:
    import datasets

HUB_ID = re.compile(r"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(@(?P<revision>[\w./-]+))?")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://.*", re.DOTALL)
_ON_THE_HUB = re.compile(r"(?:hf://|https?://(?:www\.)?(?:huggingface\.co|hf\.co)/)datasets/(?P<name>[^/@]+/[^/@?#]+)")
_CONFIGS = re.compile(r"available configs: \[(?P<names>[^\[\]]*+)\]|Available: \[(?P<known>[^\[\]]*+)\]")
_SAVED = ("state.json", "dataset_dict.json")


def refuse_address(path: str) -> None:
    """Raises DataError for a URL, with what to give in its place."""
    if not _ADDRESS.fullmatch(path):
        return
    if found := _ON_THE_HUB.match(path):
        raise DataError(f"{path}: give a hub data set by its name, {found['name']}, or download the file and give that")
    raise DataError(f"{path}: data is not read from addresses; download the file and give its path")


def hub_table(path: str, split: str, config: str | None, stream: bool = False) -> RowTable:
    """A data set by its hub id, ``owner/name[@revision]``. Raises DataError when the hub does not give it.

    Args:
        stream: whether its files are read where they are, a piece at a time, and not downloaded before.
    """
    import datasets

    found = HUB_ID.fullmatch(path)
    name, revision = (found["name"], found["revision"]) if found else (path, None)
    try:
        with only_if_reachable() as unreachable:
            data = datasets.load_dataset(name, config, revision=revision, split=split, streaming=stream)
            columns = _columns(data) if stream else ()
    except Exception as error:  # a boundary: the hub client raises dozens of unrelated types
        if configs := _CONFIGS.search(str(error)):
            names = (configs["names"] or configs["known"]).replace("'", "")
            wrong = "has several configurations" if config is None else f"has no configuration {config}"
            raise DataError(f"{path}: the data set {wrong}; set config to one of: {names}") from error
        if unreachable:
            there = "no such file" if stream else "no such file, no earlier download of the data set"
            raise DataError(
                f"{path}: there is {there}, and the hub cannot be asked "
                f"({unreachable}); check the name and the network, or give a file"
            ) from error
        raise DataError(
            f"{path}: no such local file, and the hub did not give split '{split}' of a data set of that name "
            f"({type(error).__name__}: {first_line(error)}); check the name and the network, or download a file of it"
        ) from error
    if not stream:
        return dataset_table(path, data)
    told = (data.info.splits or {}).get(split)
    return stream_table(path, data, columns, (told and told.num_examples) or math.inf)


def _columns(data: datasets.IterableDataset) -> list[str]:
    """The columns of a stream; of files that do not name them those of the first rows."""
    return list(data.column_names or data._resolve_features().column_names or ())


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by ``save_to_disk``."""
    return any((folder / name).is_file() for name in _SAVED)


def saved_table(path: str, folder: Path, split: str) -> RowTable:
    """A folder of ``save_to_disk``, or one split of it. Raises DataError when it cannot be read or lacks the split."""
    import datasets

    try:
        data = datasets.load_from_disk(str(folder))
    except Exception as error:  # a boundary, as above
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise DataError(f"{path}: not a readable folder of save_to_disk ({reason}); save it again") from error
    if isinstance(data, datasets.DatasetDict):
        if split not in data:
            raise DataError(f"{path}: has no split {split}; set split to one of: {', '.join(map(str, data))}")
        data = data[split]
    return dataset_table(path, data)
