"""Which class of transformers a model is loaded as, and which of its parts read and write text."""

from __future__ import annotations

import copy

from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.auto_factory import _BaseAutoModelClass
from transformers.models.auto.modeling_auto import MODEL_FOR_MULTIMODAL_LM_MAPPING


def auto_class(config: PreTrainedConfig) -> type[_BaseAutoModelClass]:
    """The class that reads a whole folder. A multimodal model keeps its other parts, so that it can be saved whole."""
    if config.is_encoder_decoder:
        return AutoModelForSeq2SeqLM
    if is_multimodal(config):
        return AutoModelForMultimodalLM
    return AutoModelForCausalLM


def is_multimodal(config: PreTrainedConfig) -> bool:
    """Whether a decoder-only model also reads images, video or sound."""
    return type(config) in MODEL_FOR_MULTIMODAL_LM_MAPPING and not config.is_encoder_decoder


def text_modules(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The modules, by name, that a text passes through: embeddings, decoder layers, head. All of a text-only model."""
    named = dict(model.named_modules())
    if not is_multimodal(model.config):
        return named
    parts = [model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings()]
    text = {id(module) for part in parts if part is not None for module in part.modules()}
    for module in model.modules():
        if isinstance(module, PreTrainedModel) and module.main_input_name != "input_ids":
            text -= {id(inner) for inner in module.modules()}
    return {name: module for name, module in named.items() if id(module) in text}


def freeze_other_parts(model: PreTrainedModel) -> None:
    """Leaves only what a text passes through to be trained; a text-only model stays as it is."""
    if not is_multimodal(model.config):
        return
    text = {id(p) for module in text_modules(model).values() for p in module.parameters(recurse=False)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in text and parameter.is_floating_point())  # packed ones are frozen


def shortened(config: PreTrainedConfig, layers: int) -> PreTrainedConfig:
    """The config of a model that differs in its number of layers alone."""
    short = copy.deepcopy(config)
    text = short.get_text_config()
    whole = int(text.num_hidden_layers)
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == whole:
            setattr(text, name, value[:layers])
    text.num_hidden_layers = layers
    if config.is_encoder_decoder and hasattr(text, "num_decoder_layers"):
        text.num_decoder_layers = layers
    return short


def period(config: PreTrainedConfig) -> int:
    """After how many layers their kinds repeat: 1 where all are alike."""
    kinds = list(getattr(config.get_text_config(), "layer_types", None) or [])
    return next((n for n in range(1, len(kinds) // 2 + 1) if all(k == kinds[i % n] for i, k in enumerate(kinds))), 1)


def drop_marks(model: PreTrainedModel) -> None:
    """Weights from a GGUF file are plain tensors once loaded; save_pretrained refuses while these marks remain.

    ``auto_map`` names Python files that a saved folder will not have.
    """
    for attribute in ("quantization_config", "_pre_quantization_dtype", "auto_map"):
        if hasattr(model.config, attribute):
            delattr(model.config, attribute)
    for attribute in ("hf_quantizer", "quantization_method", "is_quantized"):
        if attribute in model.__dict__:
            delattr(model, attribute)


def record_untied_head(model: PreTrainedModel) -> None:
    """Records in the config of T5 1.1, FLAN-T5 and mT5 that their head has weights of its own.

    transformers 5 sets ``tie_word_embeddings`` there whatever the checkpoint says, and looks at the weights instead.
    Another version that reads a saved folder would tie the head and scale its input.
    """
    if model.config.model_type in ("t5", "mt5") and model.get_output_embeddings().weight is not model.shared.weight:
        model.config.tie_word_embeddings = False
