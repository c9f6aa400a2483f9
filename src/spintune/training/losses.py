"""Self-play losses: pure functions of log-probabilities, one value for each duel of a real and a generated answer.

Notation of SPIN (arXiv 2401.01335), for a prompt x with the real answer y and a generated answer y': the ratio
r = log p_θ(y|x) - log p_θt(y|x) (``real_ratio_D``), r' the same for y' (``generated_ratio_D``), and the margin
m = r - r' (``margin_D``). θ is the player and θt its opponent; when they are equal, r = r' = m = 0. Log-probabilities
are sums over the tokens of an answer, in nats (means, if the objective normalizes lengths). D is the number of duels.

================  =============================  ====================================================================
reads             losses                         is p_data a fixed point?
================  =============================  ====================================================================
margin            logistic, hinge, exponential,  yes
                  correlation, IPO
ratios            SPACE, GSIL with b = 0         yes
                  GSIL with b = 2                its slope there is 0, but for small λ it is no minimum: Bernoulli needs
                                                 λ > sinh 2 = 3.6, KLIEP 0.87, LSIF 0.46; Brier and hinge never have one
likelihoods       T-SPIN                         no: it has no reference, so likely answers are pushed down. Its optimum
                                                 is p_t+1 ∝ (p_data / p_t)^(1/α), as if p_t were to be avoided
mixture           α-SPIN, 0 < α                  no: with the logistic loss the fixed point is p_0^c p_data^(1-c) with
                                                 c = αλ / (1 + αλ); with the exponential one 2λ is in place of λ
================  =============================  ====================================================================

tests/training/test_exact_world.py shows all of this with a tabular player and the real training loop.
:mod:`spintune.recipe.losses` has the record of each loss: its kind, options and default λ.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

# Margin losses ----------------------------------------------------------------------------------------------------


def logistic(margin_D: Tensor, lambda_: float) -> Tensor:
    """log(1 + exp(-λm)), SPIN's loss (arXiv 2401.01335, eq. 4.7 and section 4.2).

    At the start of an iteration m = 0 and the loss is ln 2 = 0.693147; its slope in m there is -λ/2.
    """
    return softplus(-lambda_ * margin_D)


def hinge(margin_D: Tensor, lambda_: float) -> Tensor:
    """max(0, 1 - λm) (arXiv 2401.01335, section 4.2). 1 at the start; 0 once λm >= 1."""
    return relu(1 - lambda_ * margin_D)


def exponential(margin_D: Tensor, lambda_: float) -> Tensor:
    """exp(-λm) (arXiv 2401.01335, section 4.2). 1 at the start; e for λm = -1."""
    return torch.exp(-lambda_ * margin_D)


def correlation(margin_D: Tensor, lambda_: float) -> Tensor:
    """1 - λm (arXiv 2401.01335, section 4.2): linear, so unbounded below. 1 at the start; 0 for λm = 1."""
    return 1 - lambda_ * margin_D


def ipo(margin_D: Tensor, lambda_: float) -> Tensor:
    """(m - 1/(2λ))², the squared loss of IPO (arXiv 2310.12036, eq. 17, with τ = λ) in self-play.

    1/(4λ²) at the start, 25 for λ = 0.1; its slope in m there is -1/λ. It is 0 at m = 1/(2λ) and rises beyond, so the
    margin stays bounded.
    """
    return (margin_D - 1 / (2 * lambda_)).square()


# Ratio losses -----------------------------------------------------------------------------------------------------


def space(real_ratio_D: Tensor, generated_ratio_D: Tensor, lambda_: float, mu: float) -> Tensor:
    """-log σ_μ(λr) - μ log σ_1/μ(-λr') with σ_μ(z) = 1/(1 + μ exp(-z)): SPACE (arXiv 2512.07175), noise-contrastive
    estimation in which a generated answer weighs μ times as much as a real one. The paper uses λ = 1.

    log(1 + μ) + μ log(1 + 1/μ) at the start: 2 ln 2 = 1.386294 for μ = 1. With λ = 1 the optimum is p_data for every
    μ. σ_μ(z) = σ(z - log μ), so it is GSIL's Bernoulli loss with b = -log μ and weight μ on the generated term; μ = 1
    is "BCO-pair" with β = 1.
    """
    shift = math.log(mu)
    return softplus(shift - lambda_ * real_ratio_D) + mu * softplus(lambda_ * generated_ratio_D - shift)


def gsil_bernoulli(real_ratio_D: Tensor, generated_ratio_D: Tensor, lambda_: float, shift: float) -> Tensor:
    """-log σ(u) - log σ(-u') with u = λr + b, u' = λr' + b: GSIL (arXiv 2410.10093), logistic density ratio.

    At the start log(1 + e^-b) + log(1 + e^b): 2 ln 2 for b = 0, 2.253856 for the authors' b = 2.
    """
    return softplus(-(lambda_ * real_ratio_D + shift)) + softplus(lambda_ * generated_ratio_D + shift)


def gsil_brier(real_ratio_D: Tensor, generated_ratio_D: Tensor, lambda_: float, shift: float) -> Tensor:
    """(σ(u) - 1)² + σ(u')², GSIL's Brier score (arXiv 2410.10093). 1/2 at the start for b = 0, 0.790013 for b = 2."""
    real_D, generated_D = lambda_ * real_ratio_D + shift, lambda_ * generated_ratio_D + shift
    return torch.sigmoid(-real_D).square() + torch.sigmoid(generated_D).square()


def gsil_hinge(real_ratio_D: Tensor, generated_ratio_D: Tensor, lambda_: float, shift: float) -> Tensor:
    """max(0, 1 - u) + max(0, 1 + u'), GSIL's hinge (arXiv 2410.10093). 2 at the start for b = 0, 3 for b = 2."""
    return relu(1 - (lambda_ * real_ratio_D + shift)) + relu(1 + (lambda_ * generated_ratio_D + shift))


def gsil_kliep(real_ratio_D: Tensor, generated_ratio_D: Tensor, lambda_: float, shift: float) -> Tensor:
    """-u + exp(u'), GSIL's KLIEP (arXiv 2410.10093). 1 at the start for b = 0, e² - 2 = 5.389056 for b = 2."""
    return torch.exp(lambda_ * generated_ratio_D + shift) - (lambda_ * real_ratio_D + shift)


def gsil_lsif(real_ratio_D: Tensor, generated_ratio_D: Tensor, lambda_: float, shift: float) -> Tensor:
    """-exp(u) + exp(2u')/2, GSIL's least squares (LSIF, arXiv 2410.10093). -1/2 at the start for b = 0, 19.910019 for
    b = 2."""
    return torch.exp(2 * (lambda_ * generated_ratio_D + shift)) / 2 - torch.exp(lambda_ * real_ratio_D + shift)


# Likelihood losses ------------------------------------------------------------------------------------------------


def t_spin(
    real_D: Tensor, generated_D: Tensor, first_D: Tensor | None, lambda_: float, history_weight: float
) -> Tensor:
    """-log σ(α(log p(y) - log p(y'))) - β_h log σ(α(log p(y') - log p(y0))): T-SPIN (arXiv 2601.08198), α = λ.

    y0 is iterate 0's answer. In the first iteration y' is iterate 0's own answer, there is no y0, and the second term
    is left out. The loss does not depend on an opponent, so its start is not constant: it is ln 2 when both answers are
    equally likely, and (1 + β_h) ln 2 when y0 is equally likely too. For a real answer less likely by 3 nats and λ = 1
    it is log(1 + e³) = 3.048587.
    """
    advantage_D = softplus(lambda_ * (generated_D - real_D))
    if first_D is None or history_weight == 0:
        return advantage_D
    return advantage_D + history_weight * softplus(lambda_ * (first_D - generated_D))


# The reference ----------------------------------------------------------------------------------------------------


def mixed_reference(opponent_D: Tensor, base_D: Tensor, alpha: float) -> Tensor:
    """(1 - α) log p_θt + α log p_θ0: the geometric mixture of opponent and iterate 0, the reference of α-SPIN (arXiv
    2404.04291). Its normalizer depends only on the prompt, so it cancels in a margin, but not in a single ratio.

    α = 0 is SPIN, α = 1 has a fixed reference, as DPO does; log-probabilities of -2 and -4 with α = 1/4 give -2.5.
    """
    return (1 - alpha) * opponent_D + alpha * base_D
