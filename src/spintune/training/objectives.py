"""Objectives: what the training loop asks the engine about a row, and the loss it makes of the answer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from spintune.engine.query import LogProbs, Query
from spintune.recipe import losses
from spintune.records import Pair
from spintune.tokens.rows import TokenRow
from spintune.training.losses import mixed_reference

R = TypeVar("R", contravariant=True)


class LossSum(NamedTuple):
    """Sums over the rows of one call; the training loop divides them by the weight of the whole step."""

    total: Tensor
    """Sum to minimise, a differentiable scalar."""
    facts: dict[str, float]
    """Further sums, for the log."""


class Objective(Protocol[R]):
    """What the training loop needs to know about a kind of row."""

    def query(self, row: R) -> Query:
        """What to ask the engine about a row."""

    def weight(self, row: R) -> float:
        """A row's share of the denominator: trained tokens, or 1 for a pair."""

    def initial_logprobs(self, rows: Sequence[R]) -> LogProbs | None:
        """The log-probabilities of rows before the first update, where they are known, else None."""

    def __call__(self, rows: Sequence[R], logprobs: LogProbs) -> LossSum:
        """The loss of rows whose queries got ``logprobs``."""


class NegativeLogLikelihood:
    """Supervised fine-tuning: minus the log-probability of each trained token, averaged over the tokens of a step."""

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
    """SPIN and its relatives: the player learns to tell real answers from generated ones.

    Every generated answer of a pair is a duel with the real one; the pair's loss is the mean over its duels, plus
    γ times the negative log-likelihood of the real answer a token. A step's loss is the mean over its pairs, by their
    weights. The opponent's log-probabilities come with the pairs, the player's from the engine.

    Attributes:
        loss: name of a registered loss (:mod:`spintune.recipe.losses`).
        lambda_: factor of ratios and margins.
        mu: weight of generated answers in SPACE.
        shift: b of the GSIL losses.
        history_weight: β_h of T-SPIN.
        reference_mixture: α of α-SPIN, the share of iterate 0 in the reference.
        length_normalize: log-probabilities a token instead of sums.
        gamma: weight of the likelihood term.
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
        """The player starts as its own opponent."""
        scores = [_known(answer.opponent) for row in rows for answer in row.answers]
        sum_N = torch.tensor(scores, dtype=torch.float64)
        count_N = torch.tensor([len(answer.ids) for row in rows for answer in row.answers])
        return LogProbs(sum_N, count_N, sum_N)

    def start(self, rows: Sequence[Pair]) -> float:
        """The mean loss of a player that equals its opponent, ln 2 for SPIN's own."""
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
        loss = losses.get(self.loss)
        options = {name: getattr(self, name) for name in loss.options}
        match loss.kind:
            case "margin":
                return loss.compute(ratio.real_D - ratio.generated_D, self.lambda_, **options)
            case "ratios":
                return loss.compute(ratio.real_D, ratio.generated_D, self.lambda_, **options)
            case "likelihoods":
                return loss.compute(*player, self.lambda_, **options)

    def _reference(self, rows: Sequence[Pair], like: Tensor) -> Tensor:
        """Log-probability of each answer under what ratios are taken against."""
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
    """One number for each duel: of the real answer, the generated one, and iterate 0's where there is one."""

    real_D: Tensor
    generated_D: Tensor
    first_D: Tensor | None

    def over(self, tokens: _Sides) -> _Sides:
        first_D = None if self.first_D is None or tokens.first_D is None else self.first_D / tokens.first_D
        return _Sides(self.real_D / tokens.real_D, self.generated_D / tokens.generated_D, first_D)


class _Duels(NamedTuple):
    """Which of the N answers of some pairs meet in each duel, and the duel's weight."""

    real_D: Tensor
    generated_D: Tensor
    first_D: Tensor | None
    weight_D: Tensor

    @classmethod
    def of(cls, rows: Sequence[Pair], like: Tensor) -> _Duels:
        """Weights get the type and device of ``like``."""
        meetings: list[tuple[int, int, int]] = []
        weights: list[float] = []
        place = 0
        for row in rows:
            count = len(row.generated)
            meetings += [(place, place + j, place + 1 + count) for j in range(1, 1 + count)]
            weights += [row.weight / count] * count
            place += len(row.answers)
        real_D, generated_D, first_D = torch.tensor(meetings, device=like.device).unbind(1)
        looking_back = {row.first is not None for row in rows}
        if len(looking_back) > 1:
            raise ValueError("some pairs have iterate 0's answer and others do not")
        return cls(real_D, generated_D, first_D if True in looking_back else None, like.new_tensor(weights))

    def sides(self, value_N: Tensor) -> _Sides:
        first_D = None if self.first_D is None else value_N[self.first_D]
        return _Sides(value_N[self.real_D], value_N[self.generated_D], first_D)

    @torch.no_grad()
    def facts(self, player: _Sides, ratio: _Sides) -> dict[str, float]:
        """Weighted sums over the duels, log-probabilities in nats an answer."""
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
