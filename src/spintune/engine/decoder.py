"""Decoder-only models over packed rows: prompts with their responses, up to the hidden states that the head reads."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.attention import NAME, AttentionSwitch, Layout
from spintune.engine.packing import PackedLayout, PromptGroup
from spintune.engine.query import Query
from spintune.engine.rotary import LengthDependentRotary
from spintune.engine.varlen import VarlenLayout, flash_kernel


class PackedDecoder:
    """The layers of a decoder-only model below its head, called on one packed row at a time."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model, self.switch = model, AttentionSwitch(model, NAME)

    def __call__(self, ids_1T: Tensor, positions_1T: Tensor, layout: Layout) -> Tensor:
        """Hidden states ``[T, D]`` of a row whose tokens see each other as ``layout`` says."""
        with self.switch():
            hidden = self.model.base_model(input_ids=ids_1T, position_ids=positions_1T, layout=layout, use_cache=False)
        return hidden.last_hidden_state[0]


class DecoderBackbone:
    """A decoder-only model as the engine sees it. See :class:`spintune.engine.query.Backbone`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._packed = PackedDecoder(model)
        self._rotary = LengthDependentRotary(model)

    def packing(self) -> AbstractContextManager[None]:
        return self._packed.switch()

    def hidden(self, queries: Sequence[Query]) -> Tensor:
        """Computes each prompt once for all of its responses.

        Where rotary frequencies depend on lengths, once for those that have the same.
        """
        if not self._rotary:
            return self._hidden(queries)
        parts, places = self._rotary.split(queries)
        with self._rotary.apart([part.tokens for part in parts]):
            hidden_MD = self._hidden(parts)
        return hidden_MD.index_select(0, torch.tensor(places, dtype=torch.long, device=hidden_MD.device))

    def _hidden(self, queries: Sequence[Query]) -> Tensor:
        device = self.model.device
        groups = [PromptGroup(len(q.prompt), tuple(map(len, q.continuations))) for q in queries]
        kernel = flash_kernel(device)
        layout = VarlenLayout(groups, device, kernel) if kernel else PackedLayout(groups, device)
        ids = [token for q in queries for part in (q.prompt, *q.continuations) for token in part]
        hidden_TD = self._packed(torch.tensor([ids], device=device), layout.positions(), layout)
        return hidden_TD.index_select(0, torch.tensor(_predicting(queries), dtype=torch.long, device=device))

    def logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        self._rotary.forget()
        ids = torch.tensor([[*prompt, *response[:-1]]], device=self.model.device)
        return self.model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :]


def _predicting(queries: Sequence[Query]) -> list[int]:
    """For every counted token, the packed position that predicts it."""
    rows: list[int] = []
    start = 0
    for query in queries:
        last_of_prompt = start + len(query.prompt) - 1
        *begins, start = itertools.accumulate(map(len, query.continuations), initial=last_of_prompt + 1)
        if not query.whole:
            place = dict(zip(query.continuations, begins, strict=True))
            begins = [place.get(response[:-1], 0) for response in query.responses]
        for begin, scored in zip(begins, query.counted, strict=True):
            rows.extend(begin + i - 1 if i else last_of_prompt for i, counts in enumerate(scored) if counts)
    return rows
