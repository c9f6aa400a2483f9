"""Writes completions: continuous batching over stock transformers models, with a preallocated key-value cache.

Every call of a decoder-only model is one packed row: the next token of each running sequence, then the prompts of the
sequences that start, without what all prompts have in common: that was read once, before. (Encoder-decoder models:
``seq2seq_generation.py``.) A finished sequence gives its place to the next prompt at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spintune.models.attention import Layout
from spintune.models.logprobs import LogProbEngine, head_logits, precision
from spintune.models.memory import keep_freed_memory
from spintune.models.products import fast_linears
from spintune.models.replay import Replay
from spintune.models.sampling import Sampling, choose, penalise, stream_keys, uniforms
from spintune.models.seq2seq import start_token
from spintune.models.seq2seq_generation import Seq2SeqDecoding
from spintune.models.slots import SlotCache
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


def build_generator(engine: LogProbEngine, tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int]) -> Generator:
    """The fastest generator that is right for the engine's model."""
    if not engine.packed:
        return PlainGenerator(engine.model, tokenizer, stop_ids, engine.autocast)
    device = engine.model.device
    room = torch.cuda.get_device_properties(device).total_memory // 2**22 if device.type == "cuda" else 4096
    return BatchGenerator(
        engine.model, tokenizer, stop_ids, engine.autocast, cache_megabytes=room, compiled=engine.compiled
    )


@dataclass
class Running:
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


class Decoding(Protocol):
    """A model at work on sequences in slots, with a cache of what it has read."""

    slots: int
    """Sequences that run at once."""

    def forward(self, running: Sequence[Running], started: Sequence[Running]) -> Tensor:
        """Next-token logits of running sequences, then of those that start in the slots behind them."""

    def move(self, source: int, target: int, sequence: Running) -> None:
        """Gives the sequence of one slot another slot, whose own sequence is finished."""


