"""What the recipe's lora.targets mean in a model: layers, and tensors that hold all experts of a layer."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from spintune.errors import ModelError
from spintune.models.architecture import is_multimodal, text_modules
from spintune.text.expressions import check_expression, matches_whole

log = logging.getLogger(__name__)

_FUSED_OUTPUTS = {"falcon_h1", "falcon_mamba", "mamba", "mamba2", "nemotron_h"}
"""Models whose kernels read the weights of ``out_proj`` past an adapter; peft refuses to adapt it there."""


@dataclass(frozen=True)
class LoraTargets:
    """What peft adapts.

    Attributes:
        modules: layers as peft takes them: all-linear, a pattern, or names.
        parameters: full names of tensors of experts, ``[experts, rows, columns]``.
    """

    modules: str | list[str]
    parameters: list[str] = field(default_factory=list)


def find_targets(model: PreTrainedModel, targets: str | list[str]) -> LoraTargets:
    """The layers and experts that ``targets`` name; of a multimodal model, only those that a text passes through.

    Raises ModelError when a target names nothing, or a layer that shares its weights.
    """
    modules, experts, tied = text_modules(model), expert_tensors(model), _tied_layers(model)
    if targets == "all-linear":
        left_out = {"out_proj"} if model.config.model_type in _FUSED_OUTPUTS else set()
        head = model.get_output_embeddings()
        linear = [name for name, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head]
        if shared := [name for name in linear if name in tied]:
            log.warning("lora.targets: all-linear leaves out %d layers that share weights: %s", len(shared), shared[0])
        elif not experts and not left_out and not is_multimodal(model.config):
            return LoraTargets("all-linear")
        layers = [name for name in linear if name.rpartition(".")[2] not in left_out and name not in tied]
        return LoraTargets(layers, experts)
    if isinstance(targets, str) and any(name.split(".")[-1] == targets for name in (*modules, *experts)):
        targets = [targets]
    wanted = [_by_pattern(targets)] if isinstance(targets, str) else [_by_name(target) for target in targets]
    layers = [name for name in modules if any(matches(name) for matches in wanted)]
    tensors = [name for name in experts if any(matches(name) for matches in wanted)]
    names = [targets] if isinstance(targets, str) else targets
    missing = [name for name, matches in zip(names, wanted, strict=True) if not any(map(matches, (*layers, *tensors)))]
    if missing or not (layers or tensors):
        known = {name.split(".")[-1] for name, m in modules.items() if isinstance(m, nn.Linear | Conv1D)}
        known |= {name.split(".")[-1] for name in experts}
        raise ModelError(
            f"lora.targets: no layer {', '.join(missing) or 'is named'}; known: {', '.join(sorted(known))}"
        )
    if shared := [name for name in layers if name in tied]:
        raise ModelError(f"lora.targets: {shared[0]} shares its weights with another layer and cannot be adapted alone")
    explicit = tensors or is_multimodal(model.config)
    return LoraTargets(layers if explicit else targets, tensors)


def expert_tensors(model: PreTrainedModel) -> list[str]:
    """Full names of the parameters that hold a matrix for each expert of a layer."""
    return [
        f"{name}.{parameter_name}"
        for name, module in text_modules(model).items()
        if not type(module).__module__.startswith("torch.nn")  # convolutions
        for parameter_name, parameter in module.named_parameters(recurse=False)
        if parameter.ndim == 3 and min(parameter.shape) > 1
    ]


def _by_name(target: str) -> Callable[[str], bool]:
    return lambda name: name == target or name.endswith(f".{target}")


def _by_pattern(target: str) -> Callable[[str], bool]:
    try:
        check_expression(target)
    except ValueError as error:
        raise ModelError(f"lora.targets: {target!r:.80} is {error}; name layers or give all-linear") from None
    return lambda name: matches_whole(target, name, "lora.targets")


def _tied_layers(model: PreTrainedModel) -> set[str]:
    """Layers with a weight that another one has, too: an adapter of each would be merged into the one weight."""
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    names = defaultdict[int, list[str]](list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[id(parameter)].append(name)
    tied = {name for pair in ties.items() for name in pair}
    tied.update(name for shared in names.values() if len(shared) > 1 for name in shared)
    return {name.rpartition(".")[0] for name in tied}
