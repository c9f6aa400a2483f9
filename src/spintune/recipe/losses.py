"""The table of self-play losses by name, for ``spin.loss``. Recipes read it, so it does not import torch.

A loss of your own needs one record; then ``spin.loss: mine`` trains with it::

    register_loss(SelfPlayLoss("mine", my_function, kind="margin"))

An installed package can offer its record under the entry point group ``spintune.losses`` instead.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

from spintune.plugins import Table

if TYPE_CHECKING:
    from torch import Tensor

LossKind = Literal["margin", "ratios", "likelihoods"]
LossOption = Literal["mu", "shift", "history_weight"]


@dataclass(frozen=True)
class SelfPlayLoss:
    """A loss of pairs of a real and a generated answer.

    The function gets, by ``kind``, with r and r' the log-ratios of player and opponent for the real and the generated
    answer:

    ===========  =======================================================================================
    margin       ``(margin_D, lambda_, **options)``: r - r'
    ratios       ``(real_ratio_D, generated_ratio_D, lambda_, **options)``: r and r'
    likelihoods  ``(real_D, generated_D, first_D, lambda_, **options)``: the player's log-probabilities
    ===========  =======================================================================================

    Each tensor has one value for each duel of a real and a generated answer, and so has the loss that it returns.

    Attributes:
        name: value of ``spin.loss``.
        function: the function, or where it is (``module:name``), imported at the first use.
        kind: what the function reads.
        default_lambda: λ when the recipe gives none.
        options: keys of the recipe's spin section that the function takes as keyword arguments.
        learns_from_identical: whether a generated answer equal to the real one changes the gradient. It does not
            change a margin, which is 0 then.
        needs_first_answers: whether ``first_D``, iterate 0's answers, is given from iteration 2 on; None before.
        paper: arXiv number.

    Raises ValueError for an unknown kind or option.
    """

    name: str
    function: str | Callable[..., Tensor]
    kind: LossKind
    default_lambda: float = 0.1
    options: tuple[LossOption, ...] = ()
    learns_from_identical: bool = False
    needs_first_answers: bool = False
    paper: str = ""

    def __post_init__(self) -> None:
        if self.kind not in get_args(LossKind):
            raise ValueError(f"loss {self.name}: kind is {self.kind!r}; use {', '.join(get_args(LossKind))}")
        if unknown := set(self.options) - set(get_args(LossOption)):
            raise ValueError(f"loss {self.name}: unknown options {unknown}; use {', '.join(get_args(LossOption))}")

    @cached_property
    def compute(self) -> Callable[..., Tensor]:
        """The function itself."""
        return pkgutil.resolve_name(self.function) if isinstance(self.function, str) else self.function


_HERE = "spintune.training.losses"
_SPIN, _GSIL = "2401.01335", "2410.10093"

# default λ: the SPIN authors' scripts for losses of the margin, each paper or its scripts for the others
BUILT_IN = (
    SelfPlayLoss("logistic", f"{_HERE}:logistic", "margin", paper=_SPIN),
    SelfPlayLoss("hinge", f"{_HERE}:hinge", "margin", paper=_SPIN),
    SelfPlayLoss("exponential", f"{_HERE}:exponential", "margin", paper=_SPIN),
    SelfPlayLoss("correlation", f"{_HERE}:correlation", "margin", paper=_SPIN),
    SelfPlayLoss("ipo", f"{_HERE}:ipo", "margin", paper="2310.12036"),
    SelfPlayLoss("space", f"{_HERE}:space", "ratios", 1.0, ("mu",), learns_from_identical=True, paper="2512.07175"),
    *(
        SelfPlayLoss(
            f"gsil_{form}", f"{_HERE}:gsil_{form}", "ratios", 0.01, ("shift",), learns_from_identical=True, paper=_GSIL
        )
        for form in ("bernoulli", "brier", "hinge", "kliep", "lsif")
    ),
    SelfPlayLoss(
        "t_spin",
        f"{_HERE}:t_spin",
        "likelihoods",
        1.0,
        ("history_weight",),
        needs_first_answers=True,
        paper="2601.08198",
    ),
)
_ELSEWHERE = {"sigmoid": "logistic", "dpo": "logistic", "spin": "logistic", "exp": "exponential"}
LOSSES = Table("loss", "spintune.losses", {loss.name: loss for loss in BUILT_IN}, _ELSEWHERE)


def register_loss(loss: SelfPlayLoss) -> None:
    """Makes a loss known to recipes by its name. Raises RecipeError when another loss has that name."""
    LOSSES.register(loss.name, loss)
