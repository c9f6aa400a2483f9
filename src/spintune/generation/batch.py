"""Continuous batching: a finished sequence gives its slot to the next prompt at once.

Each step is one call of the model for all running sequences and the prompts that start (:mod:`.decoder`,
:mod:`.encoder_decoder`), then one draw for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.errors import ModelError
from spintune.generation.decoder import DecoderRunner
from spintune.generation.encoder_decoder import EncoderDecoderRunner
from spintune.generation.protocol import (
    OnToken,
    Prompt,
    Runner,
    SequenceState,
    completion_of,
    new_sequences,
    shared_length,
)
from spintune.generation.sampling import Sampling, choose, penalize
from spintune.kernels.allocator import tune_malloc
from spintune.kernels.linear import inference_kernels
from spintune.records import Completion


@dataclass(frozen=True)
class GenerationLimits:
    """What one call of the model may hold. Only speed and memory depend on it.

    Attributes:
        slots: sequences that run at once; fewer when the cache would pass ``cache_megabytes``.
        prefill_tokens: prompt tokens computed beside the running sequences in one call.
        cache_megabytes: for keys and values; a copy of the weights (:func:`inference_kernels`) may take half as much.
            None: a quarter of a GPU's memory, 4096 on a CPU.
        fixed_shapes: a decoder-only model computes calls without new prompts in fixed shapes, which a GPU records
            (:class:`GraphReplay`). None: on GPUs.
    """

    slots: int = 128
    prefill_tokens: int = 1024
    cache_megabytes: int | None = None
    fixed_shapes: bool | None = None

    def cache_bytes(self, device: torch.device) -> int:
        """Bytes for keys and values of a model on ``device``."""
        if self.cache_megabytes is not None:
            return self.cache_megabytes * 2**20
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory // 2**22 * 2**20
        return 4096 * 2**20


class BatchGenerator:
    """Continuous batching for models that can be packed.

    Args:
        engine: an engine of the model, which has checked that packing is exact.
        stop_ids: tokens that end a completion.

    Raises:
        ModelError: the engine's model cannot be packed; :class:`PlainGenerator` takes it.
    """

    def __init__(
        self,
        engine: LogProbEngine,
        tokenizer: PreTrainedTokenizerBase,
        stop_ids: frozenset[int],
        limits: GenerationLimits = GenerationLimits(),
    ) -> None:
        if not engine.packed:
            name = type(engine.model).__name__
            raise ModelError(f"{name} cannot be packed, so it cannot generate in batches; use PlainGenerator")
        self.engine, self.model, self.autocast = engine, engine.model, engine.autocast
        self.tokenizer, self.stop_ids, self.limits = tokenizer, stop_ids, limits

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
        tune_malloc()
        # a single row gains nothing from reordered weights
        copy_bytes = self.limits.cache_bytes(self.model.device) // 2 if len(prompts) > 1 else 0
        with inference_kernels(self.model, self.autocast, copy_bytes, self.engine.compiled):
            return self._generate(new_sequences(prompts, sampling, keys), sampling, on_token)

    def _generate(
        self, sequences: Sequence[SequenceState], sampling: Sampling, on_token: OnToken | None
    ) -> list[Completion]:
        if not self.model.config.is_encoder_decoder:
            shared = shared_length([sequence.prompt for sequence in sequences])
            for sequence in sequences:
                sequence.shared = shared
        # popped from the end, so the longest start first and sequences of similar length share groups of slots
        waiting = sorted(sequences, key=lambda sequence: (len(sequence.prompt), -sequence.index))
        longest = max(len(sequence.prompt) - sequence.shared for sequence in sequences)
        runner = self._runner(longest, sampling.max_new_tokens, min(len(sequences), self.limits.slots))
        running: list[SequenceState] = []
        finished: list[Completion | None] = [None] * len(sequences)
        while running or waiting:
            started = self._admit(waiting, runner.slots - len(running))
            logits = runner.forward(running, started)
            running.extend(started)
            self._extend(running, logits, sampling, on_token)
            self._retire(running, runner, sampling, finished)
        return [completion for completion in finished if completion is not None]

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _runner(self, prompt_max_len: int, answer_max_len: int, slots: int) -> Runner:
        device = self.model.device
        cache_bytes = self.limits.cache_bytes(device)
        if self.model.config.is_encoder_decoder:
            return EncoderDecoderRunner(self.model, self.autocast, prompt_max_len, answer_max_len, slots, cache_bytes)
        fixed = device.type == "cuda" if self.limits.fixed_shapes is None else self.limits.fixed_shapes
        return DecoderRunner(self.model, self.autocast, prompt_max_len + answer_max_len, slots, cache_bytes, fixed)

    def _admit(self, waiting: list[SequenceState], free: int) -> list[SequenceState]:
        """Takes the next prompts that fit into the free slots and into one call."""
        started: list[SequenceState] = []
        tokens = 0
        while waiting and len(started) < free:
            tokens += len(waiting[-1].prompt) - waiting[-1].shared
            if started and tokens > self.limits.prefill_tokens:
                break
            started.append(waiting.pop())
        return started

    def _extend(
        self, running: list[SequenceState], logits: Tensor, sampling: Sampling, on_token: OnToken | None
    ) -> None:
        uniforms = torch.tensor([s.uniforms[len(s.ids)] for s in running], dtype=torch.float64)
        tokens, logprobs = choose(penalize(logits, [s.ids for s in running], sampling), uniforms, sampling)
        for sequence, token, logprob in zip(running, tokens.tolist(), logprobs.tolist(), strict=True):
            sequence.ids.append(token)
            sequence.logprob += logprob
            if on_token and on_token(sequence.index, token):
                sequence.ended = True

    def _retire(
        self, running: list[SequenceState], runner: Runner, sampling: Sampling, finished: list[Completion | None]
    ) -> None:
        """Removes finished sequences; the last running one moves into each gap."""
        for slot in reversed(range(len(running))):
            sequence = running[slot]
            full = len(sequence.ids) == sampling.max_new_tokens
            if not (full or sequence.ended or sequence.ids[-1] in self.stop_ids):
                continue
            finished[sequence.index] = completion_of(sequence, self.stop_ids, self.tokenizer)
            last = running.pop()
            if slot < len(running):
                running[slot] = last
                runner.move(len(running), slot, last)
