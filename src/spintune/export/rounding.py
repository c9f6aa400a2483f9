"""Weights of a model folder in a smaller type, for use and not for training on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from spintune.errors import ModelError
from spintune.storage import read_json, write_json

if TYPE_CHECKING:
    from torch import Tensor

_INDEX = "model.safetensors.index.json"


def round_folder(folder: Path, dtype: str) -> None:
    """Rounds the float32 weights of a Hugging Face folder to bfloat16 or float16, in place, and says so in its config.

    Raises ModelError for weights that are beyond float16.
    """
    import torch
    from safetensors.torch import load_file, save_file

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: _rounded(name, tensor, dtype) if tensor.dtype in (torch.float32, torch.bfloat16) else tensor
            for name, tensor in load_file(path).items()
        }
        path.unlink()
        save_file(tensors, path, {"format": "pt"})
        total += sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if (index := folder / _INDEX).is_file():
        content = read_json(index)
        write_json(index, {**content, "metadata": {**content.get("metadata", {}), "total_size": total}})
    config = read_json(folder / "config.json")
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    write_json(folder / "config.json", _with_type({**config, key: dtype}, dtype))


def _rounded(name: str, tensor: Tensor, dtype: str) -> Tensor:
    import torch

    if dtype == "bfloat16":
        return tensor.bfloat16()
    rounded = tensor.half()
    if not torch.isfinite(rounded).all():
        raise ModelError(f"{name} holds {float(tensor.abs().max()):.3g}, beyond float16's 65504; take --dtype bfloat16")
    return rounded


def _with_type(config: dict[str, object], dtype: str) -> dict[str, object]:
    """The config with the types of its parts (``text_config``) changed, too."""
    return {
        key: _with_type({**value, **({"dtype": dtype} if "dtype" in value else {})}, dtype)
        if isinstance(value, dict) and key.endswith("_config")
        else value
        for key, value in config.items()
    }
