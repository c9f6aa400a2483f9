"""Queries, the log-probabilities that answer them, and the model interface that the engine computes them with."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

T = TypeVar("T")


@dataclass(frozen=True)
class Query:
    """One prompt and the responses to score.

    Attributes:
        scored: ``scored[j][i]`` says whether token i of response j counts; None: all do.
        whole: a decoder-only model reads every token of every response. With False it skips the last token of each,
            which predicts nothing, and reads only once what responses have in common before it. Choices of one token
            then cost nothing, and a response may end one token after the model's last position.
    """

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    scored: tuple[tuple[bool, ...], ...] | None = None
    whole: bool = True

    @property
    def continuations(self) -> tuple[tuple[int, ...], ...]:
        """The sequences that a decoder-only model reads after the prompt."""
        if self.whole:
            return self.responses
        return tuple(dict.fromkeys(response[:-1] for response in self.responses if len(response) > 1))

    @property
    def tokens(self) -> int:
        """Number of tokens that the model reads: the prompt once, and every response."""
        return len(self.prompt) + sum(map(len, self.continuations))

    @property
    def counted(self) -> tuple[tuple[bool, ...], ...]:
        """For each response, whether each of its tokens counts."""
        return self.scored or tuple((True,) * len(response) for response in self.responses)


class LogProbs(NamedTuple):
    """Log-probabilities of N responses, in the order of the queries and of the responses within each."""

    sum_N: Tensor
    """Summed log-probability of each response's scored tokens, in nats, differentiable; at least float32."""
    count_N: Tensor
    """Number of scored tokens of each response."""
    token_M: Tensor
    """Log-probability of every scored token, responses one after the other."""


class Backbone(Protocol):
    """A stock transformers model below its head, as the engine sees it."""

    def packing(self) -> AbstractContextManager[None]:
        """Inside, the model's layers attend in packed rows; outside, as its owner loaded it."""

    def hidden(self, queries: Sequence[Query]) -> Tensor:
        """Hidden states ``[M, D]`` from which the head predicts each counted token of all responses; one packed call.

        Enters :meth:`packing` for its own length.
        """

    def logits(self, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
        """Logits ``[len(response), V]`` of each token of a response, from an ordinary call of the whole model."""


def pack(items: Sequence[T], tokens: Callable[[T], int], budget: int) -> list[list[T]]:
    """Cuts a sequence, in order, into runs of about equal token counts that stay near ``budget`` tokens.

    A run exceeds the budget by at most half its first and half its last item. Equal runs beat full ones, because a
    short last run would waste a call.
    """
    if not items:
        return []
    total = sum(map(tokens, items))
    target = total / max(1, math.ceil(total / budget))
    runs: list[list[T]] = [[]]
    filled = 0.0
    for item in items:
        # an item goes where its middle falls
        middle = filled + tokens(item) / 2
        if runs[-1] and middle > target * len(runs):
            runs.append([])
        runs[-1].append(item)
        filled += tokens(item)
    return runs
