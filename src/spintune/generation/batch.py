"""Continuous batching: a finished sequence gives its slot to the next prompt at once.

Each step is one call of the model for all running sequences and the prompts that start (:mod:`.decoder`,
:mod:`.encoder_decoder`), then one draw for each.
"""

from __future__ import annotations

import contextlib
import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from spintune.engine.logprobs import LogProbEngine
from spintune.engine.rotary import LengthDependentRotary
from spintune.errors import ModelError
from spintune.generation.decoder import DecoderRunner, cache_width
from spintune.generation.encoder_decoder import EncoderDecoderRunner
from spintune.generation.plain import PlainGenerator
from spintune.generation.protocol import (
    OnToken,
    Prompt,
    Runner,
    SequenceState,
    completion_of,
    new_sequences,
    shared_length,
    tell_of_positions,
)
from spintune.generation.sampling import Sampling, choose, penalize
from spintune.kernels.allocator import kept_memory, reuse_memory
from spintune.kernels.linear import inference_kernels
from spintune.memory import available_memory
from spintune.records import Completion

log = logging.getLogger(__name__)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a cache on ``device`` may take, with what this process has freed and keeps. None: nobody knows."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + kept
    available = available_memory()
    return None if available is None else available + kept_memory()


@dataclass(frozen=True)
class GenerationLimits:
    """What one call of the model may hold. Only speed and memory depend on it.

    Attributes:
        slots: sequences that run at once; fewer when the cache would pass ``cache_megabytes``.
        prefill_tokens: prompt tokens computed beside the running sequences in one call.
        cache_megabytes: for keys and values; a copy of the weights (:func:`inference_kernels`) may take half as much.
            None: a quarter of a GPU's memory, 4096 on a CPU, and of that at most half of what is free.
        fixed_shapes: a decoder-only model computes calls without new prompts in fixed shapes, which a GPU records
            (:class:`GraphReplay`). None: on GPUs.
        free: how many bytes a device has left; None where nobody knows.
    """

    slots: int = 128
    prefill_tokens: int = 1024
    cache_megabytes: int | None = None
    fixed_shapes: bool | None = None
    free: Callable[[torch.device], int | None] = free_memory

    def cache_bytes(self, device: torch.device) -> int:
        """Bytes for keys and values of a model on ``device``."""
        if self.cache_megabytes is not None:
            return self.cache_megabytes * 2**20
        if device.type == "cuda":
            return torch.cuda.get_device_properties(device).total_memory // 2**22 * 2**20
        return 4096 * 2**20

    def affordable_bytes(self, device: torch.device) -> int:
        """:meth:`cache_bytes`, as far as memory is free. Runs with less write the same, fewer answers at once."""
        wanted = self.cache_bytes(device)
        free = self.free(device) if self.cache_megabytes is None else None
        return wanted if free is None else min(wanted, free // 2)


def fitting_slots(slots: int, slot_bytes: int, cache_bytes: int) -> int:
    """How many of ``slots`` sequences run at once, where each keeps ``slot_bytes`` of keys and values."""
    return max(1, min(slots, cache_bytes // slot_bytes))


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
        self._rotary = LengthDependentRotary(engine.model)
        self._alone = PlainGenerator(engine, tokenizer, stop_ids)
        self._cache_width: int | None = None
        self._told = self._told_of_memory = False

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
        sequences = new_sequences(self.model, prompts, sampling, keys)
        reuse_memory()
        # a single row gains nothing from reordered weights
        copy_bytes = self.limits.cache_bytes(self.model.device) // 2 if len(prompts) > 1 else 0
        finished: dict[int, Completion] = {}
        kernels = inference_kernels(self.model, self.autocast, copy_bytes, self.engine.compiled)
        with contextlib.nullcontext() if self.engine.by_layer else kernels:
            for group in self._together(sequences):
                finished.update(self._generate(group, sampling, on_token))
        alone = [sequence for sequence in sequences if sequence.index not in finished]
        if alone and not self._told:
            self._told = True
            self._tell_of_lengths(len(alone), len(sequences))
        for sequence in alone:
            finished[sequence.index] = self._alone.write(sequence, sampling, on_token)
        completions = [finished[sequence.index] for sequence in sequences]
        tell_of_positions(sequences, completions, sampling)
        return completions

    def _together(self, sequences: Sequence[SequenceState]) -> list[list[SequenceState]]:
        """Sequences that may be computed in one call, with what all of them begin with.

        Where rotary frequencies depend on lengths, those that stay on one side of each threshold from the prompt to
        the last token. The others are in no group: each is written alone.
        """
        if self.model.config.is_encoder_decoder:
            return [list(sequences)]
        groups: dict[tuple[int, ...], list[SequenceState]] = defaultdict(list)
        for sequence in sequences:
            side = self._rotary.side(len(sequence.prompt))
            if side == self._rotary.side(len(sequence.prompt) + sequence.max_len - 1):
                groups[side].append(sequence)
        for side, group in groups.items():
            # a prefix is read in a call of its own, as short as it is
            shared = 0 if any(side) else shared_length([sequence.prompt for sequence in group])
            for sequence in group:
                sequence.shared = shared
        return list(groups.values())

    def _generate(
        self, sequences: Sequence[SequenceState], sampling: Sampling, on_token: OnToken | None
    ) -> dict[int, Completion]:
        self._rotary.forget()
        # popped from the end, so the longest start first and sequences of similar length share groups of slots
        waiting = sorted(sequences, key=lambda sequence: (len(sequence.prompt), -sequence.index))
        longest = max(len(sequence.prompt) - sequence.shared for sequence in sequences)
        runner = self._runner(longest, sampling.max_new_tokens, min(len(sequences), self.limits.slots))
        running: list[SequenceState] = []
        finished: dict[int, Completion] = {}
        while running or waiting:
            started = self._admit(waiting, runner.slots - len(running))
            logits = runner.forward(running, started)
            running.extend(started)
            self._extend(running, logits, sampling, on_token)
            self._retire(running, runner, finished)
        return finished

    def _tell_of_lengths(self, alone: int, all_: int) -> None:
        again = "for every token beyond" if self._rotary.grows() else "when it crosses"
        log.warning(
            "%d of %d answers may cross %s tokens, where the model's rotary frequencies change: each is written alone, "
            "and its whole text is read again %s, which is several times slower; shorter prompts or a lower "
            "max_new_tokens avoid it",
            alone,
            all_,
            ", ".join(map(str, self._rotary.thresholds())),
            again,
        )

    def decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=True)

    def _runner(self, prompt_max_len: int, answer_max_len: int, slots: int) -> Runner:
        device = self.model.device
        cache_bytes = self.limits.affordable_bytes(device)
        if self.model.config.is_encoder_decoder:
            runner: Runner = EncoderDecoderRunner(
                self.model, self.autocast, prompt_max_len, answer_max_len, slots, cache_bytes
            )
        else:
            fixed = device.type == "cuda" if self.limits.fixed_shapes is None else self.limits.fixed_shapes
            fixed = fixed and not self.engine.by_layer  # a recording holds no gathering
            if self._cache_width is None:
                self._cache_width = cache_width(self.model)
            max_len = prompt_max_len + answer_max_len
            fitting = fitting_slots(slots, self._cache_width * max_len * self.model.dtype.itemsize, cache_bytes)
            runner = DecoderRunner(self.model, self.autocast, max_len, fitting, fixed)
        if runner.slots < slots and cache_bytes < self.limits.cache_bytes(device) and not self._told_of_memory:
            self._told_of_memory = True
            log.warning(
                "memory is short: %d MB are left for keys and values, so %d answers are written at once and not %d, "
                "which is slower; what is written stays the same",
                cache_bytes // 2**20,
                runner.slots,
                slots,
            )
        return runner

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

    def _retire(self, running: list[SequenceState], runner: Runner, finished: dict[int, Completion]) -> None:
        """Removes finished sequences; the last running one moves into each gap."""
        for slot in reversed(range(len(running))):
            sequence = running[slot]
            full = len(sequence.ids) == sequence.max_len
            if not (full or sequence.ended or sequence.ids[-1] in self.stop_ids):
                continue
            finished[sequence.index] = completion_of(sequence, self.stop_ids, self.tokenizer)
            last = running.pop()
            if slot < len(running):
                running[slot] = last
                runner.move(len(running), slot, last)
