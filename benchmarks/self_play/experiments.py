"""The experiments in small worlds: which starts, methods, rates and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from self_play.ledger import Facts, Unit
from self_play.trials import Bench, Method, Setting

START, SCRATCH = "start", "SFT of all at once"


@dataclass(frozen=True)
class Experiment:
    """What one command runs.

    Attributes:
        rates: peak learning rates that every method tries; the number of trials is the same for all.
        whole: whether a start that SFT trained on all rows at once is measured too, as a rival.
    """

    title: str
    settings: Sequence[Setting]
    methods: Sequence[Method]
    rates: Sequence[float] = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
    whole: bool = False

    @property
    def rivals(self) -> list[Method]:
        return [method for method in self.methods if method.kind == "sft"]

    def facts(self) -> Facts:
        """The settings that decide the numbers."""
        return {
            "settings": [asdict(setting) for setting in self.settings],
            "methods": {method.name: asdict(method) for method in self.methods},
            "rates": list(self.rates),
        }

    def units(self, seeds: Sequence[int]) -> list[Unit]:
        """Seed by seed, so that a stopped study has whole seeds; the start before what begins with it."""
        return [unit for seed in seeds for setting in self.settings for unit in self._units(setting, seed)]

    def _units(self, setting: Setting, seed: int) -> list[Unit]:
        bench = Bench(setting, seed)
        units = [Unit(key(setting, seed, START), bench.start_facts)]
        if self.whole:
            together = Setting(setting.world, setting.seen + setting.unseen, 0, setting.epochs)
            rival = Bench(together, seed)
            units.append(Unit(key(setting, seed, SCRATCH), rival.start_facts))
        for method in self.methods:
            for rate in self.rates:
                units.append(Unit(key(setting, seed, method.name, rate), Trial(bench, method, rate)))
        return units


@dataclass(frozen=True)
class Trial:
    """The work of one unit."""

    bench: Bench
    method: Method
    rate: float

    def __call__(self) -> Facts:
        return self.bench.trial(self.method, self.rate)


def key(setting: Setting, seed: int, name: str, rate: float | None = None) -> str:
    """Name of a unit."""
    return f"{setting.name}, seed {seed}, {name}" + ("" if rate is None else f", {rate:g}")


def spin(name: str, rows: str = "seen", fill: bool = False, **options: object) -> Method:
    """A self-play."""
    return Method(name, "spin", rows, options, fill)


CHECKABLE = Experiment(
    "Self-play on the prompts of SFT",
    (Setting("paths", 1000, 0, 16), Setting("lists", 600, 0, 80), Setting("sums", 500, 0, 40)),
    (
        Method("more SFT", "sft"),
        Method("more SFT, own mistakes", "sft", mistakes=True),
        spin("SPIN λ=0.1"),
        spin("SPIN λ=1", **{"lambda": 1.0}),
        spin("SPIN λ=5", **{"lambda": 5.0}),
        spin("SPIN λ=1, 4 phases", **{"lambda": 1.0, "refresh": 4}),
        spin("SPIN λ=1, γ=3", **{"lambda": 1.0, "gamma": 3.0}),
        spin("SPACE", loss="space"),
    ),
)
"""Experiment 1."""

UNSEEN = Experiment(
    "Self-play on prompts that SFT has not seen, at the same total of human answers",
    (Setting("paths", 1000, 1000, 16), Setting("lists", 600, 2000, 80), Setting("sums", 500, 500, 40)),
    (
        Method("more SFT, unseen", "sft", "unseen"),
        Method("more SFT, all", "sft", "all", plays="unseen"),
        Method("more SFT, unseen, own mistakes", "sft", "unseen", mistakes=True),
        spin("SPIN λ=0.1, unseen", "unseen"),
        spin("SPIN λ=1, unseen", "unseen", **{"lambda": 1.0}),
        spin("SPIN λ=1, unseen, filled", "unseen", fill=True, **{"lambda": 1.0}),
        spin("SPIN λ=1, seen", "seen", **{"lambda": 1.0}),
        spin("SPIN λ=1, γ=3, unseen", "unseen", **{"lambda": 1.0, "gamma": 3.0}),
        spin("SPACE, unseen", "unseen", loss="space"),
    ),
    whole=True,
)
"""Experiment 2."""

LONG = Experiment(
    "Twelve rounds",
    (Setting("paths", 1000, 0, 10, rounds=12), Setting("lists", 1000, 0, 40, rounds=12)),
    (
        Method("more SFT", "sft"),
        spin("SPIN λ=0.1"),
        spin("SPIN λ=1", **{"lambda": 1.0}),
        spin("SPACE", loss="space"),
    ),
    rates=(3e-5, 1e-4, 3e-4, 1e-3),
)
"""Experiment 4: from a start that SFT still improves, past the point where it overfits."""

EXPERIMENTS: Mapping[str, Experiment] = {"checkable": CHECKABLE, "unseen": UNSEEN, "long": LONG}
