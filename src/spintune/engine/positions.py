"""How many positions a model has a learned or tabled embedding for."""

from __future__ import annotations

import itertools

from transformers import PreTrainedModel

_EXTRA = 8
"""Rows that a table may have beyond its positions (OPT: 2)."""


def position_limit(model: PreTrainedModel) -> int | None:
    """The longest row that a model with a table of positions reads; None for one without such a table.

    Rotary embeddings and position biases are computed for any length.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is None:
        return None
    tables = itertools.chain(model.named_parameters(), model.named_buffers())
    for name, table in tables:
        named = "pos" in name.lower() or "wpe" in name
        if named and table.ndim == 2 and positions <= table.shape[0] <= positions + _EXTRA:
            return int(positions)
    return None
