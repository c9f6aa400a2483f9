"""Writes a model folder as one GGUF file, tensor by tensor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from spintune.errors import ModelError
from spintune.export.gguf.families import GgufFamily, Shape, family_of
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
        config.allow_global_per_layer_attribute_access = True  # those of Gemma 4's layers are read by layer
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
    shape = read_shape(config, family)
    _shape_fields(writer, config, shape)
    further = rotary_fields(writer, config, family, shape)
    family.fields(writer, config)
    vocabulary_fields(writer, vocabulary, tokenizer)
    _stop_fields(writer, folder, tokenizer)
    writer.add_file_type(_FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    with Checkpoint(folder, config, family) as checkpoint:
        family.measured(writer, config, checkpoint.tensor)
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


_CONTEXT = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")
_EPSILON = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_epsilon", "norm_eps")
_UNBOUNDED = 2048  # tokens, where neither positions nor config bound a text


def read_shape(config: PreTrainedConfig, family: GgufFamily) -> Shape:
    """The sizes of a model. Raises ModelError where the config names no epsilon of its norms."""
    heads = int(getattr(config, "num_attention_heads", None) or 0)
    width = getattr(config, "head_dim", None) or (config.hidden_size // heads if heads else 0)
    inner = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * config.hidden_size
    eps = next((name for name in _EPSILON if getattr(config, name, None) is not None), "")
    shape = Shape(
        context=_context(config, family),
        hidden=int(config.hidden_size),
        inner=inner,
        heads=heads,
        kv_heads=int(getattr(config, "num_key_value_heads", None) or heads),
        key_width=int(width),
        value_width=int(width),
        eps=float(getattr(config, eps, 0)),
        rms=eps == "rms_norm_eps",
    )
    shape = family.shape(shape, config)
    if not shape.eps:
        raise ModelError(f"its config.json names no epsilon of its norms ({config.model_type}); not exported to GGUF")
    return shape


def _shape_fields(writer: gguf.GGUFWriter, config: PreTrainedConfig, shape: Shape) -> None:
    """The settings that every decoder has."""
    writer.add_context_length(shape.context)
    writer.add_vocab_size(config.vocab_size)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.key_width)
    writer.add_value_length(shape.value_width)
    if shape.rms:
        writer.add_layer_norm_rms_eps(shape.eps)
    else:
        writer.add_layer_norm_eps(shape.eps)


def _context(config: PreTrainedConfig, family: GgufFamily) -> int:
    longest = next((int(getattr(config, name)) for name in _CONTEXT if getattr(config, name, None)), _UNBOUNDED)
    window = getattr(config, "sliding_window", None)
    without = "sliding_attention" not in (getattr(config, "layer_types", None) or ["sliding_attention"])
    if family.windowed or window is None or without or not getattr(config, "use_sliding_window", True):
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
