"""Rows of examples that were tokenized before: kept by content, so that the next run does not tokenize them again."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from spintune.errors import StorageError
from spintune.record_files import RecordFile
from spintune.storage import atomic_folder, digest_json, read_json, write_json
from spintune.tokens.rows import RenderedRows, TokenRow

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class TokenCache:
    """A folder of rendered examples, each under the digest of everything that decides their tokens.

    Attributes:
        folder: may be deleted at any time; nothing else lives in it.
        most_bytes: beyond this, what was used longest ago goes.
    """

    folder: Path
    most_bytes: int = 4 * 2**30

    def rendered(self, content: dict[str, Any], render: Callable[[], RenderedRows]) -> RenderedRows:
        """What ``render`` gives, or gave when it was called with the same ``content`` and by the same code."""
        entry = self.folder / digest_json({**content, "code": _code()})[:32]
        found = _read(entry)
        if found is None:
            found = render()
            try:
                self._keep(entry, found)
            except StorageError as error:  # a full disk here is no reason to stop
                log.warning("the next run will tokenize again: %s", str(error).partition(";")[0])
        return found

    def _keep(self, entry: Path, rendered: RenderedRows) -> None:
        # a name of its own until it is complete: another process may be writing the same
        own = entry.with_name(f"{entry.name}-{os.getpid()}")
        with atomic_folder(own) as folder:
            rendered.rows.copy_to(folder / "rows.jsonl")
            facts = {"dropped": rendered.dropped, "truncated": rendered.truncated, "read": rendered.read}
            write_json(folder / "facts.json", facts)
        try:
            own.rename(entry)
        except OSError:  # the other one was first
            shutil.rmtree(own, ignore_errors=True)
        self._shrink(entry)

    def _shrink(self, newest: Path) -> None:
        room = self.most_bytes
        entries = [(path.stat().st_mtime, path) for path in self.folder.iterdir() if path.is_dir()]
        for _, path in sorted(entries, reverse=True):
            room -= sum(file.stat().st_size for file in path.iterdir())
            if room < 0 and path != newest:
                shutil.rmtree(path, ignore_errors=True)


def _read(entry: Path) -> RenderedRows | None:
    try:
        rows = RecordFile(entry / "rows.jsonl", TokenRow)
        facts = read_json(entry / "facts.json")
        os.utime(entry)  # used just now
    except FileNotFoundError:
        shutil.rmtree(entry, ignore_errors=True)  # somebody deleted a part of it
        return None
    except OSError:  # not ours to read
        return None
    return RenderedRows(rows, Counter(facts["dropped"]), facts["truncated"], facts["read"])


@cache
def _code() -> str:
    """Digest of this package and of the tokenizers library: what they make of an example may change with them."""
    sha = hashlib.sha256(version("tokenizers").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(file.read_bytes())
    return sha.hexdigest()
