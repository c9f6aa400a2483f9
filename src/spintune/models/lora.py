"""Low-rank adapters (LoRA, arXiv 2106.09685) inside a loaded model, through peft.

Adapted layers replace the model's own, so the engine and the generator see an ordinary model. Adapters are float32
whatever the type of the frozen weights.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from spintune.errors import ModelError
from spintune.models.architecture import text_modules
from spintune.models.files import quiet_transformers
from spintune.models.lora_targets import LoraTargets, find_targets
from spintune.models.quantized import base_format, dequantize, quantized_layers
from spintune.recipe import LoraSection
from spintune.storage import atomic_folder, read_json, storage_errors, write_json
from spintune.streams import torch_stream

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

BASE_FILE = "base.json"
"""How the weights under an adapter were stored; only beside one over quantized weights."""

# peft is imported where an adapter is made, so that other runs do not wait for it


def new_adapter(model: PreTrainedModel, section: LoraSection, key: str) -> PeftModel:
    """Puts a new adapter into ``model``, which still computes the same: one factor is zero.

    ``key`` names the random stream of the other factor. Raises ModelError when no layer has a target's name.
    """
    from peft import LoraConfig, get_peft_model

    targets = find_targets(model, section.targets)
    if targets.parameters and (section.dora or section.dropout):
        raise ModelError(
            f"lora.{'dora' if section.dora else 'dropout'} does not work on experts that share a tensor "
            f"({targets.parameters[0]}); leave it out, or name other layers in lora.targets"
        )
    config = LoraConfig(
        task_type="SEQ_2_SEQ_LM" if model.config.is_encoder_decoder else "CAUSAL_LM",
        r=section.rank,
        lora_alpha=section.alpha,
        target_modules=targets.modules,
        lora_dropout=section.dropout,
        use_rslora=section.rslora,
        use_dora=section.dora,
        **({"target_parameters": targets.parameters} if targets.parameters else {}),
    )
    expected = _named_layers(model, targets)
    try:
        with torch_stream(key):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora: {str(error).splitlines()[0]}") from error
    _tell_of_missing(expected, adapted)
    return _evaluating(adapted)


def _named_layers(model: PreTrainedModel, targets: LoraTargets) -> dict[str, nn.Module]:
    """The layers that peft is asked to adapt; none where a pattern names them."""
    names, head = targets.modules, model.get_output_embeddings()
    linear: dict[str, nn.Module]
    linear = {name: m for name, m in text_modules(model).items() if isinstance(m, nn.Linear) and m is not head}
    if isinstance(names, str):
        return linear if names == "all-linear" else {}
    return {name: m for name, m in linear.items() if any(name == n or name.endswith(f".{n}") for n in names)}


def _tell_of_missing(expected: dict[str, nn.Module], adapted: PeftModel) -> None:
    """Of models whose experts transformers stores together, peft takes layers of other parts for experts as well."""
    found = {id(m.get_base_layer()) for m in adapted.modules() if hasattr(m, "lora_A") and hasattr(m, "get_base_layer")}
    if missing := [name for name, layer in expected.items() if id(layer) not in found]:
        log.warning(
            "lora: peft adapts %d of the %d layers that lora.targets names, and leaves out %s%s",
            len(expected) - len(missing),
            len(expected),
            missing[0],
            ", ..." if missing[1:] else "",
        )


def load_adapter(model: PreTrainedModel, folder: Path) -> PeftModel:
    """Puts the adapter of :func:`save_adapter` into ``model``, ready to be trained further.

    Raises ModelError when it was trained over weights of another format, whose errors it has learned to mend.
    """
    from peft import PeftModel

    written = read_json(folder / BASE_FILE) if (folder / BASE_FILE).is_file() else {}
    trained, here = (form and form["format"] for form in (written, base_format(model) or {}))
    if trained != here:
        raise ModelError(f"{folder}: was trained over {trained or 'plain'} weights (lora.base), not {here or 'plain'}")
    return _evaluating(PeftModel.from_pretrained(model, str(folder), is_trainable=True))


def save_adapter(adapted: PeftModel, folder: Path, base: str) -> None:
    """Writes the adapter alone, as peft does; the folder is complete or absent. ``base`` names the adapted model.

    Over quantized weights, ``base.json`` says how they were stored.
    """
    for config in adapted.peft_config.values():
        config.base_model_name_or_path = base
        if isinstance(config.target_modules, set):  # its order differs between processes
            config.target_modules = sorted(config.target_modules)
        if isinstance(getattr(config, "target_parameters", None), set):
            config.target_parameters = sorted(config.target_parameters)
    with atomic_folder(folder) as temporary, storage_errors(folder):
        adapted.save_pretrained(str(temporary), save_embedding_layers=False)
        (temporary / "README.md").unlink(missing_ok=True)  # an empty model card
        if form := base_format(adapted):
            write_json(temporary / BASE_FILE, {"model": base, **form})


def merge(adapted: PeftModel) -> PreTrainedModel:
    """The float32 model with the adapter's product added to its weights; ``adapted`` is used up.

    In bfloat16 most of a small update would be lost to rounding. Weights that take less than float32 are widened in the
    memory of the CPU, which holds more than a GPU's.
    """
    if quantized_layers(adapted):
        with quiet_transformers():  # peft says that the base has another name
            adapted = _over_plain_weights(adapted.cpu())
    elif adapted.device.type == "cuda" and adapted.base_model.model.dtype != torch.float32:
        adapted = adapted.cpu()
    merged: PreTrainedModel = adapted.float().merge_and_unload()
    return merged


def _over_plain_weights(adapted: PeftModel) -> PeftModel:
    """The same adapter over the weights that the quantized layers stand for."""
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    config, state = adapted.peft_config["default"], get_peft_model_state_dict(adapted, save_embedding_layers=False)
    base = adapted.unload()
    dequantize(base)
    again = get_peft_model(base, config)
    set_peft_model_state_dict(again, state)
    return again


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
