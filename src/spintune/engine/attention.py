"""Attention over packed rows, inside stock transformers models.

A packed row is one long sequence ``[1, T]`` that holds many independent pieces. Which token sees which is not a mask
over T x T but a *layout*: an object that receives queries, keys and values of every layer and knows the pieces.

    :func:`enable_layouts`  points a model at the attention function of this module
    :class:`PackedLayout`   prompts, each with its responses (training, scoring)

The generator's key-value cache is a layout as well (``slots.py``), and so is variable-length flash attention on GPUs
(``varlen.py``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from spintune.errors import ModelError
from spintune.kernels.native.attention import AttentionPlan, attend_runs, can_attend

NAME = "spintune_layout"

_BLOCK = 512
"""Keys that torch's fused kernel of a CPU takes at a time: shorter causal rows are computed in full."""

_SHORT = 512
"""Up to so many keys a CPU computes bfloat16 attention in float32: torch's fused kernel takes longer in bfloat16, 3.7
times as long for 48 tokens and 1.8 times for 150 on one thread (benchmarks/products.py), more on two."""


@dataclass(frozen=True)
class AttentionParams:
    """How one layer attends: score scale, sliding window (tokens seen, own one included) and tanh soft cap."""

    scale: float
    window: int | None = None
    softcap: float | None = None


class Layout(Protocol):
    """Which token of a packed row sees which."""

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: AttentionParams) -> Tensor:
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
    rule = AttentionParams(scaling if scaling is not None else query.shape[-1] ** -0.5, sliding_window, softcap)
    return layout.attend(module.layer_idx, query, key, value, rule).transpose(1, 2), None  # type: ignore[arg-type]


AttentionInterface.register(NAME, _attention)


@dataclass(frozen=True)
class PromptGroup:
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


class CausalSegment(NamedTuple):
    """``tokens`` of a row from ``begin`` on. They see ``before`` tokens from ``prefix`` on, then themselves."""

    begin: int
    tokens: int
    prefix: int
    before: int


def causal_segments(branches: Sequence[PromptGroup]) -> list[list[CausalSegment]]:
    """Causal runs of each branch: its prompt with the first response, then every other response."""
    found, begin = [], 0
    for branch in branches:
        first, *others = branch.responses or (0,)
        mine = [CausalSegment(begin, branch.prompt + first, begin, 0)]
        for response in others:
            mine.append(CausalSegment(mine[-1].begin + mine[-1].tokens, response, begin, branch.prompt))
        found.append(mine)
        begin += branch.length
    return found


@dataclass(frozen=True)
class Segment:
    """Responses of a branch that attend in one call, to the prompt and to themselves.

    Attributes:
        responses: their lengths.
        whole: the prompt's queries are computed with them. Attention is then plainly causal, which needs no mask and
            skips what is not seen; the prompt's own outputs are taken from the first piece only.
    """

    responses: tuple[int, ...]
    whole: bool


def segments(branch: PromptGroup) -> list[Segment]:
    """How a branch is computed with little waste.

    Together, its tokens would make products with all tokens of all siblings only to mask them: twice to three times
    what is needed where responses are longer than the prompt. So only the first response goes with the prompt. Others
    go with fewer than P tokens at a time, and see P + R tokens each; a long one goes with the prompt's queries, since
    causal kernels then skip about half, but no less than a block.
    """
    first, *others = branch.responses or (0,)
    found = [Segment((first,), True)]
    for response in others:
        if response >= branch.prompt and branch.prompt + response > _BLOCK:
            found.append(Segment((response,), True))
        elif not found[-1].whole and sum(found[-1].responses) + response < branch.prompt:
            found[-1] = Segment((*found[-1].responses, response), False)
        else:
            found.append(Segment((response,), False))
    return found


