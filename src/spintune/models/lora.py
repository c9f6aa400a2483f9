"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a loaded model, through peft.

Adapted layers replace the model's own, so the engine and the generator see an ordinary model. Adapters are float32
whatever the type of the frozen weights.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn
from transformers import PreTrainedModel

from spintune.errors import ModelError
from spintune.recipe import LoraSection
from spintune.storage import atomic_folder, storage_errors
from spintune.streams import torch_stream

if TYPE_CHECKING:
    from peft import PeftModel

# peft is imported where an adapter is made, so that other runs do not wait for it


def new_adapter(model: PreTrainedModel, section: LoraSection, key: str) -> PeftModel:
    """Puts a new adapter into ``model``, which still computes the same: one factor is zero.

    ``key`` names the random stream of the other factor. Raises ModelError when no layer has a target's name.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=_targets(model, section.targets),
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        use_dora=section.dora,
    )
    try:
        with torch_stream(key):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.targets: {str(error).splitlines()[0]}") from error
    return _evaluating(adapted)


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Puts the adapter of :func:`save_adapter` into ``model``, ready to be trained further."""
    from peft import PeftModel

    return _evaluating(PeftModel.from_pretrained(model, str(folder), is_trainable=True))


def save_adapter(adapted: PeftModel, folder: Path, base: str) -> None:
    """Writes the adapter alone, as peft does; the folder is complete or absent. ``base`` names the adapted model."""
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = base
        if isinstance(config.target_modules, set):  # its order differs between processes
            config.target_modules = sorted(config.target_modules)
    with atomic_folder(folder) as temporary, storage_errors(folder):
        adapted.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # an empty model card


def merge(adapted: PeftModel) -> PreTrainedModel:
    """The float32 model with the adapter's product added to its weights; ``adapted`` is used up.

    In bfloat16 most of a small update would be lost to rounding.
    """
    merged: PreTrainedModel = adapted.float().merge_and_unload()
    return merged


def _targets(model: nn.Module, targets: str | list[str]) -> str | list[str]:
    """The targets as peft takes them: all-linear, a pattern, or existing names. Raises ModelError."""
    if targets == "all-linear":
        return "all-linear"
    modules = [name for name, _ in model.named_modules()]
    if isinstance(targets, str) and any(name.split(".")[-1] == targets for name in modules):
        targets = [targets]
    if isinstance(targets, str):
        try:
            pattern = re.compile(targets)
        except re.error as error:
            raise ModelError(
                f"lora.targets: {targets!r} is no pattern ({error}); name layers or give all-linear"
            ) from None
        adapted = [name for name in modules if pattern.fullmatch(name)]
        missing = [] if adapted else [targets]
    else:
        adapted = [name for name in modules if any(name == t or name.endswith(f".{t}") for t in targets)]
        missing = [t for t in targets if not any(name == t or name.endswith(f".{t}") for name in modules)]
    if missing or not adapted:
        known = sorted({name.split(".")[-1] for name, m in model.named_modules() if isinstance(m, nn.Linear)})
        raise ModelError(f"lora.targets: no layer {', '.join(missing) or 'is named'}; known: {', '.join(known)}")
    ties = getattr(model, "all_tied_weights_keys", None) or {}
    tied = {name.rpartition(".")[0] for pair in dict(ties).items() for name in pair}
    if shared := sorted(tied & set(adapted)):
        raise ModelError(f"lora.targets: {shared[0]} shares its weights with another layer and cannot be adapted alone")
    return targets


def has_dropout(model: nn.Module) -> bool:
    """Whether adapters of ``model`` drop inputs in training."""
    return any(True for _ in _dropouts(model))


@contextlib.contextmanager
def dropout(model: nn.Module, key: str, rate: float = 0.0) -> Iterator[None]:
    """Turns on the adapters' dropout, and the model's own at ``rate``, with the random stream ``key``.

    Raises ModelError when a decoder-only model has a ``rate``, which packed attention would ignore.
    """
    if rate and not model.config.is_encoder_decoder:  # type: ignore[union-attr]
        raise ModelError("sft.dropout works only with encoder-decoder models; leave it out")
    adapters = list(_dropouts(model))
    own = list(_own_dropouts(model)) if rate else []
    if not adapters and not own:
        yield
        return
    rates = [getattr(layer, name) for layer, name in own]
    # DoRA looks at the layer around the dropout
    layers = [layer for pair in adapters for layer in pair] + [layer for layer, _ in own]
    try:
        for layer in layers:
            layer.training = True
        for layer, name in own:
            setattr(layer, name, rate)
        with torch_stream(key):
            yield
    finally:
        for layer in layers:
            layer.training = False
        for (layer, name), before in zip(own, rates, strict=True):
            setattr(layer, name, before)


def _dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Dropout]]:
    for module in model.modules():
        layers = getattr(module, "lora_dropout", None)
        if isinstance(layers, nn.ModuleDict):
            yield from ((module, layer) for layer in layers.values() if isinstance(layer, nn.Dropout) and layer.p > 0)


def _own_dropouts(model: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """The model's own layers with dropout, each with the name of its rate: attention has only a number."""
    of_adapters = {
        id(layer)
        for module in model.modules()
        if isinstance(layers := getattr(module, "lora_dropout", None), nn.ModuleDict)
        for layer in layers.values()
    }
    for module in model.modules():
        if isinstance(module, nn.Dropout) and id(module) not in of_adapters:
            yield module, "p"
        elif isinstance(getattr(module, "dropout", None), float | int):
            yield module, "dropout"


def _evaluating(adapted: PeftModel) -> PeftModel:
    adapted.eval()
    for parameter in adapted.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return adapted
