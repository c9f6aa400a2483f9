"""Energy counters as Linux has them, in a folder of their own."""

from __future__ import annotations

from pathlib import Path

import pytest

from spintune.energy import EnergyMeter


def counter(folder: Path, zone: str, microjoules: int, most: int = 1_000_000) -> Path:
    (folder / zone).mkdir(exist_ok=True)
    (folder / zone / "max_energy_range_uj").write_text(f"{most}\n")
    path = folder / zone / "energy_uj"
    path.write_text(f"{microjoules}\n")
    return path


def test_packages_are_added_up_and_their_parts_are_not_counted_twice(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", 100)
    counter(tmp_path, "intel-rapl:1", 200)
    counter(tmp_path, "intel-rapl:0:0", 0)  # the cores of package 0
    meter = EnergyMeter(tmp_path)
    assert meter.read() == 0
    counter(tmp_path, "intel-rapl:0", 100 + 7_000)
    counter(tmp_path, "intel-rapl:1", 200 + 3_000)
    counter(tmp_path, "intel-rapl:0:0", 6_000)
    assert meter.read() == pytest.approx(0.01)


def test_a_counter_that_began_again_goes_on(tmp_path: Path) -> None:
    counter(tmp_path, "intel-rapl:0", 999_000)
    meter = EnergyMeter(tmp_path)
    counter(tmp_path, "intel-rapl:0", 4_000)  # 1,000 to its end at 1,000,000, and 4,000 more
    assert meter.read() == pytest.approx(0.005)
    counter(tmp_path, "intel-rapl:0", 5_000)
    assert meter.read() == pytest.approx(0.006)


def test_without_counters_or_with_one_that_cannot_be_read_nothing_is_known(tmp_path: Path) -> None:
    assert EnergyMeter(tmp_path).read() is None
    counter(tmp_path, "intel-rapl:0", 5)
    (tmp_path / "intel-rapl:1" / "energy_uj").mkdir(parents=True)  # nobody can read a folder
    assert EnergyMeter(tmp_path).read() is None
