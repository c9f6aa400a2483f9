"""How the next token is chosen: greedy, temperature, top-k, top-p, with one random stream for each prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from spintune.errors import NonFiniteError
from spintune.streams import numpy_stream, stream_key

_BLOCK = 256
_CANDIDATES, _GROWTH = 256, 8
"""Top-p looks at this many tokens first, and at this many times more while their probability does not reach it."""


@dataclass(frozen=True)
class Sampling:
    """Sampling settings. The defaults draw from the model's own distribution, as self-play needs (y' ~ p_θt)."""

    max_new_tokens: int
    """Stop token included."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the most likely tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    seed: int = 0
    presence_penalty: float = 0.0
    """Subtracted from the logit of every token that was already written (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Subtracted once for each time that the token was written."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def stream_keys(prompts: Sequence[tuple[int, ...]], seed: int) -> list[bytes]:
    """A key for the random stream of each prompt.

    It depends on the seed, the prompt's tokens and how often the same prompt came before, so that an answer does not
    depend on the order of the prompts.
    """
    return StreamKeys(prompts, seed)[:]


class StreamKeys:
    """The keys of :func:`stream_keys`, 16 bytes each."""

    def __init__(self, prompts: Iterable[tuple[int, ...]], seed: int) -> None:
        seen: Counter[bytes] = Counter()
        self._keys = bytearray()
        self._size = len(stream_key(""))
        for prompt in prompts:
            text = str(prompt)
            known = stream_key(text)  # smaller than the prompt
            self._keys += stream_key(f"{seed}/{seen[known]}/{text}")
            seen[known] += 1

    def __getitem__(self, part: slice) -> list[bytes]:
        places = range(len(self._keys) // self._size)[part]
        return [bytes(self._keys[place * self._size : (place + 1) * self._size]) for place in places]


def uniforms(key: bytes, count: int) -> list[float]:
    """The first ``count`` numbers of a stream, uniform in [0, 1)."""
    return numpy_stream(key).random(count).tolist()


def choose(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The next token of each row, and its log-probability (nats) under the distribution it was drawn from.

    Greedy choices report the model's own log-probability. ``uniform_B`` (float64) decides each draw by inverting the
    cumulative distribution.
    """
    logits_BC, ids_BC = logits_BV.float(), None
    if not sampling.greedy:
        logits_BC, ids_BC = _kept(logits_BC / sampling.temperature, sampling)
    probability_BC = logits_BC.softmax(-1)
    # one non-finite score makes its whole row NaN
    if not probability_BC[:, 0].isfinite().all():
        raise NonFiniteError("the model's scores of the next token are not numbers; it is damaged or has diverged")
    choice_B = logits_BC.argmax(-1) if sampling.greedy else _invert(probability_BC, uniform_B)
    logprob_B = probability_BC.gather(1, choice_B[:, None])[:, 0].log()
    return choice_B if ids_BC is None else ids_BC.gather(1, choice_B[:, None])[:, 0], logprob_B


def penalize(logits_BV: Tensor, written: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
    """The logits of each row after the penalties for what it has written so far."""
    if not sampling.presence_penalty and not sampling.frequency_penalty:
        return logits_BV
    logits_BV = logits_BV.float()
    for row, ids in enumerate(written):
        counts = Counter(ids)
        if counts:
            tokens = torch.tensor(list(counts), device=logits_BV.device)
            times = torch.tensor(list(counts.values()), device=logits_BV.device)
            logits_BV[row, tokens] -= sampling.presence_penalty + sampling.frequency_penalty * times
    return logits_BV


def _kept(logits_BV: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor | None]:
    """Logits that top-k and top-p keep, with their tokens in the order of the vocabulary (None: the whole vocabulary).

    Top-p applies to what top-k kept. Candidates that it drops are set to minus infinity.
    """
    vocabulary = logits_BV.shape[1]
    limit = min(sampling.top_k or vocabulary, vocabulary)
    if sampling.top_p < 1:
        logits_BC, ids_BC = _nucleus(logits_BV, limit, sampling.top_p)
    elif limit < vocabulary:
        logits_BC, ids_BC = logits_BV.topk(limit)
    else:
        return logits_BV, None
    ids_BC, order_BC = ids_BC.sort(-1)
    return logits_BC.gather(1, order_BC), ids_BC


def _nucleus(logits_BV: Tensor, limit: int, top_p: float) -> tuple[Tensor, Tensor]:
    """The likeliest tokens, ``limit`` at most, until their probability reaches ``top_p``, without a full sort."""
    among_BV = logits_BV if limit == logits_BV.shape[1] else logits_BV.topk(limit).values
    whole_B1 = among_BV.logsumexp(-1, keepdim=True)
    count = min(_CANDIDATES, limit)
    while True:
        logits_BC, ids_BC = logits_BV.topk(count)
        probability_BC = (logits_BC - whole_B1).exp()
        # a token stays while the ones before it do not yet reach top_p; the first always stays
        out_BC = probability_BC.cumsum(-1) - probability_BC >= top_p
        if count == limit or out_BC[:, -1].all():
            return logits_BC.masked_fill(out_BC, float("-inf")), ids_BC
        count = min(_GROWTH * count, limit)


def _invert(probability_BC: Tensor, uniform_B: Tensor) -> Tensor:
    """Index whose cumulative probability first exceeds the uniform number, in float64.

    Finds the block of 256 first, then the index in it: one pass over the vocabulary instead of a full cumulative sum.
    """
    if probability_BC.device.type == "mps":  # which has no float64
        return _invert(probability_BC.cpu(), uniform_B).to(probability_BC.device)
    rows = torch.arange(len(probability_BC), device=probability_BC.device)
    padding = -probability_BC.shape[1] % _BLOCK
    if padding:  # pad copies even where there is nothing to add
        probability_BC = torch.nn.functional.pad(probability_BC, (0, padding))
    blocks = probability_BC.unflatten(1, (-1, _BLOCK))
    mass_BN = blocks.sum(-1).double()
    block_B, rest_B = _first_above(mass_BN, uniform_B.to(mass_BN.device) * mass_BN.sum(-1))
    place_B, _ = _first_above(blocks[rows, block_B].double(), rest_B)
    return block_B * _BLOCK + place_B


def _first_above(mass_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Index whose cumulative mass first exceeds the target, and the target less the masses before that index."""
    cumulative = mass_BN.cumsum(-1)
    # rounding may put the target at the very end; staying just inside never chooses an index without mass
    inside = torch.minimum(target_B, torch.nextafter(cumulative[:, -1], torch.zeros_like(target_B)))
    index_B = torch.searchsorted(cumulative, inside[:, None], right=True)[:, 0]
    before_B = cumulative.gather(1, index_B[:, None])[:, 0] - mass_BN.gather(1, index_B[:, None])[:, 0]
    return index_B, (inside - before_B).clamp(min=0)
