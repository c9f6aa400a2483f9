"""How the next token is chosen: greedy, temperature, top-k, top-p, with one random stream for each prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from spintune.errors import NonFiniteError

_BLOCK = 256


@dataclass(frozen=True)
class Sampling:
    """What to generate. The defaults draw from the model itself, as self-play needs it (y' ~ p_θt)."""

    max_new_tokens: int
    """Tokens, the stop token included."""
    temperature: float = 1.0
    """0 is greedy."""
    top_p: float = 1.0
    """Keep the most likely tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: int = 0
    """Keep this many most likely tokens; 0 keeps all."""
    seed: int = 0
    presence_penalty: float = 0.0
    """Taken off the logit of every token that was written already (OpenAI's definition)."""
    frequency_penalty: float = 0.0
    """Taken off it once for each time that it was written."""

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


def stream_keys(prompts: Sequence[tuple[int, ...]], seed: int) -> list[bytes]:
    """A key for the random stream of each prompt.

    It depends on the seed, the prompt's tokens and how often this prompt came before, so an answer does not depend on
    where its prompt stands in the list.
    """
    seen: Counter[tuple[int, ...]] = Counter()
    keys = []
    for prompt in prompts:
        keys.append(hashlib.sha256(f"{seed}/{seen[prompt]}/{prompt}".encode()).digest()[:16])
        seen[prompt] += 1
    return keys


def uniforms(key: bytes, count: int) -> list[float]:
    """The first ``count`` numbers of a stream, uniform in [0, 1)."""
    random = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return random.random(count).tolist()


def choose(logits_BV: Tensor, uniform_B: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The next token of each row, and its log-probability under the distribution it was drawn from (nats).

    Greedy choices report the model's own log-probability. ``uniform_B`` (float64) decides each draw by inversion of
    the cumulative distribution.
    """
    logits_BV = logits_BV.float()
    if sampling.greedy:
        token_B = logits_BV.argmax(-1)
    else:
        logits_BV = _truncate(logits_BV / sampling.temperature, sampling)
    normaliser_B = torch.logsumexp(logits_BV, -1)
    if not normaliser_B.isfinite().all():
        raise NonFiniteError("the model's scores of the next token are not numbers; it is damaged or has diverged")
    if not sampling.greedy:
        token_B = _invert((logits_BV - normaliser_B[:, None]).exp_(), uniform_B)
    return token_B, logits_BV.gather(1, token_B[:, None])[:, 0] - normaliser_B


def penalise(logits_BV: Tensor, written: Sequence[Sequence[int]], sampling: Sampling) -> Tensor:
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


def _truncate(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """Puts what top-k and top-p leave out at minus infinity. Top-p looks at what top-k kept."""
    if 0 < sampling.top_k < logits_BV.shape[1]:
        kept = logits_BV.topk(sampling.top_k, dim=-1)
        logits_BV = torch.full_like(logits_BV, float("-inf")).scatter(1, kept.indices, kept.values)
    if sampling.top_p < 1:
        ordered = logits_BV.sort(-1, descending=True)
        probability_BV = ordered.values.softmax(-1)
        # a token stays while the ones before it do not yet reach top_p; the first always stays
        before_BV = probability_BV.cumsum(-1) - probability_BV
        values = ordered.values.masked_fill(before_BV >= sampling.top_p, float("-inf"))
        logits_BV = torch.full_like(logits_BV, float("-inf")).scatter(1, ordered.indices, values)
    return logits_BV


def _invert(probability_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Token whose cumulative probability first exceeds the uniform number, in float64.

    First the block of 256 tokens, then the token in it: one pass over the vocabulary instead of a full cumulative sum.
    """
    rows = torch.arange(len(probability_BV), device=probability_BV.device)
    padding = -probability_BV.shape[1] % _BLOCK
    blocks = torch.nn.functional.pad(probability_BV, (0, padding)).unflatten(1, (-1, _BLOCK))
    mass = blocks.sum(-1, dtype=torch.float64)
    block_B, rest_B = _first_above(mass, uniform_B.to(mass.device) * mass.sum(-1))
    token_B, _ = _first_above(blocks[rows, block_B].double(), rest_B)
    return block_B * _BLOCK + token_B


def _first_above(mass_BN: Tensor, target_B: Tensor) -> tuple[Tensor, Tensor]:
    """Index whose cumulative mass first exceeds the target, and what the masses before it leave of the target."""
    cumulative = mass_BN.cumsum(-1)
    # rounding may put the target at the very end; stay just inside, so that an index of zero mass is never chosen
    inside = torch.minimum(target_B, torch.nextafter(cumulative[:, -1], torch.zeros_like(target_B)))
    index_B = torch.searchsorted(cumulative, inside[:, None], right=True)[:, 0]
    before_B = cumulative.gather(1, index_B[:, None])[:, 0] - mass_BN.gather(1, index_B[:, None])[:, 0]
    return index_B, (inside - before_B).clamp(min=0)
