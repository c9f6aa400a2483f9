"""One start of one seed, and what each method makes of it at a rate: round after round, at equal steps and tokens."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from self_play.ledger import Facts
from self_play.player import Player, Weights, Work
from self_play.worlds import WORLDS, Problem, World, distinct
from spintune.errors import NonFiniteError
from spintune.recipe import SftSection, SpinSection
from spintune.tokens.rows import TokenRow

SELECTION, FRESH = 300, 700
"""Problems by which rates and rounds are chosen, and others on which models are reported. No model trains on either."""

COOLER = (0.3, 0.5, 0.7)
"""Temperatures between greedy and 1: sharpening that costs nothing."""

SFT_RATE = 3e-3


@dataclass(frozen=True)
class Setting:
    """A world and how its start is trained.

    Attributes:
        seen: problems that the start is trained on.
        unseen: further ones, with answers that people gave, which it is not trained on.
        epochs: of the start, at a rate that falls to 0.
        pairs: per step of self-play.
    """

    world: str
    seen: int
    unseen: int
    epochs: int
    rounds: int = 3
    pairs: int = 32

    @property
    def name(self) -> str:
        return f"{self.world} {self.seen}+{self.unseen}, {self.epochs} epochs"


@dataclass(frozen=True)
class Method:
    """What happens after the start.

    Attributes:
        kind: spin, or sft with the steps and tokens of self-play at most.
        rows: the problems that it uses: seen, unseen or all.
        options: of the recipe's spin section.
        fill: whether pairs are repeated until a round has as many steps as if no answer had been right.
        plays: the problems of the self-play that gives an SFT its steps and tokens. Default: ``rows``.
        mistakes: whether an SFT sees those problems alone that the model before the round answers otherwise at T = 1.
    """

    name: str
    kind: str
    rows: str = "seen"
    options: dict[str, Any] = field(default_factory=dict)
    fill: bool = False
    plays: str | None = None
    mistakes: bool = False


class Bench:
    """The player, the problems and the start of one setting and seed; made when first used."""

    def __init__(self, setting: Setting, seed: int) -> None:
        self.setting, self.seed = setting, seed
        self.world: World = WORLDS[setting.world]()

    @cached_property
    def problems(self) -> Mapping[str, Sequence[Problem]]:
        """Disjoint slices: seen, unseen, selection and fresh."""
        sizes = {"seen": self.setting.seen, "unseen": self.setting.unseen, "selection": SELECTION, "fresh": FRESH}
        drawn = iter(distinct(self.world, self.seed, sum(sizes.values())))
        return {name: list(itertools.islice(drawn, size)) for name, size in sizes.items()}

    @cached_property
    def player(self) -> Player:
        return Player(self.world, self.seed)

    @cached_property
    def start(self) -> Weights:
        """The weights after SFT on the seen problems."""
        section = SftSection(
            learning_rate=SFT_RATE,
            schedule="linear",
            warmup=0.05,
            tokens_per_step=1024,
            epochs=float(self.setting.epochs),
        )
        self.player.sft(self.rows("seen"), section, 0)
        return self.player.weights

    def rows(self, which: str) -> list[TokenRow]:
        """The rows of a method's problems."""
        parts = ("seen", "unseen") if which == "all" else (which,)
        return self.player.rows([problem for part in parts for problem in self.problems[part]])

    def measure(self) -> dict[str, float]:
        """Accuracy of the model in memory at temperature 0 and 1, and its loss on the selection set."""
        found = {"loss": self.player.loss(self.rows("selection"))}
        for temperature in (0.0, 1.0):
            found[f"selection {temperature:g}"] = self.player.accuracy(self.problems["selection"], temperature)
            found[f"fresh {temperature:g}"] = self.player.accuracy(self.problems["fresh"], temperature)
        return found

    def start_facts(self) -> Facts:
        """What the start is worth, also at temperatures between: what any later method has to beat."""
        self.player.put_back(self.start)
        cooler = {
            f"fresh {temperature:g}": self.player.accuracy(self.problems["fresh"], temperature)
            for temperature in COOLER
        }
        return {**self.measure(), **cooler, **self.varieties(), "train loss": self.player.loss(self.rows("seen"))}

    def varieties(self) -> dict[str, float]:
        """Different right answers in four samples, where a prompt has several."""
        if self.world.one_answer:
            return {}
        return {
            f"variety {temperature:g}": self.player.variety(self.problems["fresh"], temperature)
            for temperature in (0.7, 1.0)
        }

    def trial(self, method: Method, rate: float) -> Facts:
        """A method at a rate, from the start on: facts of each round. A run that diverges ends early."""
        rows = self.rows(method.rows)
        rounds: list[dict[str, float]] = []
        self.player.put_back(self.start)
        for number in range(1, self.setting.rounds + 1):
            try:
                work = self._round(method, rows, rate, number)
            except NonFiniteError:
                break
            if work is None:
                break
            counts = {key: value for key, value in vars(work).items() if method.kind == "spin" or key != "margin"}
            rounds.append({**self.measure(), **counts})
        return {"rounds": rounds, **(self.varieties() if rounds else {})}

    def _round(self, method: Method, rows: Sequence[TokenRow], rate: float, number: int) -> Work | None:
        setting = self.setting
        if method.kind == "sft":
            played = self.rows(method.plays or method.rows)
            # pairs with identical answers count here and not in self-play, so SFT never has less
            tokens = sum(row.tokens + len(row.response_ids) for row in played)
            rows = self.player.mistakes(rows, number) if method.mistakes else rows
            if not rows:
                return None
            return self.player.sft_round(rows, Work(math.ceil(len(played) / setting.pairs), tokens), rate, number)
        section = SpinSection(
            iterations=setting.rounds,
            pairs_per_step=setting.pairs,
            max_new_tokens=2 * self.world.longest,
            **method.options,
        )
        return self.player.play(rows, section, rate, number, method.fill)
