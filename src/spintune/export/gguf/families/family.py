"""What llama.cpp needs to know of a family of models, and the rules that several families share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from gguf import GGUFWriter
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.errors import ModelError

Parts = Mapping[str, Tensor]
TensorRule = Callable[[str, Tensor, PreTrainedConfig], Tensor]
"""(its name in the checkpoint, the tensor, the config) -> the tensor as llama.cpp keeps it. Must work without data."""
PartsRule = Callable[[str, Tensor, PreTrainedConfig], Parts]
"""The same, for a tensor that llama.cpp keeps under other names, as several, or not at all."""
FieldRule = Callable[[GGUFWriter, PreTrainedConfig], None]
MeasuredRule = Callable[[GGUFWriter, PreTrainedConfig, Callable[[str], Tensor]], None]
"""(the file, the config, a reader of tensors): writes settings that the checkpoint keeps as tensors."""
PerLayer = int | Sequence[int]

SILU = frozenset({"silu", "swish"})
GELU = frozenset({"gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "gelu_python"})
RELU2 = frozenset({"relu2"})
EVERYWHERE = frozenset({"default", "dynamic", "linear", "yarn"})
"""Types of rotary positions that llama.cpp computes from settings alone."""
FACTORS = EVERYWHERE | {"llama3"}
"""Those of a family that reads one factor for each frequency, too."""


@dataclass(frozen=True)
class Shape:
    """The sizes that every decoder has.

    Attributes:
        context: longest text. [tokens]
        inner: width inside the feed-forward layers; a list has one for each layer, as in ``heads`` and ``kv_heads``.
        eps: of the norms.
        rms: the norms divide by the root of the mean square, and subtract no mean.
        rotated: how much of a key is rotated, where the config names no share of it.
    """

    context: int
    hidden: int
    inner: PerLayer
    heads: PerLayer
    kv_heads: PerLayer
    key_width: int
    value_width: int
    eps: float
    rms: bool
    rotated: int | None = None


ShapeRule = Callable[[Shape, PreTrainedConfig], Shape]


def as_it_is(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """The tensor itself."""
    return tensor


def whole(name: str, tensor: Tensor, config: PreTrainedConfig) -> Parts:
    """The tensor under its own name."""
    return {name: tensor}


def no_fields(writer: GGUFWriter, config: PreTrainedConfig) -> None:
    """No settings beside those of every decoder."""


def nothing_measured(writer: GGUFWriter, config: PreTrainedConfig, read: Callable[[str], Tensor]) -> None:
    """All settings are in the config."""


def no_copies(config: PreTrainedConfig) -> Mapping[str, str]:
    """Every tensor is stored once."""
    return {}


def usual_shape(shape: Shape, config: PreTrainedConfig) -> Shape:
    """The sizes as the config names them."""
    return shape


@dataclass(frozen=True)
class GgufFamily:
    """A family of models in GGUF.

    Attributes:
        architecture: llama.cpp's name for it.
        tensor: what is done to a tensor.
        fields: settings beside those that every decoder has.
        parts: which tensors are made of one of the checkpoint, before ``tensor``.
        measured: settings that the checkpoint keeps as tensors.
        shape: sizes that the config does not name as others do.
        named: llama.cpp's name where that depends on the config.
        names: (expression, replacement) for names in the checkpoint that the gguf package does not know.
        fixed: values of the config that llama.cpp takes for granted; a model with another is refused.
        activation: names of the activation that llama.cpp computes.
        scalings: types of rotary positions that it computes.
        fused: llama.cpp keeps gate and up of the experts together, as they are in memory.
        latent: keys and values are made of one narrow vector, and YaRN grows the scores as DeepSeek has it.
        square: heads are together as wide as the hidden size.
        windowed: llama.cpp knows the family's sliding windows. For the others, the context ends where a window would
            begin to matter.
        copies: names of tensors that llama.cpp reads without need, and of others to take where a checkpoint lacks them.
        head: the output layer is stored although it shares the embeddings' weights.
    """

    architecture: str
    tensor: TensorRule = as_it_is
    fields: FieldRule = no_fields
    parts: PartsRule = whole
    measured: MeasuredRule = nothing_measured
    shape: ShapeRule = usual_shape
    named: Callable[[PreTrainedConfig], str] | None = None
    names: tuple[tuple[str, str], ...] = ()
    fixed: Mapping[str, object] = field(default_factory=dict)
    activation: frozenset[str] = SILU
    scalings: frozenset[str] = EVERYWHERE
    fused: bool = False
    latent: bool = False
    square: bool = False
    windowed: bool = False
    copies: Callable[[PreTrainedConfig], Mapping[str, str]] = no_copies
    head: bool = False

    def check(self, config: PreTrainedConfig) -> None:
        """Raises ModelError for a model that llama.cpp would compute otherwise."""
        for key, expected in self.fixed.items():
            found = getattr(config, key, expected)
            if (list(found) if isinstance(found, tuple) else found) != expected:
                raise refusal(config, key, found, expected)
        if self.square and (width := config.head_dim) * config.num_attention_heads != config.hidden_size:
            raise refusal(config, "head_dim", width, config.hidden_size // config.num_attention_heads)
        for key in ("hidden_act", "hidden_activation", "activation_function", "activation", "mlp_hidden_act"):
            found = getattr(config, key, None)
            if isinstance(found, str) and found not in self.activation:
                raise refusal(config, key, found, sorted(self.activation)[0])


def refusal(config: PreTrainedConfig, key: str, found: object, expected: object) -> ModelError:
    """That a value of a config cannot be written."""
    return ModelError(
        f"{config.model_type} models with {key} {found} cannot be written to GGUF, where it is {expected} (export the "
        "folder instead)"
    )


def small_epsilon(config: PreTrainedConfig) -> None:
    """Raises ModelError for an epsilon above 1e-5.

    transformers norms inside these families' attention with 1e-6, llama.cpp with the config's, which is
    the same up to there.
    """
    if config.rms_norm_eps > 1e-5:
        raise refusal(config, "rms_norm_eps", config.rms_norm_eps, "1e-05 at most")


def pairs_of(tensor: Tensor, heads: int, rotated: float = 1.0) -> Tensor:
    """The rows of each head with element i and i + width / 2 side by side, in the share of them that is rotated."""
    rows = tensor.reshape(heads, tensor.shape[0] // heads, *tensor.shape[1:])
    turned, rest = rows.split([int(rows.shape[1] * rotated), rows.shape[1] - int(rows.shape[1] * rotated)], dim=1)
    turned = turned.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)
    return torch.cat([turned, rest], dim=1).reshape(tensor.shape)


def neighboring_pairs(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """transformers rotates element i of a head with element i + width / 2, llama.cpp here with its neighbor."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    found = next((count for part, count in heads.items() if f".{part}." in name), None)
    if found is None:
        return tensor
    return pairs_of(tensor, found, config.rope_parameters.get("partial_rotary_factor") or 1.0)


def norms_from_zero(name: str, tensor: Tensor, config: PreTrainedConfig) -> Tensor:
    """Gemma and others store the weights of their norms less one."""
    return tensor + 1 if name.endswith(("norm.weight", "layernorm.weight")) else tensor


def window_fields(writer: GGUFWriter, config: PreTrainedConfig, usual: int | None) -> None:
    """Which layers see only a window; llama.cpp takes every ``usual``-th for one that sees all."""
    windows = [kind == "sliding_attention" for kind in config.layer_types]
    writer.add_sliding_window(config.sliding_window)
    if usual is None or windows != [(layer + 1) % usual != 0 for layer in range(len(windows))]:
        writer.add_sliding_window_pattern(windows)


def first_of(config: PreTrainedConfig, *names: str) -> int:
    """The first of several keys that a config has."""
    return int(next(value for name in names if (value := getattr(config, name, None)) is not None))
