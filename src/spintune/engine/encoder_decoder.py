"""Encoder-decoder models of the T5 kind (T5, T5 1.1, FLAN-T5, mT5, UMT5) over packed rows, inside stock transformers.

Both sides are packed end to end, each into one row without padding::

    encoder   p p p | q q             every prompt once, whatever its number of responses
    decoder   s a a | s b | s c c     the start token and all but the last token of every response (a and b answer p)

A response's tokens see the start token, the response up to themselves, and the encoder states of their own prompt.
Relative position bias depends on distances alone, so each segment gets the bias that it would get in a row of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from spintune.engine.attention import AttentionSwitch, record
from spintune.engine.query import Query
from spintune.errors import ModelError

NAME = "spintune_seq2seq"

AttentionKind = Literal["encoder", "decoder", "cross"]


class EncoderDecoderLayout(Protocol):
    """Which token of a packed row sees which, in each of the three kinds of attention."""

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        """Queries ``[1, H, T, D]``, already scaled, keys and values ``[1, H, S, D]`` to outputs ``[1, H, T, D]``."""


def kind_of(module: nn.Module) -> AttentionKind:
    """The kind of attention that a module computes."""
    if not module.is_decoder:
        return "encoder"
    return "decoder" if module.is_causal else "cross"


class RelativeBias:
    """Relative position bias as the model itself computes it, cached for one packed row.

    T5's first layer owns the bias of its whole stack; every layer of UMT5 has its own.
    """

    def __init__(self) -> None:
        self._owners: dict[AttentionKind, nn.Module] = {}
        self._cached: dict[tuple[int, int, int, int], Tensor] = {}

    def __call__(self, module: nn.Module, queries: int, keys: int, past: int = 0) -> Tensor:
        """Bias ``[1, H, queries, keys]`` for queries at positions ``past``, ``past`` + 1, ..."""
        kind = kind_of(module)
        if hasattr(module, "relative_attention_bias"):
            self._owners[kind] = module
        owner = self._owners[kind]
        key = (id(owner), queries, keys, past)
        if key not in self._cached:
            # the class's method: the instance's is switched off
            self._cached[key] = type(owner).compute_bias(owner, queries, keys, past_seen_tokens=past)  # type: ignore[attr-defined]
        return self._cached[key]


@dataclass
class PackedPairs:
    """Prompts and their responses, packed; each segment attends by itself.

    Attributes:
        prompts: length of each prompt.
        responses: lengths of the responses to each prompt.
    """

    prompts: Sequence[int]
    responses: Sequence[Sequence[int]]
    bias: RelativeBias = field(default_factory=RelativeBias)
    _causal: dict[tuple[int, int], Tensor] = field(default_factory=dict)

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, dropout: float) -> Tensor:
        kind = kind_of(module)
        if kind == "cross":  # all responses to a prompt see all of it, so they are one block of queries
            seeing, seen = [sum(lengths) for lengths in self.responses], list(self.prompts)
        else:
            seeing = list(self.prompts) if kind == "encoder" else [n for lengths in self.responses for n in lengths]
            seen = seeing
        # split, not slices: its backward is one concatenation instead of a zero-filled row for each segment
        segments = zip(q.split(seeing, 2), k.split(seen, 2), v.split(seen, 2), strict=True)
        return torch.cat([biased_attention(*qkv, self._bias(module, kind, qkv[0]), dropout) for qkv in segments], 2)

    def _bias(self, module: nn.Module, kind: AttentionKind, q: Tensor) -> Tensor | None:
        if kind == "cross":
            return None
        length = q.shape[2]
        bias = self.bias(module, length, length)
        if kind == "encoder" or length < 2:
            return bias
        key = (id(bias), length)
        if key not in self._causal:
            future = torch.ones(length, length, dtype=torch.bool, device=bias.device).triu(1)
            self._causal[key] = bias.masked_fill(future, float("-inf"))
        return self._causal[key]


def biased_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float) -> Tensor:
    """Attention of one segment with an additive ``bias``, minus infinity where a query must not see a key.

    Written out because the bias is trained: scaled_dot_product_attention has no fused kernel for that on a CPU, and its
    unfused one takes a fifth longer (measured, segments of 16 to 1024 tokens, forward and backward).
    """
    scores = q @ k.transpose(2, 3)
    if bias is not None:
        scores = scores + bias
    weights = nn.functional.dropout(scores.softmax(-1), dropout, training=dropout > 0)
    return weights.to(v.dtype) @ v


class PackedEncoderDecoder:
    """Encoder and decoder of a model of the T5 kind, called on packed rows."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self._attention = AttentionSwitch(model, NAME)
        self._with_bias = [module for module in model.modules() if hasattr(module, "relative_attention_bias")]

    @contextmanager
    def switch(self) -> Iterator[None]:
        """Inside, calls of the encoder and of the decoder take a ``layout=`` argument; see :class:`AttentionSwitch`."""
        before = [vars(module).get("compute_bias") for module in self._with_bias]
        with self._attention():
            for module in self._with_bias:
                # over a whole packed row it would be quadratic; the layout asks for segments
                vars(module)["compute_bias"] = _no_bias
            try:
                yield
            finally:
                for module, own in zip(self._with_bias, before, strict=True):
                    del vars(module)["compute_bias"]
                    if own is not None:
                        vars(module)["compute_bias"] = own

    def encode(self, ids_1L: Tensor, layout: EncoderDecoderLayout) -> Tensor:
        """Encoder states ``[1, L, D]`` of packed prompts."""
        with self.switch():
            return self.model.get_encoder()(input_ids=ids_1L, layout=layout).last_hidden_state

    def decode(self, ids_1T: Tensor, states_1LD: Tensor, layout: EncoderDecoderLayout) -> Tensor:
        """The hidden states that the head reads, ``[T, D]``, at each packed decoder position."""
        decoder = self.model.get_decoder()
        with self.switch():
            hidden = decoder(input_ids=ids_1T, encoder_hidden_states=states_1LD, layout=layout, use_cache=False)
        return (hidden.last_hidden_state * _output_scale(self.model.config))[0]


