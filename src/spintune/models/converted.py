"""GGUF files of the user's own: each is converted once into the cache, since reading one may take minutes."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from spintune.cached_folders import shrink
from spintune.errors import StorageError
from spintune.models.digests import model_digest
from spintune.models.files import one_line, quiet_transformers
from spintune.models.gguf_tokenizer import known_difference, tell_of_difference
from spintune.models.kept import kept_model
from spintune.storage import digest_json, read_json, write_json
from spintune.typed_json import JsonObject

log = logging.getLogger(__name__)

MAX_BYTES = 32 * 2**30
"""Beyond this size of all conversions, those that were not used for a day are removed, the longest unused first."""
_DAY = 24 * 3600  # seconds
_FORMAT = 1  # of a converted folder
_TOKENIZER_FACTS = "spintune-gguf.json"
_COMPARED = (
    *("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "all_special_ids", "added_tokens_encoder"),
    *("chat_template", "padding_side", "truncation_side", "model_max_length", "model_input_names"),
)
"""What of a tokenizer, besides tokenizer.json, decides its tokens."""

_unkept: set[Path] = set()
"""Files whose conversion this process could not keep."""


def converted(path: Path, cache: Path, write: Callable[[Path, Path], PreTrainedTokenizerBase]) -> Path | None:
    """The folder of a GGUF file's model; None where the cache cannot hold it, and the file is read as it is.

    Args:
        cache: the folder of all caches.
        write: writes the model of a file into a folder, and returns its tokenizer.

    Raises ModelError when the file holds no model that can be read.
    """
    if path in _unkept:
        return None
    room = cache / "gguf"
    try:
        digest = model_digest(path, cache)
        source: JsonObject = {"sha256": digest, "format": _FORMAT, "versions": _versions()}
        name = f"{digest[:16]}-{digest_json(source)[:8]}"
        folder = kept_model(room, name, source, lambda folder: _convert(path, folder, write))
        with contextlib.suppress(OSError):  # a cache that only root writes
            os.utime(folder)  # used just now
            shrink(folder.parent, MAX_BYTES, folder, _DAY)
    except StorageError as error:
        log.warning("%s is read anew by every stage: %s", path, str(error).partition(";")[0])
        _unkept.add(path)
        return None
    tell_of_difference(path, read_json(folder / _TOKENIZER_FACTS)["difference"])
    return folder


def _versions() -> JsonObject:
    """Versions of what reads GGUF files. Another one may read a file otherwise."""
    return {name: version(name) for name in ("gguf", "tokenizers", "transformers")}


def _convert(path: Path, folder: Path, write: Callable[[Path, Path], PreTrainedTokenizerBase]) -> None:
    size = path.stat().st_size / 1e6
    log.warning("%s (%.0f MB): converting it into the cache, once; this may take minutes", path, size)
    tokenizer = write(path, folder)
    if difference := _tokenizer_change(tokenizer, folder):
        raise StorageError(f"its tokenizer would not come back as it is ({difference})")
    write_json(folder / _TOKENIZER_FACTS, {"difference": known_difference(path)})


def _tokenizer_change(before: PreTrainedTokenizerBase, folder: Path) -> str | None:
    """The first thing in which a tokenizer differs when it is read from where it was written; None for nothing."""
    try:
        with quiet_transformers():
            after = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
        if before.backend_tokenizer.to_str() != after.backend_tokenizer.to_str():
            return "tokenizer.json"
        return next((name for name in _COMPARED if getattr(before, name) != getattr(after, name)), None)
    except Exception as error:  # whatever a foreign tokenizer raises, the file itself can still be read
        return one_line(error)
