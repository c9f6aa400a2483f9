"""Lengths at which a model begins to compute differently: sliding windows, chunks, frequencies of pretraining."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

from transformers import PreTrainedConfig, PreTrainedModel

from spintune.engine.attention import configs_of

_REACH = re.compile(r"(window|window_size|attention_chunk_size|chunk_length|index_topk|floor_scale)$")
"""Names of lengths that a smaller number may stand in for while a probe computes."""

_PRETRAINED = "original_max_position_embeddings"


def thresholds(model: PreTrainedModel) -> list[int]:
    """Every such length that the model's configuration names."""
    found = set(reaches(model))
    for config in _configs(model):
        rope = getattr(config, "rope_parameters", None) or {}
        found.update(
            own[_PRETRAINED] for own in (rope, *rope.values()) if isinstance(own, dict) and own.get(_PRETRAINED)
        )
    return sorted(found)


def reaches(model: PreTrainedModel) -> list[int]:
    """The lengths of windows, chunks and choices of keys among them."""
    return sorted({length for config in _configs(model) for _, length in _reaches(config)})


@contextlib.contextmanager
def lowered(model: PreTrainedModel, above: int, to: int = 6) -> Iterator[None]:
    """Inside, windows and chunks of more than ``above`` tokens have ``to``, in the configuration and in every module.

    A row of that many tokens would cost too much to find out whether packed rows keep a window.
    """
    before = [
        (owner, name, value)
        for owner in (*_configs(model), *model.modules())
        for name, value in _reaches(owner)
        if value > above
    ]
    try:
        for owner, name, _ in before:
            setattr(owner, name, to)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def _configs(model: PreTrainedModel) -> list[PreTrainedConfig]:
    return list({id(config): config for config in configs_of(model)}.values())


def _reaches(owner: object) -> list[tuple[str, int]]:
    return [
        (name, value)
        for name, value in vars(owner).items()
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and _REACH.search(name)
    ]
