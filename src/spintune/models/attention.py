"""Attention over packed rows, inside stock transformers models.

A packed row is one long sequence ``[1, T]`` that holds many independent pieces. Which token sees which is not a mask
over T x T but a *layout*: an object that receives queries, keys and values of every layer and knows the pieces.

    :func:`enable_layouts`  points a model at the attention function of this module
    :class:`PackedLayout`   prompts, each with its responses (training, scoring)

The generator's key-value cache is a layout as well (``slots.py``). A back-end for variable-length flash attention
is one more class with an ``attend`` method.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from spintune.errors import ModelError

NAME = "spintune_layout"


@dataclass(frozen=True)
class Rule:
    """How one layer attends: score scale, sliding window (tokens seen, own one included) and tanh soft cap."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Layout(Protocol):
    """Which token of a packed row sees which."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        """Queries ``[1, H, T, D]``, keys and values ``[1, K, T, D]`` (K divides H) to outputs ``[1, H, T, D]``."""


def enable_layouts(model: PreTrainedModel) -> None:
    """From here on, calls of ``model`` take a ``layout=`` argument and attend as it says."""
    model.set_attn_implementation(NAME)


def disable_layouts(model: PreTrainedModel) -> None:
    """Back to ordinary attention with masks: scaled-dot-product where the architecture supports it."""
    try:
        model.set_attn_implementation("sdpa")
    except ValueError:  # soft-capped scores (Gemma 2), sinks, no attention at all
        model.set_attn_implementation("eager")


def _attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    if layout is None or s_aux is not None:
        # without a layout there is no mask either: refuse rather than let every token see every other
        raise ModelError("this attention needs a layout and has no sinks; call disable_layouts(model) for plain use")
    rule = Rule(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    return layout.attend(module.layer_idx, query, key, value, rule).transpose(1, 2), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, _attention)


@dataclass(frozen=True)
class Branch:
    """A prompt of ``prompt`` tokens followed by responses of ``responses`` tokens, one after the other.

    Each response continues the prompt: it sees the prompt and itself, never its siblings, and its positions start
    where the prompt ends::

        tokens      p p p a a a b b
        positions   0 1 2 3 4 5 3 4
    """

    prompt: int
    responses: tuple[int, ...]

    @property
    def length(self) -> int:
        return self.prompt + sum(self.responses)

    def positions(self) -> list[int]:
        positions = list(range(self.prompt))
        for response in self.responses:
            positions.extend(range(self.prompt, self.prompt + response))
        return positions

    def visible(self, window: int | None) -> Tensor:
        """Bool ``[length, length]``: may the token of a row see the token of a column?"""
        # owner 0 is the prompt; a token sees owner 0 and its own owner, at positions up to its own
        owner = torch.repeat_interleave(torch.tensor([self.prompt, *self.responses]))
        position = torch.tensor(self.positions())
        distance = position[:, None] - position[None, :]
        visible = (distance >= 0) & ((owner[None, :] == 0) | (owner[:, None] == owner[None, :]))
        return visible if window is None else visible & (distance < window)


@dataclass
class PackedLayout:
    """Branches packed end to end into one row; each attends by itself, so nothing is padded."""

    branches: Sequence[Branch]
    device: torch.device
    windows: dict[int, int | None] = field(default_factory=dict)
    """The sliding window of every layer that attended."""
    _masks: dict[tuple[int, int | None], Tensor | None] = field(default_factory=dict)

    def positions(self) -> Tensor:
        """Position ids ``[1, T]``."""
        return torch.tensor([[p for branch in self.branches for p in branch.positions()]], device=self.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: Rule) -> Tensor:
        self.windows[layer] = rule.window
        lengths = [branch.length for branch in self.branches]
        # split, not slices: its backward is one concatenation instead of a zero-filled row for each piece
        pieces = zip(q.split(lengths, 2), k.split(lengths, 2), v.split(lengths, 2), strict=True)
        return torch.cat([attention(*piece, rule, self._mask(i, rule.window)) for i, piece in enumerate(pieces)], dim=2)

    def _mask(self, index: int, window: int | None) -> Tensor | None:
        """The branch's mask; None where it is plainly causal."""
        branch = self.branches[index]
        if window is not None and window >= branch.length:
            window = None
        if window is None and len(branch.responses) <= 1:
            return None
        key = (index, window)
        if key not in self._masks:
            self._masks[key] = branch.visible(window).to(self.device)
        return self._masks[key]


def attention(q: Tensor, k: Tensor, v: Tensor, rule: Rule, mask: Tensor | None) -> Tensor:
    """Plain attention of one piece: causal where ``mask`` (bool, True = visible) is None.

    Shapes: q ``[B, H, Q, D]``, k and v ``[B, K, S, D]`` with K dividing H, mask broadcastable to ``[B, H, Q, S]``.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if rule.softcap is None:
        return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=rule.scale)
    # soft-capped scores (Gemma 2, arXiv 2408.00118, section 2) have no fused kernel here
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = rule.softcap * torch.tanh(q @ k.transpose(2, 3) * (rule.scale / rule.softcap))
    return scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype) @ v
