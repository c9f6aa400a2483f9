"""Generation one prompt at a time with the model's own cache, for architectures that cannot be packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from spintune.engine.encoder_decoder import start_token
from spintune.engine.head import precision
from spintune.engine.logprobs import LogProbEngine
from spintune.generation.protocol import OnToken, Prompt, completion_of, new_sequences
from spintune.generation.sampling import Sampling, choose, penalize
from spintune.records import Completion


class PlainGenerator:
    """One prompt at a time with the model's own cache: for architectures that cannot be packed."""

    def __init__(self, engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> None:
        self.engine, self.model, self.autocast = engine, engine.model, engine.autocast
        self.tokenizer, self.stop_ids = tokenizer, stop_ids

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``, in their order. See :class:`Generator`."""
        completions = []
        for sequence in new_sequences(prompts, sampling, keys):
            call, first = self._reader(sequence.prompt)
            cache: object = None
            unread = first
            while len(sequence.ids) < sampling.max_new_tokens:
                with precision(self.model, self.autocast):
                    output = call(torch.tensor([unread], device=self.model.device), cache)
                cache = getattr(output, "past_key_values", None)
                uniform = torch.tensor([sequence.uniforms[len(sequence.ids)]], dtype=torch.float64)
                logits = penalize(output.logits[:, -1], [sequence.ids], sampling)
                token, logprob = choose(logits, uniform, sampling)
                sequence.ids.append(int(token))
                sequence.logprob += float(logprob)
                # a model without such a cache (Mamba) reads the whole text again
                unread = (int(token),) if cache is not None else (*first, *sequence.ids)
                ended = on_token and on_token(sequence.index, int(token))
                if ended or int(token) in self.stop_ids:
                    break
            completions.append(completion_of(sequence, self.stop_ids, self.tokenizer))
        return completions

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _reader(self, prompt: Prompt) -> tuple[Callable[[Tensor, object], ModelOutput], Prompt]:
        """A call of the model on more ids ``[1, T]`` with its cache, and the ids that it reads first."""
        if not self.model.config.is_encoder_decoder:
            return lambda ids, cache: self.model(input_ids=ids, past_key_values=cache, use_cache=True), prompt
        with precision(self.model, self.autocast):
            states = self.model.get_encoder()(input_ids=torch.tensor([prompt], device=self.model.device))
        return (
            lambda ids, cache: self.model(
                encoder_outputs=states, decoder_input_ids=ids, past_key_values=cache, use_cache=True
            ),
            (start_token(self.model),),
        )
