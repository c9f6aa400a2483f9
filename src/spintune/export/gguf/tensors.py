"""The tensors of a model folder as GGUF names and stores them, one after another and never all in memory."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import gguf
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedConfig

from spintune.errors import ModelError
from spintune.export.gguf.families import GgufFamily

GgufType = Literal["f32", "f16", "bf16", "q8_0"]
KINDS: dict[GgufType, gguf.GGMLQuantizationType] = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
}
_EXPERT = re.compile(r"(.*\.experts)\.([0-9]+)\.(.+)")
_NO_WEIGHTS = re.compile(r".*(rotary_emb\.inv_freq|\.attn\.bias|masked_bias|attention\.bias)")
_ALWAYS_FLOAT32 = ("position_embd.weight", "ffn_gate_inp.weight")
_SUFFIXES = (".weight", ".bias")
_LARGEST_HALF = 65504.0


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: in the file.
        sources: in the checkpoint; several experts become one tensor.
        kind: how its numbers are stored.
    """

    name: str
    sources: tuple[str, ...]
    shape: tuple[int, ...]
    kind: gguf.GGMLQuantizationType

    @property
    def bytes(self) -> int:
        """How many bytes it takes in the file."""
        per_block, size = gguf.GGML_QUANT_SIZES[self.kind]
        return math.prod(self.shape) // per_block * size


class Checkpoint:
    """The safetensors files of a model folder, read a tensor at a time."""

    def __init__(self, folder: Path, config: PreTrainedConfig, family: GgufFamily) -> None:
        self.config, self.family = config, family
        self._stack = ExitStack()
        self._files = {
            name: opened
            for path in sorted(folder.glob("*.safetensors"))
            for opened in [self._stack.enter_context(safe_open(path, "pt"))]
            for name in opened.keys()  # noqa: SIM118 - it is no dict
        }

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def plan(self, kind: GgufType) -> list[StoredTensor]:
        """Every tensor of the file. Raises ModelError for one that llama.cpp has no name for."""
        blocks = int(self.config.num_hidden_layers)
        names = gguf.get_tensor_name_map(_architecture(self.family.architecture), blocks)
        groups: dict[str, list[tuple[int, str]]] = defaultdict(list)
        for source in self._files:
            found = _EXPERT.fullmatch(source)
            key, number = (f"{found[1]}.{found[3]}", int(found[2])) if found else (source, 0)
            if not _NO_WEIGHTS.fullmatch(source):
                groups[key].append((number, source))
        planned = []
        for key, members in groups.items():
            name = names.get_name(key, _SUFFIXES)
            if name is None:
                raise ModelError(f"its tensor {key} has no name in GGUF's {self.family.architecture}; not exported")
            planned.append(self._stored(name, tuple(source for _, source in sorted(members)), kind))
        known = {one.name: one for one in planned}
        if self.family.head and "output.weight" not in known:
            planned.append(self._stored("output.weight", known["token_embd.weight"].sources, kind))
        return planned

    def _stored(self, name: str, sources: tuple[str, ...], kind: GgufType) -> StoredTensor:
        shapes = [self._files[source].get_slice(source).get_shape() for source in sources]
        empty = [torch.empty(shape, device="meta") for shape in shapes]
        shape = tuple(self._joined(sources, empty).shape)
        return StoredTensor(name, sources, shape, _kind(name, shape, kind))

    def _joined(self, sources: tuple[str, ...], tensors: list[Tensor]) -> Tensor:
        stored = [self.family.tensor(name, one, self.config) for name, one in zip(sources, tensors, strict=True)]
        return torch.stack(stored) if len(stored) > 1 else stored[0]

    def read(self, tensor: StoredTensor) -> NDArray[np.generic]:
        """The numbers of a tensor as the file keeps them. Raises ModelError where its type cannot hold them."""
        loaded = [self._files[source].get_tensor(source).float() for source in tensor.sources]
        return packed(tensor.name, self._joined(tensor.sources, loaded), tensor.kind)

    def parameters(self) -> Iterator[tuple[str, int]]:
        """Names and numbers of weights."""
        for name, file in self._files.items():
            yield name, math.prod(file.get_slice(name).get_shape())


def packed(name: str, tensor: Tensor, kind: gguf.GGMLQuantizationType) -> NDArray[np.generic]:
    """A float32 tensor in a type of GGUF. Raises ModelError for float16 that would overflow."""
    numbers = tensor.contiguous().numpy()
    if kind == gguf.GGMLQuantizationType.F32:
        return numbers
    if kind == gguf.GGMLQuantizationType.F16 and (largest := float(np.abs(numbers).max(initial=0))) > _LARGEST_HALF:
        raise ModelError(f"{name} holds {largest:.3g}, beyond float16's {_LARGEST_HALF:.0f}; take bf16 or q8_0")
    return np.asarray(gguf.quantize(numbers, kind))


def _kind(name: str, shape: tuple[int, ...], kind: GgufType) -> gguf.GGMLQuantizationType:
    """Vectors, routers and learned positions stay float32. Rows that no block divides are float16."""
    if len(shape) < 2 or name in _ALWAYS_FLOAT32 or name.endswith(_ALWAYS_FLOAT32):
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]:
        return gguf.GGMLQuantizationType.F16
    return KINDS[kind]


def _architecture(name: str) -> gguf.MODEL_ARCH:
    return next(one for one, text in gguf.MODEL_ARCH_NAMES.items() if text == name)
