"""Measures what training costs, apart from time: share of the machine's peak arithmetic, and energy if known."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from spintune.energy import EnergyMeter
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.peak import arithmetic, best_product
from spintune.ranks.team import processes
from spintune.results import HardwareFacts
from spintune.tracking import Metrics
from spintune.training.loop import StepReport

_IDLE_SHARE = 0.05
"""The share of the time of all ranks that is worth a note when tokens are so unequal."""


def step_logger(metrics: Metrics, stage: str, meter: Meter) -> Callable[[StepReport], None]:
    """A hook that adds each step to the run's metrics and to the meter."""

    def log(report: StepReport) -> None:
        meter.step(report)
        numbers = dict(vars(report))
        facts = numbers.pop("facts")
        metrics.add(stage, **numbers, **facts)

    return log


class Meter:
    """Adds up the steps of a stage. It measures this process only: a resumed stage counts what it did since."""

    def __init__(self, engine: LogProbEngine) -> None:
        self._needs = None if engine.is_sharded else arithmetic(engine.model)  # no rank has a whole layer to try
        best = best_product(engine.model, engine.autocast) if self._needs else None
        self._best = best and best * processes()  # energy is of this machine alone
        self._operations, self._seconds, self._idle = 0, 0.0, 0.0
        self._energy = EnergyMeter()
        self._joules: float | None = None

    def step(self, report: StepReport) -> None:
        """Adds one optimizer step."""
        if self._needs:
            self._operations += self._needs.token * report.tokens + self._needs.scored * report.scored
        self._seconds += report.seconds
        self._idle += report.facts.get("imbalance", 0.0) * report.seconds
        self._joules = self._energy.read()

    def notes(self, title: str) -> Iterator[str]:
        """A line if the ranks had so unequal numbers of tokens that some were idle."""
        if self._idle and self._idle >= _IDLE_SHARE * self._seconds:
            yield (
                f"{title}: ranks have unequal numbers of tokens, which leaves {self._idle / self._seconds:.0%} of "
                "their time idle; larger steps or fewer ranks balance them"
            )

    def facts(self) -> HardwareFacts:
        """What the steps so far took."""
        share = self._operations / self._seconds / self._best if self._best and self._seconds > 0 else None
        return HardwareFacts(share, self._best / 1e9 if self._best else None, self._joules)
