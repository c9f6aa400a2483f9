"""Objectives: which log-probabilities of a row the training loop asks for, and the loss computed from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from spintune.engine.query import LogProbs, Query
from spintune.recipe.losses import LOSSES
from spintune.records import Pair
from spintune.tokens.rows import TokenRow
from spintune.training.losses import mixed_reference

R = TypeVar("R", contravariant=True)


class LossSum(NamedTuple):
    """Sums over the rows of one call; the training loop divides them by the weight of the whole step."""

    total: Tensor
    """The loss, a differentiable scalar."""
    facts: dict[str, float]
    """Other sums, for the log."""


class Objective(Protocol[R]):
    """The loss of one kind of row, as the training loop sees it."""

    def query(self, row: R) -> Query:
        """The log-probabilities that the loss of a row needs."""

    def weight(self, row: R) -> float:
        """A row's weight in the mean: its trained tokens, or the weight of a pair."""

    def initial_logprobs(self, rows: Sequence[R]) -> LogProbs | None:
        """The log-probabilities of the rows before the first update; None where they are not known."""

    def __call__(self, rows: Sequence[R], logprobs: LogProbs) -> LossSum:
        """The loss of rows, given the log-probabilities of their queries."""


class NegativeLogLikelihood:
    """Supervised fine-tuning: the negative log-likelihood of the trained tokens, averaged over those of a step."""

    def query(self, row: TokenRow) -> Query:
        return Query(row.prompt_ids, (row.response_ids,), (row.trained,))

    def weight(self, row: TokenRow) -> float:
        return sum(row.trained)

    def initial_logprobs(self, rows: Sequence[TokenRow]) -> None:
        return None

    def __call__(self, rows: Sequence[TokenRow], logprobs: LogProbs) -> LossSum:
        return LossSum(-logprobs.sum_N.sum(), {})


@dataclass(frozen=True)
class SelfPlay:
    """SPIN and related methods: the player learns to prefer real answers to generated ones.

    A pair has one real and one or more generated answers. Each generated answer forms a duel with the real one. The
    loss of a pair is the mean over its duels, plus γ times the negative log-likelihood per token of the real answer.
    The loss of a step is the weighted mean over its pairs. The opponent's log-probabilities come with the pairs, the
    player's from the engine.

    Attributes:
        loss: name of a registered loss (:mod:`spintune.recipe.losses`).
        lambda_: scale of ratios and margins.
        mu: weight of generated answers in SPACE.
        shift: b of the GSIL losses.
        history_weight: β_h of T-SPIN.
        reference_mixture: α of α-SPIN, the share of iterate 0 in the reference.
        length_normalize: use log-probabilities per token instead of sums.
        gamma: γ, weight of the likelihood term.
    """

    loss: str = "logistic"
    lambda_: float = 0.1
    mu: float = 1.0
    shift: float = 0.0
    history_weight: float = 0.0
    reference_mixture: float = 0.0
    length_normalize: bool = False
    gamma: float = 0.0

    def query(self, row: Pair) -> Query:
        return Query(row.prompt_ids, tuple(answer.ids for answer in row.answers))

    def weight(self, row: Pair) -> float:
        return row.weight

    def initial_logprobs(self, rows: Sequence[Pair]) -> LogProbs:
        """Those of the opponent, which the player starts as."""
        scores = [_known(answer.opponent) for row in rows for answer in row.answers]
        sum_N = torch.tensor(scores, dtype=torch.float64)
        count_N = torch.tensor([len(answer.ids) for row in rows for answer in row.answers])
        return LogProbs(sum_N, count_N, sum_N)

    def start(self, rows: Sequence[Pair]) -> float:
        """The mean loss of a player that equals its opponent: ln 2 for the logistic loss."""
        return self(rows, self.initial_logprobs(rows)).total.item() / math.fsum(map(self.weight, rows))

    def __call__(self, rows: Sequence[Pair], logprobs: LogProbs) -> LossSum:
        sum_N = logprobs.sum_N
        duels = _Duels.of(rows, sum_N)
        player, ratio = duels.sides(sum_N), duels.sides(sum_N - self._reference(rows, sum_N))
        tokens = duels.sides(logprobs.count_N.to(sum_N))
        facts = duels.facts(player, ratio)
        if self.length_normalize:
            player, ratio = player.over(tokens), ratio.over(tokens)
        loss_D = self._of_duels(player, ratio)
        if self.gamma:
            loss_D = loss_D - self.gamma * duels.sides(sum_N).real_D / tokens.real_D
        return LossSum((duels.weight_D * loss_D).sum(), facts)

    def _of_duels(self, player: _Sides, ratio: _Sides) -> Tensor:
        loss = LOSSES[self.loss]
        options = {name: getattr(self, name) for name in loss.options}
        match loss.kind:
            case "margin":
                return loss.compute(ratio.real_D - ratio.generated_D, self.lambda_, **options)
            case "ratios":
                return loss.compute(ratio.real_D, ratio.generated_D, self.lambda_, **options)
            case "likelihoods":
                return loss.compute(*player, self.lambda_, **options)

    def _reference(self, rows: Sequence[Pair], like: Tensor) -> Tensor:
        """Log-probability of each answer under the reference of the ratios."""
        answers = [answer for row in rows for answer in row.answers]
        opponent_N = like.new_tensor([_known(answer.opponent) for answer in answers])
        if not self.reference_mixture:
            return opponent_N
        base_N = like.new_tensor([_known(answer.base) for answer in answers])
        return mixed_reference(opponent_N, base_N, self.reference_mixture)


