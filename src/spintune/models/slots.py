"""The generator's cache of keys and values: one slot for each sequence that runs, and one prefix for all of them.

    prefix      tokens that all prompts begin with: read once, kept once, attended to by all sequences in one product
    slot i      what the i-th running sequence has behind the prefix

Both are layouts (``attention.py``): the prefix of the call that reads it, the slots of every call after that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from spintune.models.attention import Rule, attention

GROUP = 32
"""Slots that attend in one product, as far as the longest of them."""


@dataclass
class Prefix:
    """Keys and values of the tokens that all prompts begin with; the layout of the call that reads them."""

    length: int = 0
    _pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        self.length = q.shape[2]
        self._pairs[layer] = k, v
        return attention(q, k, v, rule, _visible(0, self.length, rule.window, q.device))

    def of(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[1, K, P, D]`` of a layer that has computed ``k`` and ``v``; P is 0 without a prefix."""
        return self._pairs.get(layer, (k[:, :, :0], v[:, :, :0]))


class SlotCache:
    """Keys and values of up to ``slots`` sequences, and the layout of the row that is being computed.

    Slot i belongs to the i-th running sequence; running sequences fill the slots from 0 without gaps, so the running
    part of the cache is a plain slice and is never copied to be read. Keys lie with their positions last, as the
    product with a query reads them.

    Args:
        room: tokens of a sequence behind the prefix.
    """

    def __init__(self, slots: int, room: int, device: torch.device) -> None:
        self.slots, self.room, self.device = slots, room, device
        self.prefix = Prefix()
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}
        self.lengths = torch.zeros(0, dtype=torch.long)
        self.prefill: list[int] = []
        self._groups: list[tuple[slice, int]] = []
        self._biases: dict[int | None, Tensor] = {}

    def plan(self, lengths: Sequence[int], prefill: Sequence[int]) -> None:
        """Sets up one call: one more token for slots of ``lengths``, then prompts of ``prefill`` tokens behind them.

        What the prefix holds counts in neither.
        """
        self.lengths = torch.tensor(lengths, dtype=torch.long, device=self.device)
        self.prefill = list(prefill)
        ends = [min(begin + GROUP, len(lengths)) for begin in range(0, len(lengths), GROUP)]
        self._groups = [
            (slice(begin, end), max(lengths[begin:end]) + 1) for begin, end in zip([0, *ends], ends, strict=False)
        ]
        self._biases.clear()

    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of one slot over another."""
        for keys_SKDR in self.keys.values():
            keys_SKDR[target, :, :, :length] = keys_SKDR[source, :, :, :length]
        for values_SKRD in self.values.values():
            values_SKRD[target, :, :length] = values_SKRD[source, :, :length]

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        keys, values = self._stores(layer, k, v)
        first_keys, first_values = self.prefix.of(layer, k, v)
        running = len(self.lengths)
        pieces = [running, *self.prefill]
        queries, new_keys, new_values = q.split(pieces, 2), k.split(pieces, 2), v.split(pieces, 2)
        outputs = [queries[0]]
        if running:
            slots = torch.arange(running, device=self.device)
            keys[slots, :, :, self.lengths] = new_keys[0][0].transpose(0, 1)
            values[slots, :, self.lengths] = new_values[0][0].transpose(0, 1)
            outputs = [self._attend_slots(queries[0], keys, values, first_keys[0], first_values[0], rule)]
        prompts = zip(self.prefill, queries[1:], new_keys[1:], new_values[1:], strict=True)
        for slot, (length, query, key, value) in enumerate(prompts, running):
            keys[slot, :, :, :length], values[slot, :, :length] = key[0].transpose(1, 2), value[0]
            whole = torch.cat([first_keys, key], 2), torch.cat([first_values, value], 2)
            mask = _visible(self.prefix.length, length, rule.window, self.device)
            outputs.append(attention(query, *whole, rule, mask))
        return torch.cat(outputs, 2)

    def _attend_slots(
        self, q_1HBD: Tensor, keys_SKDR: Tensor, values_SKRD: Tensor, keys_KPD: Tensor, values_KPD: Tensor, rule: Rule
    ) -> Tensor:
        heads, running, width = q_1HBD.shape[1:]
        shared, prefix = keys_KPD.shape[:2]
        # the query heads that share a key head stand as rows of one matrix: grouped attention without copies
        q_BKGD = q_1HBD[0].transpose(0, 1).reshape(running, shared, heads // shared, width)
        bias_B11R = self._bias(rule.window)
        outputs = []
        for slots, used in self._groups:
            query = q_BKGD[slots]
            own = query @ keys_SKDR[slots, :, :, :used]
            scores = torch.cat([_rows_at_once(query, keys_KPD.transpose(1, 2)), own], -1)
            scale = rule.scale
            if rule.softcap is not None:  # Gemma 2, arXiv 2408.00118, section 2
                scores, scale = torch.tanh(scores * (rule.scale / rule.softcap)), rule.softcap
            weights = torch.add(bias_B11R[slots, :, :, : prefix + used], scores, alpha=scale).softmax(-1)
            first, own = weights.to(query.dtype).split([prefix, used], -1)
            outputs.append(_rows_at_once(first, values_KPD) + own @ values_SKRD[slots, :, :used])
        return torch.cat(outputs).reshape(running, heads, -1).transpose(0, 1)[None]

    def _bias(self, window: int | None) -> Tensor:
        """What is added to scores, ``[B, 1, 1, prefix + longest + 1]``: 0 where visible, else minus infinity.

        In float32, so that softmax is taken in it at least.
        """
        if window not in self._biases:
            own_B = self.lengths + self.prefix.length
            position = torch.arange(int(own_B.max()) + 1, device=self.device)
            distance = own_B[:, None] - position[None, :]
            visible = distance >= 0 if window is None else (distance >= 0) & (distance < window)
            bias = torch.zeros(visible.shape, device=self.device).masked_fill_(~visible, float("-inf"))
            self._biases[window] = bias[:, None, None, :]
        return self._biases[window]

    def _stores(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        if layer not in self.keys:
            shape = (self.slots, k.shape[1], k.shape[3], self.room)
            self.keys[layer] = torch.zeros(shape, dtype=k.dtype, device=self.device)
            shape = (self.slots, v.shape[1], self.room, v.shape[3])
            self.values[layer] = torch.zeros(shape, dtype=v.dtype, device=self.device)
        return self.keys[layer], self.values[layer]


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
