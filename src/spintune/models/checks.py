"""What makes a model folder unfit, found in its JSON files before any weights are read."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from spintune.errors import ModelError
from spintune.models.files import find_file, read_file
from spintune.typed_json import JsonObject

_ADAPTER = "adapter_config.json"
_QUANTIZER_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
"""Quantizers that leave no mark in config.json write one of these: GPTQ, AWQ, ModelOpt."""
_DEPTHS = (
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_encoder_layers", "num_decoder_layers"),
    *("encoder_layers", "decoder_layers"),
)
_SIZES = ("vocab_size", "hidden_size", "d_model", "n_embd", "intermediate_size", "d_ff", "ffn_dim", "head_dim")
_WIDTHS = ("hidden_size", "d_model", "n_embd")
_MOST_LAYERS = 2_000
_ANY_SIZE = 100_000_000  # numbers that any machine can hold
_POINTER, _POINTER_SIZE = b"version https://git-lfs.github.com/spec/", 1024
"""How a pointer of git-lfs begins, and the size that it is smaller than, by its specification. [bytes]"""
_WEIGHTS = ("model*.safetensors", "pytorch_model*.bin", "model.safetensors.index.json")


def check_files(name: str, location: str, arguments: Mapping[str, str]) -> None:
    """Refuses adapters, quantized weights, and architectures whose code would come with the model.

    Args:
        name: the user's name for the model.
        location, arguments: of :func:`spintune.models.loading.locate_model`.

    Raises ModelError.
    """
    if "gguf_file" in arguments:  # its weights are read as plain numbers
        return
    _refuse_adapter(name, location, arguments)
    config = read_file(location, arguments, "config.json")
    if config is None:
        return
    _refuse_quantized(name, config, location, arguments)
    _refuse_foreign_code(name, config)
    _refuse_oversized(name, config, location)


def _refuse_oversized(name: str, config: JsonObject, location: str) -> None:
    """Refuses a config whose model would take all memory or time to build, by the weights that are there."""
    folder = Path(location)
    files = [file for pattern in _WEIGHTS for file in folder.glob(pattern)] if folder.is_dir() else []
    numbers = 2 * sum(file.stat().st_size for file in files)  # as if each took half a byte
    for part in (config, *(value for value in config.values() if isinstance(value, dict))):
        width = next((part[key] for key in _WIDTHS if isinstance(part.get(key), int)), 1)
        for key, value in part.items():
            if not isinstance(value, int) or isinstance(value, bool):
                continue
            if key in _DEPTHS and value > _MOST_LAYERS:
                raise ModelError(
                    f"model {name!r}: in its config.json {key} is {value:,}, and no model has more than "
                    f"{_MOST_LAYERS:,} layers; download config.json again"
                )
            if key in _SIZES and numbers and value * max(width, 1) > max(numbers, _ANY_SIZE):
                raise ModelError(
                    f"model {name!r}: in its config.json {key} is {value:,}, more than all its weights have numbers "
                    "for; its weights are incomplete, or config.json belongs to another model"
                )


def refuse_pointers(name: str, files: Iterable[Path]) -> None:
    """Refuses what git-lfs leaves in place of large files that it has not fetched. Raises ModelError."""
    for file in files:
        if file.is_file() and file.stat().st_size < _POINTER_SIZE and file.read_bytes().startswith(_POINTER):
            raise ModelError(
                f"model {name!r}: {file.name} is a pointer of git-lfs, not the file itself; "
                "run git lfs pull in its folder"
            )


def _refuse_adapter(name: str, location: str, arguments: Mapping[str, str]) -> None:
    adapter = read_file(location, arguments, _ADAPTER)
    if adapter is None:
        return
    base = adapter.get("base_model_name_or_path") or "its base model"
    folder = Path(location)
    if folder.is_dir() and any(any(folder.glob(pattern)) for pattern in _WEIGHTS):
        raise ModelError(
            f"model {name!r} holds whole weights and an adapter ({_ADAPTER}), which transformers would put on top of "
            f"them; move the adapter_* files away if it was merged, else merge it into {base} with peft"
        )
    raise ModelError(
        f"model {name!r} is an adapter of {base}, not a model; merge them with peft "
        "(AutoPeftModelForCausalLM.from_pretrained(...).merge_and_unload().save_pretrained(FOLDER)) and name FOLDER, "
        f"or train {base} itself"
    )


def _refuse_quantized(name: str, config: JsonObject, location: str, arguments: Mapping[str, str]) -> None:
    method = _quantizer(config, location, arguments)
    if method is None:
        return
    base = _base_model(name, config, location, arguments)
    raise ModelError(
        f"model {name!r} has quantized weights ({method}), which cannot be trained; name the model that it was made "
        + (f"from: {base}" if base else "from, in bfloat16 or float32 (its model card has the name)")
    )


def _quantizer(config: JsonObject, location: str, arguments: Mapping[str, str]) -> str | None:
    """The method that quantized a model's weights; None where they are plain."""
    parts = [config, *(value for value in config.values() if isinstance(value, dict))]
    for part in parts:
        for key in ("quantization_config", "compression_config", "quantization"):
            found = part.get(key)
            if isinstance(found, dict) and found:
                return _method_of(found)
    return next((file for file in _QUANTIZER_FILES if find_file(location, arguments, file)), None)


def _method_of(found: JsonObject) -> str:
    bits = found.get("bits") or (4 if found.get("load_in_4bit") else 8 if found.get("load_in_8bit") else None)
    return str(found.get("quant_method") or "quantization") + (f", {bits} bits" if bits else "")


def _base_model(name: str, config: JsonObject, location: str, arguments: Mapping[str, str]) -> str | None:
    """The model that a quantized one was made from, as its model card or config says; None where neither does."""
    card = find_file(location, arguments, "README.md")
    if card is not None:
        parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
        head = parts[1] if len(parts) == 3 and not parts[0].strip() else ""
        if found := re.search(r"^base_model:\s*+(?:-\s++)?+[\"']?([\w.-]++/[\w.-]+)", head, re.MULTILINE):
            return found[1]
    written = config.get("_name_or_path")
    is_id = isinstance(written, str) and re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", written)
    return str(written) if is_id and written != name else None


def _refuse_foreign_code(name: str, config: JsonObject) -> None:
    kind, code = config.get("model_type"), config.get("auto_map")
    if code and kind not in CONFIG_MAPPING:
        raise ModelError(
            f"model {name!r} brings Python code of its own (model_type {kind!r}), which is never run; "
            "name a model whose architecture the installed transformers has, or install a newer transformers"
        )
