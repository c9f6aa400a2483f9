"""How llama.cpp stores each family of models: names of its settings, and what is done to a tensor on the way.

Every family here is held against llama.cpp itself (``tests/export/test_gguf_families.py``): a random model must give
the same logits as in transformers. A family that was not is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.errors import ModelError

TensorRule = Callable[[str, Tensor, PreTrainedConfig], Tensor]
"""(its name in the checkpoint, the tensor, the config) -> the tensor as llama.cpp keeps it. Must work without data."""
FieldRule = Callable[[GGUFWriter, PreTrainedConfig], None]


def as_it_is(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """The tensor itself."""
    return tensor


def _nothing_more(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """No settings beside those of every decoder."""


@dataclass(frozen=True)
class GgufFamily:
    """A family of models in GGUF.

    Attributes:
        architecture: llama.cpp's name for it.
        tensor: what is done to a tensor.
        fields: settings beside those that every decoder has.
        windowed: llama.cpp knows the family's sliding windows. For the others, the context ends where a window would
            begin to matter.
        head: the output layer is stored although it shares the embeddings' weights.
    """

    architecture: str
    tensor: TensorRule = as_it_is
    fields: FieldRule = _nothing_more
    windowed: bool = False
    head: bool = False


def _neighboring_pairs(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """transformers rotates element i of a head with element i + width / 2, llama.cpp here with its neighbor."""
    if "q_proj" in name:
        heads = config.num_attention_heads
    elif "k_proj" in name:
        heads = config.num_key_value_heads
    else:
        return tensor
    return (
        tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    )


def _norms_from_zero(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """Gemma stores the weights of its norms less one."""
    return tensor + 1 if name.endswith("norm.weight") else tensor


def _inputs_first(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """GPT-2's layers keep their matrices transposed."""
    layers = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    return tensor.T if name.endswith(layers) else tensor


def _queries_keys_values(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """GPT-NeoX keeps the three of one head together, llama.cpp the heads of each."""
    if ".query_key_value." not in name:
        return tensor
    heads = config.num_attention_heads
    apart = tensor.reshape(heads, 3, tensor.shape[0] // heads // 3, *tensor.shape[1:])
    return apart.transpose(0, 1).reshape(tensor.shape)


def _gpt_neox(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_parallel_residual(bool(config.use_parallel_residual))


def _gemma_scale(config: PreTrainedConfig) -> None:
    """llama.cpp divides by the width of a head (of the largest ones, by width / heads) and reads no other scale."""
    large = config.num_hidden_layers in (46, 62)
    width = config.hidden_size // config.num_attention_heads if large else config.head_dim
    if config.query_pre_attn_scalar != width:
        raise ModelError(
            f"query_pre_attn_scalar {config.query_pre_attn_scalar} of this model cannot be written to GGUF, where it "
            f"is {width}"
        )


def _pattern(writer: GGUFWriter, config: PreTrainedConfig, usual: int) -> None:
    """Which layers see only a window; llama.cpp takes every ``usual``-th for one that sees all."""
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_sliding_window(config.sliding_window)
    if windows != [(layer + 1) % usual != 0 for layer in range(len(windows))]:
        writer.add_sliding_window_pattern(windows)


def _gemma2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _gemma_scale(config)
    _pattern(writer, config, 2)
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
    writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _gemma3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    _gemma_scale(config)
    _pattern(writer, config, 6)
    writer.add_rope_freq_base_swa(float(config.rope_parameters["sliding_attention"]["rope_theta"]))
    if config.final_logit_softcapping is not None:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _cohere(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if config.use_qk_norm:
        raise ModelError("cohere models with use_qk_norm cannot be written to GGUF")
    writer.add_logit_scale(config.logit_scale)


def _cohere2(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_logit_scale(config.logit_scale)
    _pattern(writer, config, 4)


def _granite(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_logit_scale(config.logits_scaling)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_attention_scale(config.attention_multiplier)


def _smollm3(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if list(config.no_rope_layers) != [int((layer + 1) % 4 != 0) for layer in range(config.num_hidden_layers)]:
        raise ModelError("smollm3 in GGUF has no positions in every fourth layer; this model has another pattern")


def _stablelm(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_parallel_residual(bool(config.use_parallel_residual))
    if config.use_parallel_residual or config.qk_layernorm:
        raise ModelError("stablelm models with use_parallel_residual or qk_layernorm cannot be written to GGUF")


def _experts(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    writer.add_expert_count(getattr(config, "num_local_experts", None) or config.num_experts)
    writer.add_expert_used_count(config.num_experts_per_tok)
    if (width := getattr(config, "moe_intermediate_size", None)) is not None:
        writer.add_expert_feed_forward_length(width)


def _qwen3_moe(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    if not config.norm_topk_prob or config.mlp_only_layers or config.decoder_sparse_step != 1:
        raise ModelError(
            "qwen3_moe in GGUF has experts in every layer, with weights that sum to one; this model differs"
        )
    _experts(writer, config)


FAMILIES: dict[str, GgufFamily] = {
    "cohere": GgufFamily("command-r", fields=_cohere),
    "cohere2": GgufFamily("cohere2", fields=_cohere2, windowed=True),
    "gemma": GgufFamily("gemma", _norms_from_zero),
    "gemma2": GgufFamily("gemma2", _norms_from_zero, _gemma2, windowed=True),
    "gemma3_text": GgufFamily("gemma3", _norms_from_zero, _gemma3, windowed=True),
    "gpt2": GgufFamily("gpt2", _inputs_first),
    "gpt_neox": GgufFamily("gptneox", _queries_keys_values, _gpt_neox, head=True),
    "granite": GgufFamily("granite", _neighboring_pairs, _granite),
    "llama": GgufFamily("llama", _neighboring_pairs),
    "mistral": GgufFamily("llama", _neighboring_pairs),
    "mixtral": GgufFamily("llama", _neighboring_pairs, _experts),
    "olmo2": GgufFamily("olmo2"),
    "phi": GgufFamily("phi2", head=True),
    "phi3": GgufFamily("phi3"),
    "qwen2": GgufFamily("qwen2"),
    "qwen3": GgufFamily("qwen3"),
    "qwen3_moe": GgufFamily("qwen3moe", fields=_qwen3_moe),
    "smollm3": GgufFamily("smollm3", _neighboring_pairs, _smollm3),
    "stablelm": GgufFamily("stablelm", fields=_stablelm, head=True),
    "starcoder2": GgufFamily("starcoder2"),
}
"""By ``model_type`` of transformers."""


def family_of(config: PreTrainedConfig) -> GgufFamily:
    """The family of a model. Raises ModelError for one that is not written to GGUF."""
    if (found := FAMILIES.get(config.model_type)) is not None:
        return found
    raise ModelError(
        f"models of the family {config.model_type} cannot be written to GGUF; {', '.join(FAMILIES)} can (export the "
        "folder instead)"
    )
