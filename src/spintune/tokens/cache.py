"""A cache of tokenized examples, stored by content, so that the next run does not tokenize them again."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path

from spintune.cached_folders import cached_folder, own_room, require_own, shrink
from spintune.errors import RunError, StorageError
from spintune.record_files import RecordFile
from spintune.storage import digest_json, read_json, storage_errors, write_json
from spintune.text import reasoning
from spintune.tokens.rows import RenderedRows, TokenRow

log = logging.getLogger(__name__)

_ROWS = "rows.jsonl"
_RECORD = "facts.json"
"""What is known of the rows, their number and digest, and a digest of all this."""
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
        try:
            with storage_errors(self.folder):
                entry = own_room(self.folder) / digest_json({**content, "code": _code()})[:32]
        except StorageError as error:
            _warn(error)
            return render()
        found = _read(entry)
        if found is None:
            found = render()
            try:
                self._keep(entry, found)
            except StorageError as error:  # a full disk here is no reason to stop
                _warn(error)
        return found

    def _keep(self, entry: Path, rendered: RenderedRows) -> None:
        with cached_folder(entry, lambda path: _read(path) is not None) as folder:
            rendered.rows.copy_to(folder / _ROWS)
            record = {
                "entry": entry.name,
                "facts": {name: getattr(rendered, name) for name in _FACTS},
                "rows": len(rendered.rows),
                "sha256": rendered.rows.digest(),
            }
            write_json(folder / _RECORD, {**record, "digest": digest_json(record)})
        with storage_errors(self.folder):
            shrink(entry.parent, self.max_bytes, entry)


def _warn(error: StorageError) -> None:
    log.warning("the next run will tokenize again: %s", str(error).partition(";")[0])


def _read(entry: Path) -> RenderedRows | None:
    """What an entry holds; None where there is none, or it is not whole, or somebody else may have written it."""
    try:
        for path in (entry, entry / _ROWS, entry / _RECORD):
            require_own(path.lstat(), path)
        record = read_json(entry / _RECORD)
        if record.pop("digest") != digest_json(record) or record["entry"] != entry.name:
            return None
        rows = RecordFile(entry / _ROWS, TokenRow, sha256=record["sha256"])
        facts = record["facts"]
    except (OSError, RunError, LookupError, TypeError, AttributeError):
        return None
    with contextlib.suppress(OSError):
        os.utime(entry)  # used just now
    if len(rows) != record["rows"]:
        return None
    return RenderedRows(rows, **{**facts, "dropped": Counter(facts["dropped"])})


@cache
def _code() -> str:
    """Digest of the code and of the versions of libraries, each of which may change the tokens.

    transformers and jinja2 render the chat template.
    """
    versions = [version(library) for library in ("tokenizers", "transformers", "jinja2")]
    sha = hashlib.sha256(" ".join(versions).encode())
    for file in [*sorted(Path(__file__).parent.glob("*.py")), Path(reasoning.__file__)]:
        sha.update(file.read_bytes())
    return sha.hexdigest()
