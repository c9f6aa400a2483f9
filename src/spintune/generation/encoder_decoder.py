"""Encoder-decoder models of the T5 kind in continuous batching.

The encoder reads a prompt once, when its sequence starts; the cache then keeps keys and values of the decoder's
cross-attention. Every call of the decoder is the next token of each sequence, at that sequence's own position.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import PreTrainedModel

from spintune.engine.encoder_decoder import PackedEncoderDecoder, PackedPairs, RelativeBias, kind_of, start_token
from spintune.engine.head import head_logits, precision
from spintune.generation.protocol import SequenceState


class EncoderDecoderCache:
    """Keys and values of up to ``slots`` answers and of their prompts; also the layout of one decoder call.

    Slot i belongs to the i-th sequence; sequences fill the slots from 0 without gaps.
    """

    def __init__(self, slots: int, prompt_max_len: int, answer_max_len: int, device: torch.device) -> None:
        self.slots, self.device = slots, device
        self.prompt_max_len, self.answer_max_len = prompt_max_len, answer_max_len
        self.stores: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._positions = torch.zeros(0, dtype=torch.long)
        self._started: list[int] = []
        self._prompt_mask = torch.zeros(0)
        self._bias = RelativeBias()
        self._biases: dict[int, Tensor] = {}

    def plan(self, prompts: Sequence[int], positions: Sequence[int], started: int) -> None:
        """Sets up one call: each answer's next token at its position, the last ``started`` answers being new.

        ``prompts`` are the lengths of the prompts.
        """
        self._positions = torch.tensor(positions, device=self.device)
        self._started = list(prompts[len(prompts) - started :])
        length = torch.tensor(prompts, device=self.device)
        place = torch.arange(max(prompts), device=self.device)
        self._prompt_mask = (place[None, :] < length[:, None])[:, None, None, :]
        self._bias, self._biases = RelativeBias(), {}

    def move(self, source: int, target: int, prompt: int, answer: int) -> None:
        """Copies the first ``prompt`` and ``answer`` positions of one slot over another."""
        for (_, kind), pair in self.stores.items():
            length = prompt if kind == "cross" else answer
            for store in pair:
                store[target, :, :length] = store[source, :, :length]

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        kind, running = kind_of(module), len(self._positions)
        max_len = self.prompt_max_len if kind == "cross" else self.answer_max_len
        keys, values = self._store(module, kind, max_len, k)
        if kind == "cross":
            for slot, length, key, value in self._prefill(running, k, v):
                keys[slot, :, :length], values[slot, :, :length] = key[0], value[0]
            mask = self._prompt_mask
        else:
            slots = torch.arange(running, device=self.device)
            keys[slots, :, self._positions] = k[0].transpose(0, 1)
            values[slots, :, self._positions] = v[0].transpose(0, 1)
            mask = self._answer_bias(module, q.dtype)
        used = mask.shape[-1]
        out_BH1D = scaled_dot_product_attention(
            q[0].transpose(0, 1)[:, :, None],
            keys[:running, :, :used],
            values[:running, :, :used],
            attn_mask=mask,
            scale=1.0,
        )
        return out_BH1D[:, :, 0].transpose(0, 1)[None]

    def _prefill(self, running: int, k: Tensor, v: Tensor) -> list[tuple[int, int, Tensor, Tensor]]:
        """Slot, length, keys and values of each prompt that starts."""
        if not self._started:
            return []
        first = running - len(self._started)
        prompts = zip(self._started, k.split(self._started, 2), v.split(self._started, 2), strict=True)
        return [(first + i, length, key, value) for i, (length, key, value) in enumerate(prompts)]

    def _answer_bias(self, module: nn.Module, dtype: torch.dtype) -> Tensor:
        """Relative bias ``[B, H, 1, S]`` of each sequence's own position, minus infinity after it."""
        # the bias of the last possible position: its distances include those of all other positions
        whole_1H1R = self._bias(module, 1, self.answer_max_len, past=self.answer_max_len - 1)
        if id(whole_1H1R) not in self._biases:
            place = torch.arange(int(self._positions.max()) + 1, device=self.device)
            distance_BS = self._positions[:, None] - place[None, :]
            last = self.answer_max_len - 1
            bias_HBS = whole_1H1R[0, :, 0][:, (last - distance_BS).clamp(max=last)]
            bias_HBS = bias_HBS.masked_fill(distance_BS < 0, float("-inf"))
            self._biases[id(whole_1H1R)] = bias_HBS.transpose(0, 1)[:, :, None].to(dtype)
        return self._biases[id(whole_1H1R)]

    def _store(self, module: nn.Module, kind: str, max_len: int, sample: Tensor) -> tuple[Tensor, Tensor]:
        key = (int(module.layer_idx), kind)  # type: ignore[arg-type]
        if key not in self.stores:
            shape = (self.slots, sample.shape[1], max_len, sample.shape[3])
            empty = (torch.zeros(shape, dtype=sample.dtype, device=sample.device) for _ in range(2))
            self.stores[key] = (next(empty), next(empty))
        return self.stores[key]


class EncoderDecoderRunner:
    """An encoder-decoder model that computes sequences in slots. See :class:`spintune.generation.protocol.Runner`.

    Args:
        prompt_max_len: tokens of the longest prompt.
        answer_max_len: tokens of the longest answer.
        slots: sequences that run at once; fewer when the cache would pass ``cache_bytes``.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        autocast: torch.dtype | None,
        prompt_max_len: int,
        answer_max_len: int,
        slots: int,
        cache_bytes: int,
    ) -> None:
        self.model, self.autocast, self.start = model, autocast, start_token(model)
        self._packed = PackedEncoderDecoder(model)
        config = model.config
        layers = getattr(config, "num_decoder_layers", None) or config.num_layers
        per_slot = (
            2 * layers * config.num_heads * config.d_kv * (prompt_max_len + answer_max_len) * model.dtype.itemsize
        )
        self.slots = max(1, min(slots, cache_bytes // per_slot))
        self._cache = EncoderDecoderCache(self.slots, prompt_max_len, answer_max_len, model.device)

    def forward(self, running: Sequence[SequenceState], started: Sequence[SequenceState]) -> Tensor:
        sequences = [*running, *started]
        lengths = [len(sequence.prompt) for sequence in sequences]
        self._cache.plan(lengths, [len(sequence.ids) for sequence in sequences], len(started))
        ids = [sequence.ids[-1] if sequence.ids else self.start for sequence in sequences]
        device = self.model.device
        with precision(self.model, self.autocast):
            states_1LD = self._states(started)
            hidden_BD = self._packed.decode(torch.tensor([ids], device=device), states_1LD, self._cache)
            return head_logits(self.model, hidden_BD)

    def move(self, source: int, target: int, sequence: SequenceState) -> None:
        self._cache.move(source, target, len(sequence.prompt), len(sequence.ids))

    def _states(self, started: Sequence[SequenceState]) -> Tensor:
        """Encoder states of the prompts that start; without any, a placeholder that no query attends to."""
        if not started:
            return torch.zeros(1, 1, self.model.config.d_model, dtype=self.model.dtype, device=self.model.device)
        ids = torch.tensor([[token for sequence in started for token in sequence.prompt]], device=self.model.device)
        return self._packed.encode(ids, PackedPairs([len(sequence.prompt) for sequence in started], []))
