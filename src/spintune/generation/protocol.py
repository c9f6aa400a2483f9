"""What a generator guarantees, what a runner computes for it, and the state of a sequence that is being written."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spintune.engine.positions import position_limit
from spintune.errors import ModelError
from spintune.generation.sampling import Sampling, stream_keys, uniforms
from spintune.records import Completion

log = logging.getLogger(__name__)

Prompt = tuple[int, ...]

OnToken = Callable[[int, int], bool | None]
"""Receives the index of a prompt and each token written for it, stop token included. True ends the completion there."""


class Generator(Protocol):
    """Writes one completion for each prompt.

    Every generator guarantees:

    - A completion depends on its prompt, the sampling settings and its key alone: not on the other prompts, on their
      order, or on how many are computed at once.
    - ``ids`` holds every token drawn, at most ``sampling.max_new_tokens``. A stop token ends them, is among them,
      and makes ``finish_reason`` "stop"; otherwise it is "length", also where the model has no further position.
      ``text`` leaves out the stop token.
    - ``logprob`` is the sum of the tokens' log-probabilities in nats under the distribution they were drawn from. At
      temperature 1, without top-k, top-p and penalties, it equals the engine's score to rounding; self-play checks it.
    - The model comes out as it went in: same weights, same attention.
    """

    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``, in their order.

        Args:
            keys: the random stream of each prompt, 16 bytes; by default those of :func:`stream_keys`.
            on_token: called for each token as it is drawn.

        Raises ValueError for a prompt without tokens, NonFiniteError when the model's scores are not numbers.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens, without control tokens."""


@dataclass
class SequenceState:
    """A sequence that is being written: its prompt, the tokens so far, and the numbers that decide its draws."""

    index: int
    prompt: Prompt
    uniforms: list[float]
    shared: int = 0
    """Number of tokens that all prompts begin with."""
    max_len: int = 0
    """Number of tokens that it may get: those asked for, or as many as the model still has positions for."""
    ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    ended: bool = False

    @property
    def cached(self) -> int:
        """Number of tokens in its slot: all that were read after the shared ones. The last one written was not read."""
        return len(self.prompt) - self.shared + len(self.ids) - 1


class Runner(Protocol):
    """A model that computes sequences in slots, with a cache of the keys and values that it has read."""

    slots: int
    """Number of sequences that run at once."""

    def forward(self, running: Sequence[SequenceState], started: Sequence[SequenceState]) -> Tensor:
        """Next-token logits ``[B, V]`` of running sequences, then of those that start in the slots after them."""

    def move(self, source: int, target: int, sequence: SequenceState) -> None:
        """Moves a sequence to another slot, whose own sequence is finished."""


def shared_length(prompts: Sequence[Prompt]) -> int:
    """Number of tokens that all of several prompts begin with, less than the whole of any."""
    if len(prompts) == 1:
        return 0
    # in lexicographic order the first and the last prompt differ no later than any two
    first, last = min(prompts), max(prompts)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def new_sequences(
    model: PreTrainedModel, prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[bytes] | None
) -> list[SequenceState]:
    """A sequence for each prompt, with the random numbers of its key.

    Raises ModelError for a prompt that leaves no position for an answer, ValueError for one without tokens.
    """
    if not all(prompts):
        raise ValueError("a prompt needs at least one token to predict from")
    keys = stream_keys(prompts, sampling.seed) if keys is None else keys
    limit = position_limit(model)
    return [
        SequenceState(
            index, prompt, uniforms(key, sampling.max_new_tokens), max_len=_max_len(model, prompt, sampling, limit)
        )
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]


def _max_len(model: PreTrainedModel, prompt: Prompt, sampling: Sampling, limit: int | None) -> int:
    if limit is None:
        return sampling.max_new_tokens
    room = limit if model.config.is_encoder_decoder else limit - len(prompt)
    if len(prompt) > limit or room < 1:
        raise ModelError(
            f"a prompt of {len(prompt)} tokens leaves no position for an answer: {type(model).__name__} has {limit}; "
            "shorten it"
        )
    return min(sampling.max_new_tokens, room)


def tell_of_positions(
    sequences: Sequence[SequenceState], completions: Sequence[Completion], sampling: Sampling
) -> None:
    """Says how many answers ended because the model has no further position."""
    cut = sum(
        len(sequence.ids) == sequence.max_len < sampling.max_new_tokens and completion.finish_reason == "length"
        for sequence, completion in zip(sequences, completions, strict=True)
    )
    if cut:
        log.warning(
            "%d of %d answers end at the model's last position, before max_new_tokens (%d)",
            cut,
            len(sequences),
            sampling.max_new_tokens,
        )


def completion_of(sequence: SequenceState, stop_ids: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    """The completion of a sequence that ended."""
    stopped = bool(sequence.ids) and sequence.ids[-1] in stop_ids
    written = sequence.ids[:-1] if stopped else sequence.ids
    return Completion(
        ids=tuple(sequence.ids),
        text=tokenizer.decode(written, skip_special_tokens=True),
        finish_reason="stop" if stopped else "length",
        logprob=sequence.logprob,
    )
