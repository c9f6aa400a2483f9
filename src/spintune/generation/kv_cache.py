"""The generator's key-value cache: one slot for each running sequence, and one prefix for all of them.

    prefix      tokens that all prompts begin with: read once, kept once, attended to by all sequences in one product
    slot i      the tokens of the i-th running sequence after the prefix

Both are layouts (:mod:`spintune.engine.attention`): the prefix of the call that reads it, the slots of later calls.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spintune.engine.attention import AttentionParams, attention, softmax
from spintune.kernels.native.attention import AttentionPlan, attend_segments, attend_slots, can_attend

KeysValues = tuple[Tensor, Tensor]

GROUP = 32
"""Number of slots that attend in one product, up to the length of the longest."""


@dataclass
class Prefix:
    """Keys and values of the tokens that all prompts begin with; also the layout of the call that reads them."""

    length: int = 0
    _pairs: dict[Hashable, KeysValues] = field(default_factory=dict)
    _calls: Counter[Hashable] = field(default_factory=Counter)

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        self.length = q.shape[2]
        self._pairs[_numbered(layer, self._calls)] = k, v
        if params.fused and can_attend(q, k, v):
            return attend_segments(q, k, v, AttentionPlan([[(0, self.length, 0, 0)]]), params.scale, params.window)
        return attention(q, k, v, params, _visible(0, self.length, params.window, q.device))

    def of(self, call: Hashable, k: Tensor, v: Tensor) -> KeysValues:
        """A call's keys and values ``[1, K, P, D]``; without a prefix P is 0, and the rest as in ``k`` and ``v``."""
        return self._pairs.get(call, (k[:, :, :0], v[:, :, :0]))


