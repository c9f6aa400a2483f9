"""The tensors of a model folder as GGUF names and stores them, one after another and never all in memory."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

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
_NUMBERED = re.compile(r"(.*\.(?:experts|altup_(?:unembed_)?projections|[qk]_layernorm))(?:\.norms)?\.([0-9]+)\.(.+)")
_FUSED = re.compile(r"(.*\.experts)\.(gate_up_proj|down_proj)(?:\.weight)?")
_NAMES = (
    (r"(e_score_correction|dt)_bias$", r"\1.bias"),
    (r"\.dt\.bias$", ".dt_proj.bias"),
    (r"\.expert_bias$", ".expert_bias.bias"),
)
"""Names of biases in checkpoints that the gguf package knows without "bias"."""
_SUFFIXES = (".weight", ".bias", ".scale")
_BARE = (*_SUFFIXES, ".A_log", ".D")
_NO_WEIGHTS = re.compile(r".*(rotary_emb\.inv_freq|\.attn\.bias|masked_bias|attention\.bias)")
_ALWAYS_FLOAT32 = ("position_embd.weight", "ffn_gate_inp.weight", ".bias", ".ssm_a", ".ssm_d", "_norm.weight")
_ALWAYS_FLOAT32_PARTS = ("conv1d", "shortconv.conv", "altup_")
_LARGEST_HALF = 65504.0


class Piece(NamedTuple):
    """What a tensor of a GGUF file is made of.

    Attributes:
        number: of the expert; -1 for a tensor that is no single expert's.
        source: name in the checkpoint.
        part: name of the part of it that is taken.
    """

    number: int
    source: str
    part: str


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a GGUF file.

    Attributes:
        name: in the file.
        pieces: in the checkpoint; several experts become one tensor.
        kind: how its numbers are stored.
    """

    name: str
    pieces: tuple[Piece, ...]
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
        groups: dict[str, list[tuple[int, str, str]]] = defaultdict(list)
        for source in self._files:
            if not _NO_WEIGHTS.fullmatch(source):
                for part in self._parts(source, self._empty(source)):
                    found = _NUMBERED.fullmatch(part)
                    key, number = (f"{found[1]}.{found[3]}", int(found[2])) if found else (part, -1)
                    groups[key].append((number, source, part))
        planned = []
        for key, members in groups.items():
            name = self._name(names, key)
            planned.append(self._stored(name, tuple(Piece(*member) for member in sorted(members)), kind))
        known = {one.name: one for one in planned}
        copies = {
            **({"output.weight": "token_embd.weight"} if self.family.head else {}),
            **self.family.copies(self.config),
        }
        for name, model in copies.items():
            if name not in known:
                planned.append(self._stored(name, known[model].pieces, kind))
        return planned

    def _name(self, names: gguf.TensorNameMap, key: str) -> str:
        name = names.get_name(key if key.endswith(_BARE) else f"{key}.weight", _SUFFIXES)
        if name is None:
            raise ModelError(f"its tensor {key} has no name in GGUF's {self.family.architecture}; not exported")
        return name

    def _empty(self, source: str) -> Tensor:
        return torch.empty(self._files[source].get_slice(source).get_shape(), device="meta")

    def _parts(self, source: str, tensor: Tensor) -> dict[str, Tensor]:
        """What a tensor of the checkpoint holds, by names that the gguf package knows."""
        name = source
        for expression, replacement in (*self.family.names, *_NAMES):
            name = re.sub(expression, replacement, name)
        return {
            part: self.family.tensor(part, one, self.config)
            for outer, held in self.family.parts(name, tensor, self.config).items()
            for part, one in ({outer: held} if self.family.fused else experts_apart(outer, held)).items()
        }

    def _stored(self, name: str, pieces: tuple[Piece, ...], kind: GgufType) -> StoredTensor:
        shape = tuple(self._joined(pieces, self._empty).shape)
        return StoredTensor(name, pieces, shape, _kind(name, shape, kind))

    def _joined(self, pieces: tuple[Piece, ...], read: Callable[[str], Tensor]) -> Tensor:
        stored = [self._parts(one.source, read(one.source))[one.part] for one in pieces]
        return torch.stack(stored) if pieces[0].number >= 0 else stored[0]

    def tensor(self, source: str) -> Tensor:
        """A tensor of the checkpoint, in float32."""
        return self._files[source].get_tensor(source).float()

    def read(self, tensor: StoredTensor) -> NDArray[np.generic]:
        """The numbers of a tensor as the file keeps them. Raises ModelError where its type cannot hold them."""
        return packed(tensor.name, self._joined(tensor.pieces, self.tensor), tensor.kind)

    def parameters(self) -> Iterator[tuple[str, int]]:
        """Names and numbers of weights."""
        for name, file in self._files.items():
            yield name, math.prod(file.get_slice(name).get_shape())


def experts_apart(name: str, tensor: Tensor) -> dict[str, Tensor]:
    """The matrices of all experts in one tensor, gate above up, as they are in memory: gate, up and down apart."""
    found = _FUSED.fullmatch(name)
    if found is None:
        return {name: tensor}
    stem, which = found[1], found[2]
    if which == "down_proj":
        return {f"{stem}.down_proj.weight": tensor}
    gate, up = tensor.chunk(2, dim=-2)
    return {f"{stem}.gate_proj.weight": gate, f"{stem}.up_proj.weight": up}


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
    if len(shape) < 2 or name.endswith(_ALWAYS_FLOAT32) or any(part in name for part in _ALWAYS_FLOAT32_PARTS):
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType.Q8_0][0]:
        return gguf.GGMLQuantizationType.F16
    return KINDS[kind]


def _architecture(name: str) -> gguf.MODEL_ARCH:
    found = next((one for one, text in gguf.MODEL_ARCH_NAMES.items() if text == name), None)
    if found is None:
        raise ModelError(f"the installed gguf package does not know {name}; pip install -U gguf")
    return found