class EncoderDecoderBackbone:
    """An encoder-decoder model as the engine sees it. See :class:`spintune.engine.query.Backbone`.

    Raises ModelError when the model does not say which token its decoder starts with.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.start = start_token(model)
        self._packed = PackedEncoderDecoder(model)

    def packing(self) -> AbstractContextManager[None]:
        return self._packed.switch()

    def hidden(self, queries: Sequence[Query]) -> Tensor:
        """Runs the encoder once per prompt, the decoder once per response."""
        device = self.model.device
        prompts = [token for query in queries for token in query.prompt]
        responses = [response for query in queries for response in query.responses]
        inputs = [token for response in responses for token in (self.start, *response)[: len(response)]]
        counts = [counts for query in queries for scored in query.counted for counts in scored]
        layout = PackedPairs(
            [len(query.prompt) for query in queries], [[*map(len, query.responses)] for query in queries]
        )
        states_1LD = self._packed.encode(torch.tensor([prompts], device=device), layout)
        hidden_TD = self._packed.decode(torch.tensor([inputs], device=device), states_1LD, layout)
        places = [place for place, counted in enumerate(counts) if counted]
        return hidden_TD.index_select(0, torch.tensor(places, dtype=torch.long, device=device))

    def logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        device = self.model.device
        return self.model(
            input_ids=torch.tensor([list(prompt)], device=device),
            decoder_input_ids=torch.tensor([[self.start, *response[:-1]]], device=device),
            use_cache=False,
        ).logits[0]


def start_token(model: PreTrainedModel) -> int:
    """The id that a decoder reads first; T5 uses its padding token. Raises ModelError when the model names none."""
    for config in (model.config, model.generation_config):
        start = getattr(config, "decoder_start_token_id", None)
        if start is not None:
            return int(start)
    raise ModelError(f"{type(model).__name__}: config.json has no decoder_start_token_id, with which a decoder begins")


def _output_scale(config: PreTrainedConfig) -> float:
    """T5 multiplies the decoder's output by d_model ** -0.5, T5 1.1 does not.

    For T5, transformers has that in ``scale_decoder_outputs``, which it derives from ``tie_word_embeddings``. UMT5
    looks at ``tie_word_embeddings`` itself, and mT5 never scales.
    """
    scales = getattr(config, "scale_decoder_outputs", config.model_type == "umt5" and config.tie_word_embeddings)
    return config.d_model**-0.5 if scales else 1.0


def _layout_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: EncoderDecoderLayout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    if layout is None:
        raise ModelError("attention in packed rows needs a layout; call the model outside of them")
    record(module)
    if scaling != 1:
        query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    return layout.attend(module, query, key, value, dropout).transpose(1, 2), None


AttentionInterface.register(NAME, _layout_attention)


def _no_bias(*_: object, device: torch.device | None = None, **__: object) -> Tensor:
    return torch.zeros(0, device=device)
