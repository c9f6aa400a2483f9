"""What training costs beside its time: how near it came to the machine's best, and the energy, where that is known."""

from __future__ import annotations

from typing import Any

from spintune.energy import EnergyMeter
from spintune.engine.logprobs import LogProbEngine
from spintune.engine.peak import arithmetic, best_product
from spintune.training.loop import StepReport


class Meter:
    """Looks at every step of a stage; of this process, like all times: a resumed stage counts what it did since."""

    def __init__(self, engine: LogProbEngine) -> None:
        self._needs = arithmetic(engine.model)
        self._best = best_product(engine.model, engine.autocast) if self._needs else None
        self._operations, self._seconds = 0, 0.0
        self._energy = EnergyMeter()
        self._joules: float | None = None

    def step(self, report: StepReport) -> None:
        if self._needs:
            self._operations += self._needs.token * report.tokens + self._needs.scored * report.scored
        self._seconds += report.seconds
        self._joules = self._energy.read()

    def facts(self) -> dict[str, Any]:
        """Share of the best product's speed, that speed in GFLOP/s, and joules; None for what is not known."""
        known = self._best is not None and self._seconds > 0
        return {
            "share_of_peak": self._operations / self._seconds / self._best if known and self._best else None,
            "best_gflops": self._best / 1e9 if self._best else None,
            "joules": self._joules,
        }
