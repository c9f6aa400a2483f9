"""The JSON files of a model folder or hub repository, read as they are, before transformers interprets them."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

from huggingface_hub import model_info, try_to_load_from_cache
from transformers.utils import cached_file, logging

from spintune.errors import ModelError
from spintune.storage import is_note
from spintune.typed_json import JsonObject

GENERATION_CONFIG = "generation_config.json"
_SAFETENSORS = ("model.safetensors", "model.safetensors.index.json")
_SETTINGS = (".json", ".jinja", ".py", ".txt", ".model", ".spm", ".tiktoken", ".vocab", ".bpe", ".codes")
"""Kinds of files with a config, a chat template, code or a vocabulary."""
_OF_TRAINING = ("trainer_state.json", "*_results.json")  # what transformers' Trainer writes beside a model


def read_file(location: str, arguments: Mapping[str, str], name: str) -> JsonObject | None:
    """The JSON object in file ``name`` of a model; None where the model has no such file.

    Args:
        location, arguments: of :func:`spintune.models.loading.locate_model`.

    Raises ModelError when the file holds something else.
    """
    path = find_file(location, arguments, name)
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path} cannot be read as JSON ({error}); mend it") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} holds no JSON object; mend it")
    return content


def find_file(location: str, arguments: Mapping[str, str], name: str) -> Path | None:
    """The local path of a model's file, fetched from the hub if need be; None where the model has no such file."""
    if "gguf_file" in arguments:
        return None
    folder = Path(location)
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    revision = arguments.get("revision")
    listed = _listing(location, revision)
    if listed is None:  # the hub cannot be asked: what an earlier load kept is all there is
        kept = try_to_load_from_cache(location, name, revision=revision)
        return Path(kept) if isinstance(kept, str) else None
    if name not in listed:
        return None
    try:
        found = cached_file(location, name, revision=revision)
    except (OSError, ValueError):  # loading says why
        return None
    return None if found is None else Path(found)


@lru_cache(maxsize=8)
def _listing(repository: str, revision: str | None) -> frozenset[str] | None:
    """The files of a hub repository, by one request; None where it cannot be asked."""
    try:
        found = model_info(repository, revision=revision, timeout=10).siblings or []
        return frozenset(file.rfilename for file in found)
    except Exception:  # offline, no such repository, no access: loading says so
        return None


def loaded_files(folder: Path) -> list[Path]:
    """The files of a model folder that decide what is loaded, by name: settings, vocabulary and one format of weights.

    As transformers does, safetensors are read before pytorch_model.bin. What a training run left beside them, such as
    optimizer.pt, is not read.
    """
    weights = ["*.safetensors"]
    if not any((folder / name).is_file() for name in _SAFETENSORS):
        weights.append("pytorch_model*.bin")

    def is_loaded(file: Path) -> bool:
        if is_note(file.name) or any(file.match(pattern) for pattern in _OF_TRAINING):
            return False
        return file.suffix in _SETTINGS or any(file.match(pattern) for pattern in weights)

    return [file for file in sorted(folder.iterdir()) if is_loaded(file) and file.is_file()]


def end_ids(settings: object) -> frozenset[int]:
    """The ids in an ``eos_token_id``: a number, a list of them, or null. Ids below 0 mean that there is none."""
    ids = settings if isinstance(settings, list) else [settings]
    return frozenset(id for id in ids if isinstance(id, int) and not isinstance(id, bool) and id >= 0)


def one_line(error: BaseException) -> str:
    """An exception of transformers as one line that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    text = f"{lines[0]} {lines[1]}" if lines[0].endswith(":") and len(lines) > 1 else lines[0]
    if not isinstance(error, OSError | ValueError | RuntimeError | ImportError):  # their texts explain little
        text = f"{type(error).__name__}: {text}"
    return text if len(text) <= 400 else text[:400] + " …"


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Inside, transformers neither warns nor draws: what a user must know is said by spintune itself."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
