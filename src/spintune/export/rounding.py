"""Weights of a model folder in a smaller type, for use and not for training on."""

from __future__ import annotations

from pathlib import Path

from spintune.storage import read_json, write_json

_INDEX = "model.safetensors.index.json"


def round_folder(folder: Path) -> None:
    """Rounds the float32 weights of a Hugging Face folder to bfloat16, in place, and says so in its config."""
    import torch
    from safetensors.torch import load_file, save_file

    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        tensors = {
            name: tensor.bfloat16() if tensor.dtype == torch.float32 else tensor
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
    write_json(folder / "config.json", _with_type({**config, key: "bfloat16"}))


def _with_type(config: dict[str, object]) -> dict[str, object]:
    """The config with the types of its parts (``text_config``) changed, too."""
    return {
        key: _with_type({**value, **({"dtype": "bfloat16"} if "dtype" in value else {})})
        if isinstance(value, dict) and key.endswith("_config")
        else value
        for key, value in config.items()
    }
