"""What is minimised: pure functions of log-probabilities, and the objectives that feed them to the training loop.

Shapes: B pairs in a step. All log-probabilities are sums over response tokens, in nats. With the notation of SPIN
(arXiv 2401.01335): r = log p_θ(y|x) - log p_θt(y|x) for the real response, r' the same for the generated one, and the
margin m = r - r'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

from spintune.models.logprobs import LogProbs, Query
from spintune.records import Pair
from spintune.tokens.chat import Row

R = TypeVar("R", contravariant=True)


def logistic(margin_B: Tensor, lambda_: float) -> Tensor:
    """log(1 + exp(-λm)), SPIN's loss (arXiv 2401.01335, eq. 4.7 and section 4.2).

    At the start of an iteration m = 0 and the loss is ln 2 = 0.693147; its slope in m there is -λ/2.
    """
    return softplus(-lambda_ * margin_B)


def hinge(margin_B: Tensor, lambda_: float) -> Tensor:
    """max(0, 1 - λm) (arXiv 2401.01335, section 4.2). 1 at the start; 0 once λm >= 1."""
    return relu(1 - lambda_ * margin_B)


def exponential(margin_B: Tensor, lambda_: float) -> Tensor:
    """exp(-λm) (arXiv 2401.01335, section 4.2). 1 at the start; e for λm = -1."""
    return torch.exp(-lambda_ * margin_B)


def correlation(margin_B: Tensor, lambda_: float) -> Tensor:
    """1 - λm (arXiv 2401.01335, section 4.2): linear, so unbounded below. 1 at the start; 0 for λm = 1."""
    return 1 - lambda_ * margin_B


class MarginLoss(NamedTuple):
    """A loss of the margin, and its known value at m = 0."""

    function: Callable[[Tensor, float], Tensor]
    start: float


MARGIN_LOSSES = {
    "logistic": MarginLoss(logistic, math.log(2)),
    "hinge": MarginLoss(hinge, 1.0),
    "exponential": MarginLoss(exponential, 1.0),
    "correlation": MarginLoss(correlation, 1.0),
}


class Loss(NamedTuple):
    """Sums over the rows of one call; the training loop divides them by the weight of the whole step."""

    total: Tensor
    """Sum to minimise, a differentiable scalar."""
    facts: dict[str, float]
    """Further sums, for the log."""


class Objective(Protocol[R]):
    """What the training loop needs to know about a kind of row."""

    @property
    def start(self) -> float | None:
        """The loss before the first update where theory fixes it, else None."""

    def query(self, row: R) -> Query:
        """What to ask the engine about a row."""

    def weight(self, row: R) -> float:
        """A row's share of the denominator: trained tokens, or 1 for a pair."""

    def __call__(self, rows: Sequence[R], logprobs: LogProbs) -> Loss:
        """The loss of rows whose queries got ``logprobs``."""


class NegativeLogLikelihood:
    """Supervised fine-tuning: minus the log-probability of each trained token, averaged over the tokens of a step."""

    start = None

    def query(self, row: Row) -> Query:
        return Query(row.prompt_ids, (row.response_ids,), (row.trained,))

    def weight(self, row: Row) -> float:
        return sum(row.trained)

    def __call__(self, rows: Sequence[Row], logprobs: LogProbs) -> Loss:
        return Loss(-logprobs.sum_N.sum(), {})


@dataclass(frozen=True)
class SelfPlay:
    """SPIN: one loss for each pair, averaged over the pairs of a step.

    The opponent's log-probabilities come with the pairs; the player's come from the engine.
    """

    loss: str = "logistic"
    lambda_: float = 0.1

    @property
    def start(self) -> float:
        """The player starts as its own opponent: m = 0."""
        return MARGIN_LOSSES[self.loss].start

    def query(self, row: Pair) -> Query:
        return Query(row.prompt_ids, (row.real_ids, row.generated_ids))

    def weight(self, row: Pair) -> float:
        return 1.0

    def __call__(self, rows: Sequence[Pair], logprobs: LogProbs) -> Loss:
        real_B, generated_B = logprobs.sum_N.unflatten(0, (-1, 2)).unbind(1)
        real_ratio_B = real_B - real_B.new_tensor([row.opponent_real for row in rows])
        generated_ratio_B = generated_B - generated_B.new_tensor([row.opponent_generated for row in rows])
        margin_B = real_ratio_B - generated_ratio_B
        with torch.no_grad():
            facts = {
                "real_ratio": real_ratio_B.sum().item(),
                "generated_ratio": generated_ratio_B.sum().item(),
                "margin": margin_B.sum().item(),
                "accuracy": (margin_B > 0).sum().item(),
                "real_logprob": real_B.sum().item(),
                "generated_logprob": generated_B.sum().item(),
            }
        return Loss(MARGIN_LOSSES[self.loss].function(margin_B, self.lambda_).sum(), facts)
