"""Measures the energy that the processors use, by Linux's powercap counters (Intel and AMD RAPL)."""

from __future__ import annotations

from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


class EnergyMeter:
    """Adds up the energy counters of all processor packages.

    The counters wrap around every hour or so: call :meth:`read` more often than that.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        self._counters = [path for path in sorted(folder.glob("intel-rapl:*/energy_uj")) if ":" not in _zone(path)]
        self._last = [_number(path) for path in self._counters]
        self._microjoules = 0

    def read(self) -> float | None:
        """Joules since the meter was made; None when there are no counters or they may not be read."""
        for place, path in enumerate(self._counters):
            now, before = _number(path), self._last[place]
            if now is None or before is None:
                return None
            if now < before:
                before -= _number(path.with_name("max_energy_range_uj")) or 0
            self._microjoules += now - before
            self._last[place] = now
        return self._microjoules / 1e6 if self._counters else None


def _zone(path: Path) -> str:
    """``intel-rapl:0`` is package 0, ``intel-rapl:0:1`` part 1 of it: the name after the first colon."""
    return path.parent.name.partition(":")[2]


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # most systems let only root read them
        return None
