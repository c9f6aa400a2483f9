"""Prompts and their responses packed into one row: which token sees which, and how attention computes that cheaply."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from spintune.engine.attention import AttentionParams, attention
from spintune.kernels.native.attention import AttentionPlan, attend_segments, can_attend

_BLOCK = 512
"""Keys that torch's fused CPU kernel takes at a time; it computes shorter causal rows in full."""


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
        """The position of each token."""
        positions = list(range(self.prompt))
        for response in self.responses:
            positions.extend(range(self.prompt, self.prompt + response))
        return positions

    def visible(self, window: int | None) -> Tensor:
        """Bool ``[length, length]``: may the token of a row see the token of a column?"""
        # owner 0 is the prompt; a token sees owner 0 and its own owner, at positions up to its own
        owner = torch.repeat_interleave(torch.tensor([self.prompt, *self.responses]), output_size=self.length)
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


def causal_segments(groups: Sequence[PromptGroup]) -> list[list[CausalSegment]]:
    """Causal segments of each group: its prompt with the first response, then every other response."""
    found, begin = [], 0
    for group in groups:
        first, *others = group.responses or (0,)
        own = [CausalSegment(begin, group.prompt + first, begin, 0)]
        for response in others:
            own.append(CausalSegment(own[-1].begin + own[-1].tokens, response, begin, group.prompt))
        found.append(own)
        begin += group.length
    return found


@dataclass(frozen=True)
class Segment:
    """Responses of a group that attend in one call, to the prompt and to themselves.

    Attributes:
        responses: their lengths.
        with_prompt: the call computes the prompt's queries too. Attention is then plainly causal, so it needs no mask
            and skips what is not seen. The prompt's own outputs come from the first segment only.
    """

    responses: tuple[int, ...]
    with_prompt: bool


def segments(group: PromptGroup) -> list[Segment]:
    """Cuts a group into calls of attention that waste little.

    A single call would multiply all tokens of all siblings only to mask them: two to three times the necessary work
    where responses are longer than the prompt. So only the first response goes with the prompt. Short responses share
    a call up to P tokens, and see P + R tokens each. A long response goes with the prompt's queries, because causal
    kernels then skip about half, though never less than a block.
    """
    first, *others = group.responses or (0,)
    found = [Segment((first,), True)]
    for response in others:
        if response >= group.prompt and group.prompt + response > _BLOCK:
            found.append(Segment((response,), True))
        elif not found[-1].with_prompt and sum(found[-1].responses) + response < group.prompt:
            found[-1] = Segment((*found[-1].responses, response), False)
        else:
            found.append(Segment((response,), False))
    return found


@dataclass
class PackedLayout:
    """Prompt groups packed end to end into one row; each attends by itself, so nothing is padded.

    On a CPU with compiled code, one call computes everything (``kernels.native``). Elsewhere torch's fused attention
    runs once per segment.
    """

    groups: Sequence[PromptGroup]
    device: torch.device
    _masks: dict[tuple[int, Segment, int | None], Tensor | None] = field(default_factory=dict)
    _plan: AttentionPlan | None = None

    def __post_init__(self) -> None:
        self._segments = [segments(group) for group in self.groups]
        self._lengths = [
            (0 if number else group.prompt) + sum(segment.responses)
            for group, found in zip(self.groups, self._segments, strict=True)
            for number, segment in enumerate(found)
        ]

    def positions(self) -> Tensor:
        """Position ids ``[1, T]``."""
        return torch.tensor([[p for group in self.groups for p in group.positions()]], device=self.device)

    def attend(self, layer: Hashable, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        if params.fused and can_attend(q, k, v):
            self._plan = self._plan or AttentionPlan(causal_segments(self.groups))
            return attend_segments(q, k, v, self._plan, params.scale, params.window)
        return self._attend_segments(q, k, v, params)

    def _attend_segments(self, q: Tensor, k: Tensor, v: Tensor, params: AttentionParams) -> Tensor:
        # split, not slices: its backward is one concatenation instead of a zero-filled row for each segment
        parts = zip(q.split(self._lengths, 2), k.split(self._lengths, 2), v.split(self._lengths, 2), strict=True)
        outputs = []
        for group, found in zip(self.groups, self._segments, strict=True):
            first = next(parts)
            outputs.append(attention(*first, params, self._mask(group.prompt, found[0], params.window)))
            prompt = [x[:, :, : group.prompt] for x in first]
            for segment in found[1:]:
                own = next(parts)
                keys, values = (torch.cat([prompt[i], own[i]], 2) for i in (1, 2))
                queries = torch.cat([prompt[0], own[0]], 2) if segment.with_prompt else own[0]
                output = attention(queries, keys, values, params, self._mask(group.prompt, segment, params.window))
                outputs.append(output[:, :, group.prompt :] if segment.with_prompt else output)
        return torch.cat(outputs, dim=2)

    def _mask(self, prompt: int, segment: Segment, window: int | None) -> Tensor | None:
        """What the queries of a segment see; None where it is plainly causal."""
        if window is not None and window >= prompt + max(segment.responses):
            window = None
        if window is None and segment.with_prompt:
            return None
        key = (prompt, segment, window)
        if key not in self._masks:
            visible = PromptGroup(prompt, segment.responses).visible(window)
            self._masks[key] = (visible if segment.with_prompt else visible[prompt:]).to(self.device)
        return self._masks[key]
