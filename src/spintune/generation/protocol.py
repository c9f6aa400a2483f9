"""What generators have in common: prompts in, completions out, and a sequence on its way."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spintune.generation.sampling import Sampling, stream_keys, uniforms
from spintune.records import Completion

Prompt = tuple[int, ...]


OnToken = Callable[[int, int], bool | None]
"""Called with the index of a prompt and each token written for it, the stop token included; True ends it there."""


class Generator(Protocol):
    """Writes one completion for each prompt, in the order of the prompts."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``. ``keys`` are their random streams (default: :func:`stream_keys`)."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without control tokens."""


@dataclass
class SequenceState:
    """One prompt on its way: what was written so far, and the numbers that decide its draws."""

    index: int
    prompt: Prompt
    uniforms: list[float]
    shared: int = 0
    """Tokens that all prompts begin with."""
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    ended: bool = False

    @property
    def cached(self) -> int:
        """Tokens in its slot: all that was read behind the shared ones; the last one written is not."""
        return len(self.prompt) - self.shared + len(self.ids) - 1


class Runner(Protocol):
    """A model at work on sequences in slots, with a cache of what it has read."""

    slots: int
    """Sequences that run at once."""

    def forward(self, running: Sequence[SequenceState], started: Sequence[SequenceState]) -> Tensor:
        """Next-token logits of running sequences, then of those that start in the slots behind them."""

    def move(self, source: int, target: int, sequence: SequenceState) -> None:
        """Gives the sequence of one slot another slot, whose own sequence is finished."""


def shared_length(prompts: Sequence[Prompt]) -> int:
    """Tokens that several prompts all begin with, short of the whole of one."""
    if len(prompts) == 1:
        return 0
    # the first and the last in the order of a dictionary differ no later than any two
    first, last = min(prompts), max(prompts)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def new_sequences(prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[bytes] | None) -> list[SequenceState]:
    keys = stream_keys(prompts, sampling.seed) if keys is None else keys
    return [
        SequenceState(index, prompt, uniforms(key, sampling.max_new_tokens))
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]


def completion_of(sequence: SequenceState, stop_ids: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    stopped = bool(sequence.ids) and sequence.ids[-1] in stop_ids
    written = sequence.ids[:-1] if stopped else sequence.ids
    return Completion(
        ids=tuple(sequence.ids),
        text=tokenizer.decode(written, skip_special_tokens=True),
        finish_reason="stop" if stopped else "length",
        logprob=sequence.logprob,
    )
