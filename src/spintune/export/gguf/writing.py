"""Writes a model folder as one GGUF file, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from spintune.errors import ModelError
from spintune.export.gguf.families import GgufFamily, family_of
from spintune.export.gguf.rotation import rotary_fields
from spintune.export.gguf.tensors import Checkpoint, GgufType, packed
from spintune.export.gguf.vocabulary import Vocabulary, read_vocabulary, vocabulary_fields
from spintune.models.files import quiet_transformers
from spintune.progress import Progress
from spintune.typed_json import JsonObject

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}  # llama.cpp's numbers


@dataclass(frozen=True)
class GgufMetadata:
    """What a file says about itself.

    Attributes:
        base: hub id of the model that it was trained from.
    """

    name: str
    description: str
    license: str | None = None
    base: str | None = None
    languages: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def check_folder(folder: Path) -> tuple[PreTrainedConfig, GgufFamily, PreTrainedTokenizerBase, Vocabulary]:
    """What is needed of a model folder before its weights. Raises ModelError for one that cannot be written."""
    with quiet_transformers():
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        family = family_of(config)
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    return config, family, tokenizer, read_vocabulary(tokenizer, config.vocab_size)


def write_gguf(folder: Path, out: Path, kind: GgufType, metadata: GgufMetadata, progress: Progress) -> None:
    """Writes the model of a folder to a file that does not exist yet.

    One tensor at a time is in memory. Raises ModelError for a model that llama.cpp would compute otherwise.
    """
    config, family, tokenizer, vocabulary = check_folder(folder)
    writer = gguf.GGUFWriter(out, family.architecture)
    _describe(writer, metadata, vocabulary)
    _shape_fields(writer, config, family)
    head_width = _head_width(config)
    further = rotary_fields(writer, config, head_width)
    family.fields(writer, config)
    vocabulary_fields(writer, vocabulary, tokenizer)
    _stop_fields(writer, folder, tokenizer)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    with Checkpoint(folder, config, family) as checkpoint:
        planned = checkpoint.plan(kind)
        extra = {name: packed(name, tensor, gguf.GGMLQuantizationType.F32) for name, tensor in further.items()}
        for name, numbers in extra.items():
            writer.add_tensor_info(name, numbers.shape, numbers.dtype, numbers.nbytes)
        for one in planned:
            writer.add_tensor_info(one.name, one.shape, np.float32, one.bytes, one.kind)
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            for numbers in extra.values():
                writer.write_tensor_data(numbers)
            with progress.task(f"write {kind}", sum(one.bytes for one in planned) / 1e6, "MB") as task:
                for one in planned:
                    writer.write_tensor_data(checkpoint.read(one))
                    task.advance(one.bytes / 1e6)
        finally:
            writer.close()


def _describe(writer: gguf.GGUFWriter, metadata: GgufMetadata, vocabulary: Vocabulary) -> None:
    writer.add_type("model")
    known = vocabulary.family in metadata.name.lower()
    writer.add_name(metadata.name if known else f"{metadata.name} ({vocabulary.family})")
    writer.add_description(metadata.description)
    if metadata.license:
        writer.add_license(metadata.license)
    if metadata.languages:
        writer.add_languages(metadata.languages)
    if metadata.tags:
        writer.add_tags(metadata.tags)
    if metadata.base:
        owner, _, name = metadata.base.partition("/")
        writer.add_base_model_count(1)
        writer.add_base_model_name(0, name)
        writer.add_base_model_organization(0, owner)
        writer.add_base_model_repo_url(0, f"https://huggingface.co/{metadata.base}")


def _head_width(config: PreTrainedConfig) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _shape_fields(writer: gguf.GGUFWriter, config: PreTrainedConfig, family: GgufFamily) -> None:
    """The settings that every decoder has."""
    heads = config.num_attention_heads
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    writer.add_context_length(_context(config, family))
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv(getattr(config, "num_key_value_heads", None) or heads)
    writer.add_key_length(_head_width(config))
    writer.add_value_length(_head_width(config))
    if (eps := getattr(config, "rms_norm_eps", None)) is not None:
        writer.add_layer_norm_rms_eps(eps)
        return
    names = ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon")
    eps = next((getattr(config, name) for name in names if hasattr(config, name)), None)
    if eps is None:
        raise ModelError(f"its config.json names no epsilon of its norms ({config.model_type}); not exported to GGUF")
    writer.add_layer_norm_eps(eps)


def _context(config: PreTrainedConfig, family: GgufFamily) -> int:
    longest = int(config.max_position_embeddings)
    window = getattr(config, "sliding_window", None)
    if family.windowed or window is None or not getattr(config, "use_sliding_window", True):
        return longest
    return min(longest, int(window))


def _stop_fields(writer: gguf.GGUFWriter, folder: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The ids that end an answer, beside the tokenizer's own: GGUF has two more places for them."""
    others = [id for id in sorted(stop_ids(folder)) if id != tokenizer.eos_token_id]
    for id, add in zip(others, (writer.add_eot_token_id, writer.add_eom_token_id), strict=False):
        add(id)


def stop_ids(folder: Path, eos: int | None = None) -> frozenset[int]:
    """The ids at which the generation settings of a model folder end an answer, and the tokenizer's, ``eos``."""
    from spintune.models.files import GENERATION_CONFIG, end_ids
    from spintune.storage import read_json

    path = folder / GENERATION_CONFIG
    settings: JsonObject = read_json(path) if path.is_file() else {}
    return frozenset(end_ids(settings.get("eos_token_id"))) | ({eos} if eos is not None else set())
