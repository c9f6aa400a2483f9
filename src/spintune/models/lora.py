"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a loaded model, through peft.

The adapted layers stand in the model's own place, so the engine and the generator see an ordinary model. Adapters are
float32 whatever the frozen weights are.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PreTrainedModel

from spintune.errors import ModelError
from spintune.recipe import LoraSection
from spintune.storage import atomic_folder, storage_errors

if TYPE_CHECKING:
    from peft import PeftModel

# peft is imported where an adapter is made: a run without one does not wait for it


def new_adapter(model: PreTrainedModel, section: LoraSection, key: str) -> PeftModel:
    """Puts a fresh adapter into ``model``, which then computes what it did before: one factor is zero.

    ``key`` names the random stream of the other factor. Raises ModelError when no layer has a target's name.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=section.targets if isinstance(section.targets, str) else list(section.targets),
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        use_dora=section.dora,
    )
    try:
        with stream(key):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.targets: {str(error).splitlines()[0]}") from error
    return _evaluating(adapted)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Puts the adapter of :func:`save_adapter` into ``model``, ready to be trained further."""
    from peft import PeftModel

    return _evaluating(PeftModel.from_pretrained(model, str(folder), is_trainable=True))


def save_adapter(adapted: PeftModel, folder: Path, base: str) -> None:
    """Writes the adapter alone, as peft does; the folder is complete or absent. ``base`` names what it goes on."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = base
        if isinstance(config.target_modules, set):  # whose order would be another one in every process
            config.target_modules = sorted(config.target_modules)
    with atomic_folder(folder) as temporary, storage_errors(folder):
        adapted.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # a model card without anything in it


def merge(adapted: PeftModel) -> PreTrainedModel:
    """The model with the adapter's product added to its weights; ``adapted`` is used up."""
    merged: PreTrainedModel = adapted.merge_and_unload()
    return merged


def has_dropout(model: nn.Module) -> bool:
    """Whether adapters of ``model`` drop inputs in training."""
    return any(True for _ in _dropouts(model))


@contextlib.contextmanager
def dropout(model: nn.Module, key: str) -> Iterator[None]:
    """Turns the adapters' dropout on, with the random stream ``key``; the model's own dropout stays off."""
    layers = list(_dropouts(model))
    if not layers:
        yield
        return
    for layer in layers:
        layer.train()
    try:
        with stream(key):
            yield
    finally:
        for layer in layers:
            layer.eval()


@contextlib.contextmanager
def stream(key: str) -> Iterator[None]:
    """Random numbers of torch from a stream of their own; the global generators go on as if nothing had happened."""
    with torch.random.fork_rng():
        torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little") >> 1)
        yield


def _dropouts(model: nn.Module) -> Iterator[nn.Dropout]:
    for module in model.modules():
        layers = getattr(module, "lora_dropout", None)
        if isinstance(layers, nn.ModuleDict):
            yield from (layer for layer in layers.values() if isinstance(layer, nn.Dropout) and layer.p > 0)


def _evaluating(adapted: Any) -> PeftModel:
    adapted.eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
