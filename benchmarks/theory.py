"""What self-play adds to SFT, in a world where every expectation is exact: the numbers of a page of the documentation.

    python benchmarks/theory.py

One prompt and six answers. The player is a table of logits in float64, the opponent is its start, and every pair
(y, y') counts as often as it is drawn, p_data(y) p_t(y'). The losses are those that spintune trains with. It prints the
tables of docs/explanation/what-self-play-adds.md; a few seconds on any machine.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from spintune.engine.query import LogProbs
from spintune.records import Answer, Pair
from spintune.training.objectives import SelfPlay

DATA = torch.tensor([0.40, 0.25, 0.15, 0.10, 0.07, 0.03], dtype=torch.float64)
OPPONENT = torch.tensor([0.20, 0.20, 0.22, 0.18, 0.10, 0.10], dtype=torch.float64)
"""p_data and p_t: a model that knows which answers there are, and spreads them too evenly."""

PLACES = (0.0, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Places on the way p_t (p_data/p_t)^s: 0 is the opponent, 1 the data, and 1/λ where the optimum of an iteration is."""


def normalized(weight_A: Tensor) -> Tensor:
    return weight_A / weight_A.sum()


def on_the_way(place: float) -> Tensor:
    """The player at a place: p_t (p_data/p_t)^place, normalized."""
    return normalized(OPPONENT * (DATA / OPPONENT) ** place)


def kl(p_A: Tensor, q_A: Tensor) -> float:
    """KL(p || q) in nats."""
    return float((p_A * (p_A / q_A).log()).sum())


def pairs() -> list[Pair]:
    """Every pair of a real and a generated answer, weighted by its probability, with the opponent's scores."""
    answers = [Answer((y,), str(y), True, opponent=score) for y, score in enumerate(OPPONENT.log().tolist())]
    return [
        Pair("prompt", (0,), real, (generated,), weight=float(DATA[real.ids[0]] * OPPONENT[generated.ids[0]]))
        for real, generated in itertools.product(answers, repeat=2)
    ]


PAIRS = pairs()


def self_play_loss(objective: SelfPlay, logit_A: Tensor) -> Tensor:
    """The expected loss of an objective."""
    places = [answer.ids[0] for pair in PAIRS for answer in pair.answers]
    sum_N = logit_A.log_softmax(-1)[torch.tensor(places)]
    return objective(PAIRS, LogProbs(sum_N, torch.ones(len(places), dtype=torch.long), sum_N)).total


def sft_loss(logit_A: Tensor) -> Tensor:
    """The expected negative log-likelihood of real answers."""
    return -(DATA * logit_A.log_softmax(-1)).sum()


def gradient(loss: Callable[[Tensor], Tensor], player_A: Tensor) -> Tensor:
    """Gradient of a loss in the player's logits."""
    logit_A = player_A.log().requires_grad_()
    (found_A,) = torch.autograd.grad(loss(logit_A), logit_A)
    return found_A


def scaled_move(player_A: Tensor, lambda_: float) -> Tensor:
    """λm of every pair."""
    ratio_A = player_A.log() - OPPONENT.log()
    return lambda_ * (ratio_A[:, None] - ratio_A[None, :])


WEIGHT_AA = torch.outer(DATA, OPPONENT)


# The tables ----------------------------------------------------------------------------------------------------------


def first_steps() -> Iterator[tuple[str, float, float, float]]:
    """Loss, λ, its gradient at the start as a multiple of SFT's, and what is left over, relative."""
    sft_A = gradient(sft_loss, OPPONENT)
    for name in ("logistic", "exponential", "hinge", "correlation", "ipo", "space", "gsil_bernoulli"):
        for lambda_ in (0.1, 1.0):
            objective = SelfPlay(name, lambda_)
            own_A = gradient(partial(self_play_loss, objective), OPPONENT)
            factor = float((own_A @ sft_A) / (sft_A @ sft_A))
            yield name, lambda_, factor, float((own_A - factor * sft_A).norm() / own_A.norm())


def pull(scaled: float) -> float:
    """Weight of a pair with margin m in the gradient of the logistic loss, over that at the start: 2σ(-λm)."""
    return 2 / (1 + math.exp(scaled))


def stations(lambda_: float) -> Iterator[tuple[float, float, float, float, float]]:
    """Along the way: place, mean λm of the pairs, mean pull, loss of self-play, KL(p_data || player)."""
    for place in PLACES:
        player_A = on_the_way(place)
        move_AA = scaled_move(player_A, lambda_)
        pulls = float((WEIGHT_AA * 2 * torch.sigmoid(-move_AA)).sum())
        loss = float(self_play_loss(SelfPlay("logistic", lambda_), player_A.log()))
        yield place, float((WEIGHT_AA * move_AA).sum()), pulls, loss, kl(DATA, player_A)


