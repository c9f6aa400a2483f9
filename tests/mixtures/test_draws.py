"""The stream's arithmetic against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.mixtures import draws
from spintune.streams import draw

circle = st.integers(0, draws.CIRCLE - 1)


@given(st.integers(0, 300), circle, circle, circle)
def test_visits_counts_the_earlier_points_of_an_interval(position: int, start: int, a: int, b: int) -> None:
    low, high = sorted((a, b))
    points = [draws.point(i, start) for i in range(position)]
    assert draws.visits(position, start, low, high) == sum(low <= x < high for x in points)


@given(st.integers(0, 10**15), circle)
def test_the_whole_circle_is_visited_at_every_position(position: int, start: int) -> None:
    assert draws.visits(position, start, 0, draws.CIRCLE) == position
    assert draws.visits(position, start, start, start) == 0


@given(st.integers(10**9, 10**12), circle, circle)
def test_visits_grows_by_one_exactly_where_the_point_is_inside(position: int, start: int, high: int) -> None:
    inside = draws.point(position, start) < high
    grown = draws.visits(position + 1, start, 0, high) - draws.visits(position, start, 0, high)
    assert grown == inside


@pytest.mark.parametrize("share", [0.001, 0.018, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("count", [10, 1000, 100_000, 10_000_000])
def test_an_interval_gets_its_share_to_within_a_few_points(share: float, count: int) -> None:
    start = draw("test")
    got = draws.visits(count, start, draws.CIRCLE // 7, draws.CIRCLE // 7 + round(share / 2 * draws.CIRCLE))
    # half of log_φ n is how many Fibonacci blocks n falls into, and a block is below 2 off; 1 / ln φ = 2.08
    assert abs(got - share / 2 * count) <= 2 * (1 + math.log(count))


@given(st.integers(1, 300), st.integers(0, 20))
def test_a_walk_meets_every_place_once(count: int, name: int) -> None:
    place, stride = draws.walk(count, name)
    assert sorted((place + step * stride) % count for step in range(count)) == list(range(count))