class DecoderDecoding:
    """Decoder-only models: every call is one packed row.

    Args:
        room: tokens of the longest prompt, without those that all share, and answer together.
        slots: sequences that run at once; fewer when the cache would pass ``cache_bytes``.
        fixed: calls without new prompts have the same shapes every time, and are recorded on a GPU.
    """

    def __init__(
        self, model: PreTrainedModel, autocast: torch.dtype | None, room: int, slots: int, cache_bytes: int, fixed: bool
    ) -> None:
        self.model, self.autocast = model, autocast
        config = model.config.get_text_config()
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        per_slot = 2 * config.num_hidden_layers * heads * width * room * model.dtype.itemsize
        self.slots = max(1, min(slots, cache_bytes // per_slot))
        self._cache = SlotCache(self.slots, room, model.device)
        self._replay = Replay(self._one_more, self.slots, room, model.device) if fixed else None

    def forward(self, running: Sequence[Running], started: Sequence[Running]) -> Tensor:
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
        """Logits ``[S, V]`` of one more token in every slot. Nothing here waits for a GPU."""
        self._cache.plan_all(lengths_S, used)
        with precision(self.model, self.autocast):
            return head_logits(self.model, self._read(ids_S, positions_S, self._cache))

    def _hidden(self, ids: Sequence[int], positions: Sequence[int], layout: Layout) -> Tensor:
        device = self.model.device
        return self._read(torch.tensor(ids, device=device), torch.tensor(positions, device=device), layout)

    def _read(self, ids_T: Tensor, positions_T: Tensor, layout: Layout) -> Tensor:
        hidden = self.model.base_model(
            input_ids=ids_T[None], position_ids=positions_T[None], layout=layout, use_cache=False
        )
        return hidden.last_hidden_state[0]

    def move(self, source: int, target: int, sequence: Running) -> None:
        self._cache.move(source, target, sequence.cached)


class BatchGenerator:
    """Continuous batching for models that take layouts.

    Args:
        stop_ids: tokens that end a completion.
        slots: sequences that run at once; fewer when the cache would pass ``cache_megabytes``.
        prefill_tokens: prompt tokens computed beside the running sequences in one call.
        cache_megabytes: for keys and values; a copy of the weights (see :func:`fast_linears`) may take half as much.
        fixed: decoder-only models compute calls without new prompts in fixed shapes, recorded on a GPU
            (:class:`Replay`); None: on GPUs.
        compiled: layers between the products go through torch.compile, for GPUs.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        autocast: torch.dtype | None = None,
        slots: int = 128,
        prefill_tokens: int = 1024,
        cache_megabytes: int = 4096,
        fixed: bool | None = None,
        compiled: bool = False,
    ) -> None:
        self.compiled = compiled
        self.fixed = model.device.type == "cuda" if fixed is None else fixed
        self.model, self.tokenizer, self.stop_ids, self.autocast = model, tokenizer, stop_ids, autocast
        self.slots, self.prefill_tokens, self.cache_bytes = slots, prefill_tokens, cache_megabytes * 2**20

    @torch.inference_mode()
    def generate(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        keys: Sequence[bytes] | None = None,
        on_token: OnToken | None = None,
    ) -> list[Completion]:
        """Completions of ``prompts``, in their order. See :class:`Generator`."""
        if not prompts or sampling.max_new_tokens < 1:
            return [Completion((), "", "length", 0.0) for _ in prompts]
        if not all(prompts):
            raise ValueError("a prompt needs at least one token to predict from")
        keep_freed_memory()
        # for a single row the weights' own order is as good
        copy_bytes = self.cache_bytes // 2 if len(prompts) > 1 else 0
        with fast_linears(self.model, self.autocast, copy_bytes, self.compiled):
            return self._generate(_sequences(prompts, sampling, keys), sampling, on_token)

    def _generate(self, sequences: Sequence[Running], sampling: Sampling, on_token: OnToken | None) -> list[Completion]:
        if not self.model.config.is_encoder_decoder:
            shared = shared_length([sequence.prompt for sequence in sequences])
            for sequence in sequences:
                sequence.shared = shared
        # taken from the end, the longest first: sequences of like length stand beside each other in the cache
        waiting = sorted(sequences, key=lambda sequence: (len(sequence.prompt), -sequence.index))
        longest = max(len(sequence.prompt) - sequence.shared for sequence in sequences)
        decoding = self._decoding(longest, sampling.max_new_tokens, min(len(sequences), self.slots))
        running: list[Running] = []
        finished: list[Completion | None] = [None] * len(sequences)
        while running or waiting:
            started = self._admit(waiting, decoding.slots - len(running))
            logits = decoding.forward(running, started)
            running.extend(started)
            self._extend(running, logits, sampling, on_token)
            self._retire(running, decoding, sampling, finished)
        return [completion for completion in finished if completion is not None]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _decoding(self, longest_prompt: int, longest_answer: int, slots: int) -> Decoding:
        if self.model.config.is_encoder_decoder:
            return Seq2SeqDecoding(self.model, self.autocast, longest_prompt, longest_answer, slots, self.cache_bytes)
        room = longest_prompt + longest_answer
        return DecoderDecoding(self.model, self.autocast, room, slots, self.cache_bytes, self.fixed)

    def _admit(self, waiting: list[Running], free: int) -> list[Running]:
        """Takes the next prompts that fit into the free slots and into one call."""
        started: list[Running] = []
        tokens = 0
        while waiting and len(started) < free:
            tokens += len(waiting[-1].prompt) - waiting[-1].shared
            if started and tokens > self.prefill_tokens:
                break
            started.append(waiting.pop())
        return started

    def _extend(self, running: list[Running], logits: Tensor, sampling: Sampling, on_token: OnToken | None) -> None:
        uniforms = torch.tensor([s.uniforms[len(s.ids)] for s in running], dtype=torch.float64)
        tokens, logprobs = choose(penalise(logits, [s.ids for s in running], sampling), uniforms, sampling)
        for sequence, token, logprob in zip(running, tokens.tolist(), logprobs.tolist(), strict=True):
            sequence.ids.append(token)
            sequence.logprob += logprob
            if on_token and on_token(sequence.index, token):
                sequence.ended = True

    def _retire(
        self, running: list[Running], decoding: Decoding, sampling: Sampling, finished: list[Completion | None]
    ) -> None:
        """Takes finished sequences out; the last running one moves into each gap."""
        for slot in reversed(range(len(running))):
            sequence = running[slot]
            full = len(sequence.ids) == sampling.max_new_tokens
            if not (full or sequence.ended or sequence.ids[-1] in self.stop_ids):
                continue
            finished[sequence.index] = _completion(sequence, self.stop_ids, self.tokenizer)
            last = running.pop()
            if slot < len(running):
                running[slot] = last
                decoding.move(len(running), slot, last)


class PlainGenerator:
    """One prompt at a time with the model's own cache: for architectures that cannot be packed."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        autocast: torch.dtype | None = None,
    ) -> None:
        self.model, self.tokenizer, self.stop_ids, self.autocast = model, tokenizer, stop_ids, autocast

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
        for sequence in _sequences(prompts, sampling, keys):
            call, begin = self._reader(sequence.prompt)
            cache: Any = None
            unread = begin
            while len(sequence.ids) < sampling.max_new_tokens:
                with precision(self.model, self.autocast):
                    output = call(torch.tensor([unread], device=self.model.device), cache)
                cache = getattr(output, "past_key_values", None)
                uniform = torch.tensor([sequence.uniforms[len(sequence.ids)]], dtype=torch.float64)
                logits = penalise(output.logits[:, -1], [sequence.ids], sampling)
                token, logprob = choose(logits, uniform, sampling)
                sequence.ids.append(int(token))
                sequence.logprob += float(logprob)
                # a model that keeps its state elsewhere (Mamba) reads the whole text again
                unread = (int(token),) if cache is not None else (*begin, *sequence.ids)
                ended = on_token and on_token(sequence.index, int(token))
                if ended or int(token) in self.stop_ids:
                    break
            completions.append(_completion(sequence, self.stop_ids, self.tokenizer))
        return completions

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _reader(self, prompt: Prompt) -> tuple[Callable[[Tensor, Any], Any], Prompt]:
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


def shared_length(prompts: Sequence[Prompt]) -> int:
    """Tokens that several prompts all begin with, short of the whole of one."""
    if len(prompts) == 1:
        return 0
    # the first and the last in the order of a dictionary differ no later than any two
    first, last = min(prompts), max(prompts)
    alike = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(first, last, strict=False))
    return min(sum(1 for _ in alike), min(map(len, prompts)) - 1)


def _sequences(prompts: Sequence[Prompt], sampling: Sampling, keys: Sequence[bytes] | None) -> list[Running]:
    keys = stream_keys(prompts, sampling.seed) if keys is None else keys
    return [
        Running(index, prompt, uniforms(key, sampling.max_new_tokens))
        for index, (prompt, key) in enumerate(zip(prompts, keys, strict=True))
    ]


def _completion(sequence: Running, stop_ids: frozenset[int], tokenizer: PreTrainedTokenizerBase) -> Completion:
    stopped = bool(sequence.ids) and sequence.ids[-1] in stop_ids
    written = sequence.ids[:-1] if stopped else sequence.ids
    return Completion(
        ids=tuple(sequence.ids),
        text=tokenizer.decode(written, skip_special_tokens=True),
        finish_reason="stop" if stopped else "length",
        logprob=sequence.logprob,
    )
