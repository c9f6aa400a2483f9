"""Which class of transformers a model is loaded as, and which of its parts read and write text."""

from __future__ import annotations

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