@dataclass
class PackedLayout:
    """Branches packed end to end into one row; each attends by itself, so nothing is padded.

    On a CPU with compiled code all of it is one call (``native``). Otherwise torch's fused attention is called for
    every piece of a branch.
    """

    branches: Sequence[PromptGroup]
    device: torch.device
    windows: dict[int, int | None] = field(default_factory=dict)
    """The sliding window of every layer that attended."""
    _masks: dict[tuple[int, Segment, int | None], Tensor | None] = field(default_factory=dict)
    _plan: AttentionPlan | None = None

    def __post_init__(self) -> None:
        self._pieces = [segments(branch) for branch in self.branches]
        self._lengths = [
            (0 if number else branch.prompt) + sum(piece.responses)
            for branch, found in zip(self.branches, self._pieces, strict=True)
            for number, piece in enumerate(found)
        ]

    def positions(self) -> Tensor:
        """Position ids ``[1, T]``."""
        return torch.tensor([[p for branch in self.branches for p in branch.positions()]], device=self.device)

    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, rule: AttentionParams) -> Tensor:
        self.windows[layer] = rule.window
        if can_attend(q, k, v, rule.softcap):
            self._plan = self._plan or AttentionPlan(causal_segments(self.branches))
            return attend_runs(q, k, v, self._plan, rule.scale, rule.window)
        return self._attend_pieces(q, k, v, rule)

    def _attend_pieces(self, q: Tensor, k: Tensor, v: Tensor, rule: AttentionParams) -> Tensor:
        # split, not slices: its backward is one concatenation instead of a zero-filled row for each piece
        parts = zip(q.split(self._lengths, 2), k.split(self._lengths, 2), v.split(self._lengths, 2), strict=True)
        outputs = []
        for branch, found in zip(self.branches, self._pieces, strict=True):
            first = next(parts)
            outputs.append(attention(*first, rule, self._mask(branch.prompt, found[0], rule.window)))
            prompt = [x[:, :, : branch.prompt] for x in first]
            for piece in found[1:]:
                mine = next(parts)
                keys, values = (torch.cat([prompt[i], mine[i]], 2) for i in (1, 2))
                queries = torch.cat([prompt[0], mine[0]], 2) if piece.whole else mine[0]
                output = attention(queries, keys, values, rule, self._mask(branch.prompt, piece, rule.window))
                outputs.append(output[:, :, branch.prompt :] if piece.whole else output)
        return torch.cat(outputs, dim=2)

    def _mask(self, prompt: int, piece: Segment, window: int | None) -> Tensor | None:
        """What the queries of a piece see; None where it is plainly causal."""
        if window is not None and window >= prompt + max(piece.responses):
            window = None
        if window is None and piece.whole:
            return None
        key = (prompt, piece, window)
        if key not in self._masks:
            visible = PromptGroup(prompt, piece.responses).visible(window)
            self._masks[key] = (visible if piece.whole else visible[prompt:]).to(self.device)
        return self._masks[key]


def attention(q: Tensor, k: Tensor, v: Tensor, rule: AttentionParams, mask: Tensor | None) -> Tensor:
    """Plain attention of one piece: causal where ``mask`` (bool, True = visible) is None.

    Shapes: q ``[B, H, Q, D]``, k and v ``[B, K, S, D]`` with K dividing H, mask broadcastable to ``[B, H, Q, S]``.
    """
    groups = q.shape[1] // k.shape[1]
    if groups > 1:
        k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    if rule.softcap is None:
        # queries and keys come in float32 from rotary embeddings; autocast would round them before the kernel
        if v.device.type == "cpu" and v.dtype == torch.bfloat16 and v.shape[2] <= _SHORT:
            with torch.autocast("cpu", enabled=False):
                return _fused(q.float(), k.float(), v.float(), rule, mask).to(v.dtype)
        return _fused(q, k, v, rule, mask)
    # soft-capped scores (Gemma 2, arXiv 2408.00118, section 2) have no fused kernel here
    if mask is None:
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril()
    scores = rule.softcap * torch.tanh(q @ k.transpose(2, 3) * (rule.scale / rule.softcap))
    return scores.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32).to(q.dtype) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, rule: AttentionParams, mask: Tensor | None) -> Tensor:
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None, scale=rule.scale)
