"""A cache of tokenized examples, stored by content, so that the next run does not tokenize them again."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

from spintune.errors import StorageError
from spintune.record_files import RecordFile
from spintune.storage import atomic_folder, digest_json, read_json, write_json
from spintune.tokens.rows import RenderedRows, TokenRow

log = logging.getLogger(__name__)

_FACTS = [field.name for field in fields(RenderedRows) if field.name != "rows"]


@dataclass(frozen=True)
class TokenCache:
    """A folder of rendered examples, each entry under the digest of everything that determines its tokens.

    Attributes:
        folder: holds nothing else and may be deleted at any time.
        max_bytes: beyond this size, the least recently used entries are deleted.
    """

    folder: Path
    max_bytes: int = 4 * 2**30

    def rendered(self, content: Mapping[str, object], render: Callable[[], RenderedRows]) -> RenderedRows:
        """The result of ``render``, cached if the same code was called with the same ``content`` before."""
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
        # a name of its own until it is complete: another process may be writing the same entry
        own = entry.with_name(f"{entry.name}-{os.getpid()}")
        with atomic_folder(own) as folder:
            rendered.rows.copy_to(folder / "rows.jsonl")
            write_json(folder / "facts.json", {name: getattr(rendered, name) for name in _FACTS})
        try:
            own.rename(entry)
        except OSError:  # the other process was first
            shutil.rmtree(own, ignore_errors=True)
        self._shrink(entry)

    def _shrink(self, newest: Path) -> None:
        remaining = self.max_bytes
        entries = [(path.stat().st_mtime, path) for path in self.folder.iterdir() if path.is_dir()]
        for _, path in sorted(entries, reverse=True):
            remaining -= sum(file.stat().st_size for file in path.iterdir())
            if remaining < 0 and path != newest:
                shutil.rmtree(path, ignore_errors=True)


def _read(entry: Path) -> RenderedRows | None:
    try:
        rows = RecordFile(entry / "rows.jsonl", TokenRow)
        facts = read_json(entry / "facts.json")
        os.utime(entry)  # used just now
    except FileNotFoundError:
        shutil.rmtree(entry, ignore_errors=True)  # a part of it was deleted
        return None
    except OSError:  # not readable by this user
        return None
    return RenderedRows(rows, **{**facts, "dropped": Counter(facts["dropped"])})


@cache
def _code() -> str:
    """Digest of this package's code and of the version of tokenizers, either of which may change the tokens."""
    sha = hashlib.sha256(version("tokenizers").encode())
    for file in sorted(Path(__file__).parent.glob("*.py")):
        sha.update(file.read_bytes())
    return sha.hexdigest()
