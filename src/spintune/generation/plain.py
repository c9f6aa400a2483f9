"""Generation one prompt at a time, for architectures that cannot be packed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from spintune.engine.encoder_decoder import start_token
from spintune.engine.head import precision
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.rotary import LengthDependentRotary
from spintune.generation.protocol import (
    OnToken,
    Prompt,
    SequenceState,
    completion_of,
    new_sequences,
    tell_of_positions,
)
from spintune.generation.sampling import Sampling, choose, penalize
from spintune.records import Completion

NextLogits = Callable[[Sequence[int]], Tensor]
"""Logits ``[1, V]`` of the token after those written so far. Each call has one more of them."""


class PlainGenerator:
    """One prompt at a time: for architectures that cannot be packed.

    Args:
        cached: keep what was read in the model's own cache. False reads the whole text again for every token, which is
            the definition of what a model writes, and slow.
    """

    def __init__(
        self,
        engine: LogProbEngine,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        cached: bool = True,
    ) -> None:
        self.engine, self.model, self.autocast = engine, engine.model, engine.autocast
        self.tokenizer, self.stop_ids, self.cached = tokenizer, stop_ids, cached
        self._rotary = LengthDependentRotary(engine.model)
        self._takes_positions = "position_ids" in inspect.signature(engine.model.forward).parameters

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``, in their order. See :class:`Generator`."""
        sequences = new_sequences(self.model, prompts, sampling, keys)
        completions = [self.write(sequence, sampling, on_token) for sequence in sequences]
        tell_of_positions(sequences, completions, sampling)
        return completions

    def write(self, sequence: SequenceState, sampling: Sampling, on_token: OnToken | None) -> Completion:
        """Writes one sequence to its end."""
        definition = self._definition(sequence.prompt)
        cached = self._reader(sequence.prompt) if self.cached else definition
        while len(sequence.ids) < sequence.max_len:
            next_logits = cached if self._begins_alike(sequence) else definition
            with precision(self.model, self.autocast):
                logits = next_logits(sequence.ids)
            uniform = torch.tensor([sequence.uniforms[len(sequence.ids)]], dtype=torch.float64)
            token, logprob = choose(penalize(logits, [sequence.ids], sampling), uniform, sampling)
            sequence.ids.append(int(token))
            sequence.logprob += float(logprob)
            ended = on_token and on_token(sequence.index, int(token))
            if ended or int(token) in self.stop_ids:
                break
        return completion_of(sequence, self.stop_ids, self.tokenizer)

    def _begins_alike(self, sequence: SequenceState) -> bool:
        """Whether what was read is as in a row of its own: see :attr:`LogProbEngine.row_limit`."""
        limit = self.engine.row_limit
        before = 1 if self.model.config.is_encoder_decoder else len(sequence.prompt)
        return limit is None or before + len(sequence.ids) <= limit

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _definition(self, prompt: Prompt) -> NextLogits:
        """A forward of the whole text without a cache for every token."""
        # the last of a response is not read, so any token may stand there
        return lambda ids: self.engine.backbone.logits(prompt, (*ids, 0))[-1:]

    def _reader(self, prompt: Prompt) -> NextLogits:
        """Reads with the model's own cache, and from the beginning when a length changes the rotary frequencies."""
        call, first = self._call(prompt)
        cache: object = None
        read, side = 0, self._rotary.side(len(first))

        def next_logits(ids: Sequence[int]) -> Tensor:
            nonlocal cache, read, side
            text = (*first, *ids)
            if self._rotary.side(len(text)) != side:
                cache, read, side = None, 0, self._rotary.side(len(text))
            if not read:
                self._rotary.forget()
            output = call(torch.tensor([text[read:]], device=self.model.device), cache, read)
            cache = getattr(output, "past_key_values", None)
            # a model without such a cache (Mamba) reads the whole text again
            read = 0 if cache is None else len(text)
            return output.logits[:, -1]

        return next_logits

    def _call(self, prompt: Prompt) -> tuple[Callable[[Tensor, object, int], ModelOutput], Prompt]:
        """A call of the model on more ids ``[1, T]`` after those in its cache, and the ids that it reads first."""
        if not self.model.config.is_encoder_decoder:
            return self._more, prompt
        with precision(self.model, self.autocast):
            states = self.model.get_encoder()(input_ids=torch.tensor([prompt], device=self.model.device))
        return (
            lambda ids, cache, _: self.model(
                encoder_outputs=states, decoder_input_ids=ids, past_key_values=cache, use_cache=True
            ),
            (start_token(self.model),),
        )

    def _more(self, ids_1T: Tensor, cache: object, read: int) -> ModelOutput:
        positions: dict[str, Tensor] = {}
        if self._takes_positions:  # some models count from 0 again without (MiniMax)
            positions["position_ids"] = torch.arange(read, read + ids_1T.shape[1], device=ids_1T.device)[None]
        return self.model(input_ids=ids_1T, past_key_values=cache, use_cache=True, **positions)