def _known(score: float | None) -> float:
    if score is None:
        raise ValueError("an answer of this pair was not scored")
    return score


class _Sides(NamedTuple):
    """One number per duel for the real answer, the generated one, and iterate 0's where there is one."""

    real_D: Tensor
    generated_D: Tensor
    first_D: Tensor | None

    def over(self, tokens: _Sides) -> _Sides:
        first_D = None if self.first_D is None or tokens.first_D is None else self.first_D / tokens.first_D
        return _Sides(self.real_D / tokens.real_D, self.generated_D / tokens.generated_D, first_D)


class _Duels(NamedTuple):
    """Indices of the answers of each duel, among the N answers of some pairs, and the weight of the duel."""

    real_D: Tensor
    generated_D: Tensor
    first_D: Tensor | None
    weight_D: Tensor

    @classmethod
    def of(cls, rows: Sequence[Pair], like: Tensor) -> _Duels:
        """The duels of pairs; weights get the data type and device of ``like``."""
        members: list[tuple[int, int, int]] = []
        weights: list[float] = []
        place = 0
        for row in rows:
            count = len(row.generated)
            members += [(place, place + j, place + 1 + count) for j in range(1, 1 + count)]
            weights += [row.weight / count] * count
            place += len(row.answers)
        real_D, generated_D, first_D = torch.tensor(members, device=like.device).unbind(1)
        has_first = {row.first is not None for row in rows}
        if len(has_first) > 1:
            raise ValueError("some pairs have iterate 0's answer and others do not")
        return cls(real_D, generated_D, first_D if True in has_first else None, like.new_tensor(weights))

    def sides(self, value_N: Tensor) -> _Sides:
        first_D = None if self.first_D is None else value_N[self.first_D]
        return _Sides(value_N[self.real_D], value_N[self.generated_D], first_D)

    @torch.no_grad()
    def facts(self, player: _Sides, ratio: _Sides) -> dict[str, float]:
        """Weighted sums over the duels; log-probabilities are in nats per answer."""
        margin_D = ratio.real_D - ratio.generated_D
        columns = {
            "real_ratio": ratio.real_D,
            "generated_ratio": ratio.generated_D,
            "margin": margin_D,
            "accuracy": (margin_D > 0).to(margin_D),
            "real_logprob": player.real_D,
            "generated_logprob": player.generated_D,
        }
        return {name: (self.weight_D * value_D).sum().item() for name, value_D in columns.items()}