def agreement(lambda_: float, place: float) -> float:
    """Cosine of the gradients of self-play and of SFT on the way; undefined at the data, where SFT's is 0."""
    player_A = on_the_way(place)
    one_A = gradient(partial(self_play_loss, SelfPlay("logistic", lambda_)), player_A)
    other_A = gradient(sft_loss, player_A)
    if min(one_A.norm(), other_A.norm()) < 1e-12:
        return math.nan
    return float(one_A @ other_A / one_A.norm() / other_A.norm())


def iterations(lambda_: float, count: int) -> list[float]:
    """KL(p_data || player) after 0, 1, ... iterations to the optimum; log p/p_data is multiplied by 1 - 1/λ each."""
    log_ratio_A, found = (OPPONENT / DATA).log(), []
    for iteration in range(count + 1):
        player_A = (DATA.log() + (1 - 1 / lambda_) ** iteration * log_ratio_A).log_softmax(-1)
        found.append(round(float((DATA * (DATA.log() - player_A)).sum()), 12))
    return found


def descent(lambda_: float, rate: float, steps: int) -> list[Tensor]:
    """The player after 0, 1, ... steps of gradient descent on the logistic loss. The step is ``rate`` times 2/λ, so
    that the first is SFT's at ``rate``.
    """
    player_A, found = OPPONENT, [OPPONENT]
    for _ in range(steps):
        own_A = gradient(partial(self_play_loss, SelfPlay("logistic", lambda_)), player_A)
        player_A = (player_A.log() - rate * 2 / lambda_ * own_A).softmax(-1)
        found.append(player_A)
    return found


def sft_descent(rate: float, steps: int) -> list[Tensor]:
    """The same of SFT."""
    player_A, found = OPPONENT, [OPPONENT]
    for _ in range(steps):
        player_A = (player_A.log() - rate * gradient(sft_loss, player_A)).softmax(-1)
        found.append(player_A)
    return found


RATE, STEPS = 0.5, 800
SHOWN = (1, 5, 10, 50, 200, 800)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]])


def tables() -> Iterator[tuple[str, str]]:
    """Title and text of each table of the page."""
    head = ["loss", "λ", "gradient at the start, in multiples of SFT's", "what is left over"]
    yield (
        "The first step",
        table(
            head,
            [
                [name, f"{lam:g}", f"{factor:.6g}", "less than 1e-14" if rest < 1e-14 else f"{rest:.0e}"]
                for name, lam, factor, rest in first_steps()
            ],
        ),
    )
    values = (0.1, 0.3, 1.0, 3.0, 10.0)
    weights = [f"{pull(value):.4f}" for value in values]
    yield "The weight of a pair", table(["λm", *(f"{value:g}" for value in values)], [["weight", *weights]])
    for lam in (0.1, 1.0):
        yield f"On the way, at λ = {lam:g}", _way(lam)
    rows = [
        [f"{lam:g}", f"{1 - 1 / lam:g}", *(f"{far:.4g}" for far in iterations(lam, 3))] for lam in (5, 2, 1, 0.5, 0.1)
    ]
    yield "Iterations to the optimum", table(["λ", "factor", "start", "iterate 1", "iterate 2", "iterate 3"], rows)
    ways = {"SFT": sft_descent(RATE, STEPS), **{f"SPIN, λ = {lam:g}": descent(lam, RATE, STEPS) for lam in (0.1, 1.0)}}
    head = ["method", *(f"{step} step{'s' * (step > 1)}" for step in SHOWN), "closest", "at step"]
    yield (
        "Stopping early",
        table(
            head,
            [[name, *(f"{kl(DATA, one[step]):.4f}" for step in SHOWN), *_closest(one)] for name, one in ways.items()],
        ),
    )


def _way(lambda_: float) -> str:
    head = ["place", "mean λm", "mean weight", "pair loss", "cosine to SFT's gradient", "KL(p_data ‖ p)"]
    rows = []
    for place, move, pulls, loss, far in stations(lambda_):
        cosine = agreement(lambda_, place)
        told = "-" if math.isnan(cosine) else f"{cosine:.3f}"
        rows.append([f"{place:g}", f"{move:.3f}", f"{pulls:.3f}", f"{loss:.4f}", told, f"{far:.4f}"])
    return table(head, rows)


def _closest(players: Sequence[Tensor]) -> tuple[str, str]:
    distances = [round(kl(DATA, player_A), 4) for player_A in players]
    return f"{abs(min(distances)):.4f}", str(distances.index(min(distances)))


def main() -> None:
    for title, text in tables():
        print(f"{title}\n\n{text}\n")


if __name__ == "__main__":
    main()
