"""The stream's arithmetic against brute force."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.mixtures.interleaving import CIRCLE, Interleaving, point, visits, walk
from spintune.streams import draw

circle = st.integers(0, CIRCLE - 1)


@given(st.integers(0, 300), circle, circle, circle)
def test_visits_counts_the_earlier_points_of_an_interval(position: int, start: int, a: int, b: int) -> None:
    low, high = sorted((a, b))
    points = [point(i, start) for i in range(position)]
    assert visits(position, start, low, high) == sum(low <= x < high for x in points)


@given(st.integers(0, 10**15), circle)
def test_the_whole_circle_is_visited_at_every_position(position: int, start: int) -> None:
    assert visits(position, start, 0, CIRCLE) == position
    assert visits(position, start, start, start) == 0


@given(st.integers(10**9, 10**12), circle, circle)
def test_visits_grows_by_one_exactly_where_the_point_is_inside(position: int, start: int, high: int) -> None:
    inside = point(position, start) < high
    grown = visits(position + 1, start, 0, high) - visits(position, start, 0, high)
    assert grown == inside


@pytest.mark.parametrize("share", [0.001, 0.018, 1 / 3, 0.5, 0.9])
@pytest.mark.parametrize("count", [10, 1000, 100_000, 10_000_000])
def test_an_interval_gets_its_share_to_within_a_few_points(share: float, count: int) -> None:
    start = draw("test")
    got = visits(count, start, CIRCLE // 7, CIRCLE // 7 + round(share / 2 * CIRCLE))
    # half of log_φ n is how many Fibonacci blocks n falls into, and a block is below 2 off; 1 / ln φ = 2.08
    assert abs(got - share / 2 * count) <= 2 * (1 + math.log(count))


@given(st.integers(1, 300), st.integers(0, 20))
def test_a_walk_meets_every_place_once(count: int, name: int) -> None:
    place, stride = walk(count, name)
    assert sorted((place + step * stride) % count for step in range(count)) == list(range(count))


@given(st.lists(st.floats(0.01, 1), min_size=1, max_size=6), st.integers(0, 300), circle)
def test_parts_are_counted_as_they_come(shares: list[float], position: int, start: int) -> None:
    order = Interleaving(shares, start)
    parts = [order.part(i) for i in range(position)]
    last = len(shares) - 1
    assert [order.count(position, part, part) for part in range(len(shares))] == list(map(parts.count, range(last + 1)))
    assert order.count(position, 0, last) == position
