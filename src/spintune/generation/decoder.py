"""Decoder-only models in continuous batching.

Every call is one packed row: the next token of each running sequence, then the prompts that start, without the tokens
that all prompts begin with. Those are read once, before.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spintune.engine.attention import AttentionParams, Layout, attention
from spintune.engine.decoder import PackedDecoder
from spintune.engine.head import head_logits, precision
from spintune.generation.cuda_graphs import GraphReplay
from spintune.generation.kv_cache import SlotCache
from spintune.generation.protocol import SequenceState


class DecoderRunner:
    """A decoder-only model that computes sequences in slots. See :class:`spintune.generation.protocol.Runner`.

    Args:
        max_len: tokens of the longest prompt, without those that all share, plus those of the longest answer.
        slots: sequences that run at once.
        fixed: calls without new prompts have the same shapes every time, and a GPU records them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        autocast: torch.dtype | None,
        max_len: int,
        slots: int,
        fixed: bool,
    ) -> None:
        self.model, self.autocast, self.slots = model, autocast, slots
        self._packed = PackedDecoder(model)
        self._cache = SlotCache(self.slots, max_len, model.device)
        self._replay = GraphReplay(self._one_more, self.slots, max_len, model.device) if fixed else None

    def forward(self, running: Sequence[SequenceState], started: Sequence[SequenceState]) -> Tensor:
        if self._replay and not started:
            ids, lengths = [s.ids[-1] for s in running], [s.cached for s in running]
            return self._replay(ids, [s.shared + s.cached for s in running], lengths)
        with precision(self.model, self.autocast):
            if started and started[0].shared > self._cache.prefix.length:
                shared = started[0].shared
                self._hidden(started[0].prompt[:shared], range(shared), self._cache.prefix)
            self._cache.plan([s.cached for s in running], [len(s.prompt) - s.shared for s in started])
            ids = [s.ids[-1] for s in running]
            positions = [s.shared + s.cached for s in running]
            last = list(range(len(running)))
            for sequence in started:
                ids.extend(sequence.prompt[sequence.shared :])
                positions.extend(range(sequence.shared, len(sequence.prompt)))
                last.append(len(ids) - 1)
            hidden_TD = self._hidden(ids, positions, self._cache)
            return head_logits(self.model, hidden_TD[torch.tensor(last, device=self.model.device)])

    def _one_more(self, ids_S: Tensor, positions_S: Tensor, lengths_S: Tensor, used: int) -> Tensor:
        """Logits ``[S, V]`` after one more token in every slot. Nothing here waits for a GPU."""
        self._cache.plan_all(lengths_S, used)
        with precision(self.model, self.autocast):
            return head_logits(self.model, self._packed(ids_S[None], positions_S[None], self._cache))

    def _hidden(self, ids: Sequence[int], positions: Sequence[int], layout: Layout) -> Tensor:
        ids_T, positions_T = (torch.tensor(numbers, device=self.model.device) for numbers in (ids, positions))
        return self._packed(ids_T[None], positions_T[None], layout)

    def move(self, source: int, target: int, sequence: SequenceState) -> None:
        self._cache.move(source, target, sequence.cached)


class _CacheWidth:
    """A layout of one token, which counts the numbers that a cache keeps of it."""

    def __init__(self) -> None:
        self.numbers = 0

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        self.numbers += k[0, :, 0].numel() + v[0, :, 0].numel()
        return attention(q, k, v, params, None)


def cache_width(model: PreTrainedModel) -> int:
    """Numbers that a cache keeps of each token, in all layers: heads may differ between layers (Gemma 4)."""
    layout, zero = _CacheWidth(), torch.zeros(1, 1, dtype=torch.long, device=model.device)
    PackedDecoder(model)(zero, zero, layout)
    return layout.numbers
