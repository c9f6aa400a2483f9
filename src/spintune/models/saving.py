"""Writes a model as an ordinary Hugging Face folder, and tries before training whether that will work."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from spintune.errors import ModelError, SpintuneError
from spintune.models.files import GENERATION_CONFIG, end_ids, find_file, one_line, quiet_transformers, read_file
from spintune.models.quantized import plain_state
from spintune.storage import atomic_folder, storage_errors
from spintune.typed_json import JsonObject

_PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "image_preprocessor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
)


@dataclass(frozen=True)
class SourceFiles:
    """What a model's folder holds besides weights, config and tokenizer.

    Attributes:
        generation: its generation_config.json, without what transformers refuses; None where there is none.
        corrected: whether transformers refused something, and would not read the file.
        processor: files of its processor by name, which are copied as they are.
    """

    generation: JsonObject | None = None
    corrected: bool = False
    processor: Mapping[str, bytes] = field(default_factory=dict)


def read_source_files(location: str, arguments: Mapping[str, str], multimodal: bool) -> SourceFiles:
    """What is kept of a folder or hub repository. Raises ModelError for a generation_config.json that is damaged."""
    found = {name: find_file(location, arguments, name) for name in (_PROCESSOR_FILES if multimodal else ())}
    processor = {name: path.read_bytes() for name, path in found.items() if path}
    written = read_file(location, arguments, GENERATION_CONFIG)
    if written is None:
        return SourceFiles(processor=processor)
    with quiet_transformers():
        generation = _readable(written)
    return SourceFiles(generation, generation != written, processor)


def save_folder(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    source: SourceFiles = SourceFiles(),
    stop_ids: frozenset[int] = frozenset(),
) -> None:
    """Writes safetensors weights, config, tokenizer with its chat template, and what the source holds besides.

    The folder is complete or absent. Generation settings stay the model's own.

    Args:
        stop_ids: ids that end an answer; those that the generation settings lack are added to them.
    """
    try:
        with atomic_folder(folder) as temporary, storage_errors(folder):
            with _neutral_generation(model), quiet_transformers():
                model.save_pretrained(temporary)
            _save_rest(model, tokenizer, temporary, source, stop_ids)
    except SpintuneError:
        raise
    except Exception as error:
        raise ModelError(
            f"{folder}: the model cannot be saved ({one_line(error)}); in a run, the last checkpoint is kept and the "
            "same command goes on from it"
        ) from error


def rehearse_saving(name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: SourceFiles) -> None:
    """Does all of :func:`save_folder` but writing the weights, so that training is not lost at its end.

    Raises ModelError.
    """
    weights = plain_state(model)
    try:
        with quiet_transformers(), tempfile.TemporaryDirectory() as folder:
            with _neutral_generation(model), _unwritten_weights():
                model.save_pretrained(folder, state_dict=weights)
            _save_rest(model, tokenizer, Path(folder), source, frozenset())
    except SpintuneError:
        raise
    except Exception as error:  # whatever transformers raises here, it would raise after training
        raise ModelError(f"model {name!r} could not be saved after training: {one_line(error)}") from error


@contextmanager
def _unwritten_weights() -> Iterator[None]:
    """transformers names, converts and groups the weights; writing them fails, since they have no values."""
    try:
        yield
    except NotImplementedError as error:
        if "meta" not in str(error):
            raise


def _save_rest(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    source: SourceFiles,
    stop_ids: frozenset[int],
) -> None:
    tokenizer.init_kwargs.pop("auto_map", None)  # names Python files that the folder will not have
    tokenizer.save_pretrained(folder)
    settings = generation_settings(model, source, stop_ids)
    if settings is not None:
        (folder / GENERATION_CONFIG).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
    for name, content in source.processor.items():
        (folder / name).write_bytes(content)


@contextmanager
def _neutral_generation(model: PreTrainedModel) -> Iterator[None]:
    """transformers refuses to save some settings that it reads: they are written by :func:`generation_settings`."""
    before = model.generation_config
    if before is not None:
        model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = before


def generation_settings(
    model: PreTrainedModel, source: SourceFiles, stop_ids: frozenset[int] = frozenset()
) -> JsonObject | None:
    """The generation_config.json to write: the model's own with ``stop_ids`` added. None for a model without any."""
    settings = source.generation
    if settings is None:
        if model.generation_config is None:
            return None
        settings = _readable(json.loads(model.generation_config.to_json_string(keys_to_pop=["compile_config"])))
    settings = _without(settings, "_from_model_config")
    ends = settings.get("eos_token_id")
    known = end_ids(ends)
    if more := sorted(stop_ids - known):
        own = ends if isinstance(ends, list) else [ends]
        settings = {**settings, "eos_token_id": [*(id for id in own if id in known), *more]}
    return settings


def _readable(settings: JsonObject) -> JsonObject:
    """The settings without those that transformers refuses to use.

    It names no culprit, and one may be wrong only beside another, so each is left out in turn.
    """
    refused = _refusal(settings)
    while refused is not None:
        candidates = [key for key in settings if key in refused] or list(settings)
        cures = [key for key in candidates if _refusal(_without(settings, key)) is None]
        settings = _without(settings, (cures or candidates)[0])
        refused = _refusal(settings)
    return settings


def _without(settings: JsonObject, key: str) -> JsonObject:
    return {name: value for name, value in settings.items() if name != key}


def _refusal(settings: JsonObject) -> str | None:
    """Why transformers does not use the settings; None when it does."""
    try:
        GenerationConfig.from_dict(dict(settings)).validate()
    except Exception as error:  # values of the wrong type raise whatever comes first
        return str(error) or type(error).__name__
    return None
