"""Dealing of work to ranks."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.ranks.dealing import deal, waiting_share
from spintune.stages.metering import Meter
from spintune.training.loop import StepReport


@given(st.lists(st.integers(1, 2000), max_size=40), st.integers(1, 9))
def test_every_item_once_and_nearly_even(costs: list[int], ranks: int) -> None:
    hands = deal(costs, ranks)
    assert len(hands) == ranks
    assert sorted(index for hand in hands for index in hand) == list(range(len(costs)))
    assert all(hand == sorted(hand) for hand in hands)
    if costs:
        loads = [sum(costs[index] for index in hand) for hand in hands]
        # of Graham's bound: no more than the mean and most of an item
        assert max(loads) <= sum(costs) / ranks + (1 - 1 / ranks) * max(costs) + 1e-9


def test_longest_first() -> None:
    assert deal([5, 9, 4, 3, 3], 2) == [[1, 3], [0, 2, 4]]
    assert deal([1, 2], 4) == [[1], [0], [], []]


def test_waiting() -> None:
    assert waiting_share([4, 4]) == 0
    assert waiting_share([4, 2]) == 0.25
    assert waiting_share([0, 0]) == 0


@pytest.mark.parametrize(("imbalance", "told"), [(0.2, ["5%"]), (0.196, [])])
def test_unequal_tokens_are_noted(imbalance: float, told: list[str]) -> None:
    """One second of four with a fifth idle is a twentieth."""
    engine: Any = SimpleNamespace(is_sharded=True)
    meter = Meter(engine)
    for seconds, facts in ((1.0, {"imbalance": imbalance}), (3.0, {})):
        meter.step(StepReport(1, 0.0, 0.0, 0.0, 10, 10, seconds, facts))
    notes = list(meter.notes("SFT"))
    assert [part for line in notes for part in line.split() if "%" in part] == told