class SlotCache:
    """Keys and values of up to ``slots`` sequences; also the layout of the row that is being computed.

    Slot i belongs to the i-th running sequence. Running sequences fill the slots from 0 without gaps, so the running
    part of the cache is a plain slice and is never copied to be read. Compiled code (``kernels.native``) reads each
    slot up to its own length; torch's products read groups of slots up to the longest of a group.

    Args:
        max_len: tokens of a sequence after the prefix.
    """

    def __init__(self, slots: int, max_len: int, device: torch.device) -> None:
        self.slots, self.max_len, self.device = slots, max_len, device
        self.prefix = Prefix()
        self.stores: dict[Hashable, KeysValues] = {}
        """Keys and values ``[S, K, R, D]`` of each layer's calls."""
        self._calls: Counter[Hashable] = Counter()
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.prefill: list[int] = []
        self._plan = AttentionPlan([])
        self._end = 0
        self._groups: list[tuple[slice, int]] = []
        self._biases: dict[int | None, Tensor] = {}

    def plan(self, lengths: Sequence[int], prefill: Sequence[int]) -> None:
        """Sets up one call: one more token for slots of ``lengths``, then prompts of ``prefill`` tokens in new slots.

        Neither counts the tokens of the prefix.
        """
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.device)
        self.prefill = list(prefill)
        begins = itertools.accumulate(prefill[:-1], initial=0)
        whole = [[(begin, length, 0, self.prefix.length)] for begin, length in zip(begins, prefill, strict=False)]
        self._plan = AttentionPlan(whole)
        ends = [min(begin + GROUP, len(lengths)) for begin in range(0, len(lengths), GROUP)]
        self._groups = [
            (slice(begin, end), max(lengths[begin:end]) + 1) for begin, end in zip([0, *ends], ends, strict=False)
        ]
        self._end = max(lengths, default=0) + 1
        self._biases.clear()
        self._calls.clear()

    def plan_all(self, lengths_S: Tensor, used: int) -> None:
        """Sets up one call of fixed shapes: one more token for every slot, up to ``used`` tokens in each."""
        self.lengths, self.prefill, self._groups, self._end = lengths_S, [], [(slice(0, self.slots), used)], used
        self._biases.clear()
        self._calls.clear()

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of one slot over another."""
        for stores in self.stores.values():
            for store_SKRD in stores:
                store_SKRD[target, :, :length] = store_SKRD[source, :, :length]

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        native = params.fused and can_attend(q, k, v)
        call = _numbered(layer, self._calls)
        stores, prefix = self._stores(call, k, v, native), self.prefix.of(call, k, v)
        running = len(self.lengths)
        tokens, prompts = ([x[:, :, part] for x in (q, k, v)] for part in (slice(running), slice(running, None)))
        outputs = []
        if running:
            attend_tokens = self._tokens_compiled if native else self._tokens
            outputs.append(attend_tokens(tokens, prefix, stores, params))
        if self.prefill:
            for store_SKRD, new in zip(stores, prompts[1:], strict=True):
                for slot, new_1KLD in enumerate(new.split(self.prefill, 2), running):
                    store_SKRD[slot, :, : new_1KLD.shape[2]] = new_1KLD[0]
            attend_prompts = self._prompts_compiled if native else self._prompts
            outputs.append(attend_prompts(prompts, prefix, params))
        return torch.cat(outputs, 2)

    def _tokens_compiled(
        self, qkv: Sequence[Tensor], prefix: KeysValues, stores: KeysValues, params: AttentionParams
    ) -> Tensor:
        query, key, value = qkv
        return attend_slots(query, key, value, prefix, stores, self.lengths, params.scale, params.window)

    def _prompts_compiled(self, qkv: Sequence[Tensor], prefix: KeysValues, params: AttentionParams) -> Tensor:
        query, key, value = qkv
        return attend_segments(query, key, value, self._plan, params.scale, params.window, prefix)

    def _prompts(self, qkv: Sequence[Tensor], prefix: KeysValues, params: AttentionParams) -> Tensor:
        outputs = []
        for query, *pair in zip(*(x.split(self.prefill, 2) for x in qkv), strict=True):
            keys, values = (torch.cat([first, own], 2) for first, own in zip(prefix, pair, strict=True))
            mask = _visible(self.prefix.length, query.shape[2], params.window, self.device)
            outputs.append(attention(query, keys, values, params, mask))
        return torch.cat(outputs, 2)

    def _tokens(self, qkv: Sequence[Tensor], prefix: KeysValues, stores: KeysValues, params: AttentionParams) -> Tensor:
        q_1HBD, *pair = qkv
        (keys_KPD, values_KPD), (keys_SKRD, values_SKRD) = (x[0] for x in prefix), stores
        places = torch.arange(len(self.lengths), device=self.device)
        for store_SKRD, new_1KBD in zip(stores, pair, strict=True):
            store_SKRD[places, :, self.lengths] = new_1KBD[0].transpose(0, 1)
        heads, running, width = q_1HBD.shape[1:]
        shared, before = keys_KPD.shape[:2]
        # query heads that share a key head are columns of one matrix: grouped attention without copies
        q_BKGD = q_1HBD[0].transpose(0, 1).reshape(running, shared, heads // shared, width)
        bias_B11R = self._bias(params.window)
        outputs = []
        for slots, used in self._groups:
            query = q_BKGD[slots]
            own = (keys_SKRD[slots, :, :used] @ query.transpose(2, 3)).transpose(2, 3)
            scores = torch.cat([_rows_at_once(query, keys_KPD.transpose(1, 2)), own], -1)
            scale = params.scale
            if params.softcap is not None:  # Gemma 2, arXiv 2408.00118, section 2
                scores, scale = torch.tanh(scores * (params.scale / params.softcap)), params.softcap
            scores = torch.add(bias_B11R[slots, :, :, : before + used], scores, alpha=scale)
            if params.sinks is None:
                weights = scores.softmax(-1)
            else:
                weights = softmax(scores.flatten(1, 2)[:, :, None], params.sinks).reshape(scores.shape)
            first, own = weights.to(query.dtype).split([before, used], -1)
            outputs.append(_rows_at_once(first, values_KPD) + own @ values_SKRD[slots, :, :used])
        return torch.cat(outputs).reshape(running, heads, -1).transpose(0, 1)[None]

    def _bias(self, window: int | None) -> Tensor:
        """The bias added to scores, ``[B, 1, 1, prefix + longest + 1]``: 0 where visible, else minus infinity.

        It is float32, so that the softmax is computed in float32 at least.
        """
        if window not in self._biases:
            own_B = self.lengths + self.prefix.length
            position = torch.arange(self.prefix.length + self._end, device=self.device)
            distance = own_B[:, None] - position[None, :]
            visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            bias = torch.zeros(visible.shape, device=self.device).masked_fill_(~visible, float("-inf"))
            self._biases[window] = bias[:, None, None, :]
        return self._biases[window]

    def _stores(self, call: Hashable, k: Tensor, v: Tensor, native: bool) -> KeysValues:
        if call not in self.stores:
            keys, values = (self._store(x, native) for x in (k, v))
            self.stores[call] = keys, values
        return self.stores[call]

    def _store(self, like: Tensor, native: bool) -> Tensor:
        shape = (self.slots, like.shape[1], self.max_len, like.shape[3])
        if native:  # it never reads beyond what was written
            return torch.empty(shape)
        return torch.zeros(shape, dtype=like.dtype, device=self.device)


def _numbered(layer: Hashable, calls: Counter[Hashable]) -> tuple[Hashable, int]:
    """A layer's attention call in a forward: some layers have two (DiffLlama)."""
    calls[layer] += 1
    return layer, calls[layer]


def _rows_at_once(x_BKGC: Tensor, y_KCE: Tensor) -> Tensor:
    """``x @ y`` with the rows of all sequences in one matrix for each key head: ``[B, K, G, E]``."""
    sequences, heads, groups, inner = x_BKGC.shape
    rows = x_BKGC.transpose(0, 1).reshape(heads, sequences * groups, inner)
    return (rows @ y_KCE).reshape(heads, sequences, groups, y_KCE.shape[2]).transpose(0, 1)


def _visible(before: int, new: int, window: int | None, device: torch.device) -> Tensor | None:
    """Which of ``before + new`` tokens the last ``new`` ones see; None where that is plainly causal."""
    if not before and (window is None or window >= new):
        return None
    position = torch.arange(before + new, device=device)
    distance = position[before:, None] - position[None, :]
    return distance >= 0 if window is None else (distance >= 0) & (distance < window)
