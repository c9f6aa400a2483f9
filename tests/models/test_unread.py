"""Models whose weights are read one by one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny_folders import new_t5_tokenizer, write_llama, write_t5

from spintune.models.loading import load_model
from spintune.models.lora import new_adapter
from spintune.recipe import LoraSection


def _bytes(model: torch.nn.Module) -> int:
    return sum(parameter.untyped_storage().nbytes() for parameter in model.parameters())


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}])
def test_read_one_by_one_is_read_at_once(tmp_path: Path, changes: dict[str, bool]) -> None:
    folder = write_llama(tmp_path / "llama", num_hidden_layers=5, **changes)
    whole = load_model(str(folder), cache=tmp_path).model
    loaded = load_model(str(folder), cache=tmp_path, unread=True)
    model, unread = loaded.model, loaded.unread
    assert unread is not None
    assert unread.standin is not None
    assert unread.standin.config.num_hidden_layers == 2
    assert torch.equal(unread.standin.model.layers[1].mlp.up_proj.weight, whole.model.layers[1].mlp.up_proj.weight)
    assert _bytes(model) == 4 * len(list(model.parameters()))  # a number for each
    layer = model.model.layers[3]
    unread.read(layer.parameters())
    assert _bytes(model) < _bytes(whole) / 3
    unread.read(model.parameters())
    assert unread.names == {}
    mine, theirs = dict(model.named_parameters()), dict(whole.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    ids = torch.arange(9)[None]
    assert torch.equal(model(input_ids=ids).logits, whole(input_ids=ids).logits)  # with buffers and tied weights
    assert model.generation_config.to_dict() == whole.generation_config.to_dict()


def test_adapters_before_weights(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "llama", num_hidden_layers=3)
    found = []
    for unread in (False, True):
        loaded = load_model(str(folder), cache=tmp_path, unread=unread)
        new_adapter(loaded.model, LoraSection(rank=4), "key")
        if loaded.unread:
            loaded.unread.read(loaded.model.parameters())
        found.append(dict(loaded.model.named_parameters()))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_others_are_read_at_once(tmp_path: Path) -> None:
    t5 = write_t5(tmp_path / "t5", new_t5_tokenizer())
    assert load_model(str(t5), cache=tmp_path, unread=True).unread is None
    # one more tensor than the model has
    from safetensors.torch import load_file, save_file

    llama = write_llama(tmp_path / "llama")
    weights = load_file(llama / "model.safetensors")
    save_file({**weights, "more": torch.zeros(3)}, llama / "model.safetensors", {"format": "pt"})
    assert load_model(str(llama), cache=tmp_path, unread=True).unread is None
