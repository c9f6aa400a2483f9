"""The decoder-only backbone: prompts packed with their responses, up to what the head reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.attention import PackedLayout, PromptGroup, disable_layouts, enable_layouts
from spintune.engine.query import Query
from spintune.engine.varlen import VarlenLayout, flash_kernel


class DecoderBackbone:
    """What the engine asks of a decoder-only model. See :class:`Backbone`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._windows: dict[int, int | None] = {}

    def enable_packing(self) -> None:
        enable_layouts(self.model)

    def disable_packing(self) -> None:
        disable_layouts(self.model)

    def hidden(self, queries: Sequence[Query]) -> Tensor:
        """A prompt is computed once for all of its responses."""
        device = self.model.device
        branches = [PromptGroup(len(q.prompt), tuple(map(len, q.branches))) for q in queries]
        kernel = flash_kernel(device)
        layout = VarlenLayout(branches, device, kernel) if kernel else PackedLayout(branches, device)
        ids = [token for q in queries for part in (q.prompt, *q.branches) for token in part]
        hidden_1TD = self.model.base_model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=layout.positions(),
            layout=layout,
            use_cache=False,
        ).last_hidden_state
        self._windows = layout.windows
        return hidden_1TD[0].index_select(0, torch.tensor(_predicting(queries), dtype=torch.long, device=device))

    def logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        ids = torch.tensor([[*prompt, *response[:-1]]], device=self.model.device)
        return self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]

    def passes_windows(self) -> bool:
        """Some models put them into masks only (Qwen2-MoE)."""
        config = self.model.config.get_text_config()
        kinds = getattr(config, "layer_types", None)
        if kinds is None:
            wanted = getattr(config, "sliding_window", None) is not None
            return not wanted or any(window is not None for window in self._windows.values())
        if "chunked_attention" in kinds:
            return False
        return all(self._windows.get(i) is not None for i, kind in enumerate(kinds) if kind == "sliding_attention")


def _predicting(queries: Sequence[Query]) -> list[int]:
    """For every counted token, the packed position that predicts it."""
    rows: list[int] = []
    start = 0
    for query in queries:
        last_of_prompt = start + len(query.prompt) - 1
        *begins, start = itertools.accumulate(map(len, query.branches), initial=last_of_prompt + 1)
        if not query.whole:
            place = dict(zip(query.branches, begins, strict=True))
            begins = [place.get(response[:-1], 0) for response in query.responses]
        for begin, scored in zip(begins, query.counted, strict=True):
            rows.extend(begin + i - 1 if i else last_of_prompt for i, counts in enumerate(scored) if counts)
    return rows
