"""Curves stand where the numbers say."""

from __future__ import annotations

import math
import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.report.figures import MAX_POINTS, STRETCHES, Figure, Series, draw, thinned, ticks

HEIGHTS = st.floats(-1e9, 1e9, allow_nan=False).map(lambda value: round(value, 6))


@given(HEIGHTS, HEIGHTS, st.integers(2, 8))
def test_ticks_hold_the_data_and_are_round(one: float, other: float, about: int) -> None:
    low, high = min(one, other), max(one, other)
    found = ticks(low, high, about)
    step = found[1] - found[0]
    assert found[0] <= low + 1e-6 * step
    assert found[-1] >= high - 1e-6 * step
    assert 2 <= len(found) <= about + 3
    mantissa = step / 10.0 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - round_one) for round_one in (1, 2, 5, 10)) < 1e-3
    assert all(b - a == pytest.approx(step, rel=1e-6) for a, b in pairwise(found))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.61, 0.69, [0.6, 0.62, 0.64, 0.66, 0.68, 0.7]), (0, 100, [0, 50, 100]), (3, 3, [2, 3, 4])],
)
def test_ticks_as_a_person_would_choose(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, 4 if high < 1 else 3) == pytest.approx(expected)


def test_steps_have_whole_ticks() -> None:
    assert ticks(1, 3, 5, whole=True) == [1, 2, 3]


def test_a_long_curve_becomes_means_within_a_band() -> None:
    points = [(float(step), float(step % 2)) for step in range(1, 1201)]  # 120 stretches of 10: five 0s and five 1s
    means, band = thinned(points)
    assert len(means) == len(band) == STRETCHES
    assert means[0] == (5.5, 0.5)
    assert {(low, high) for _, low, high in band} == {(0.0, 1.0)}
    assert sum(y for _, y in means) / len(means) == 0.5


def test_a_short_curve_is_left_as_it_is() -> None:
    points = [(float(step), 1.0) for step in range(MAX_POINTS)]
    assert thinned(points) == (points, ())


def places(figure: Figure) -> list[tuple[float, float]]:
    (line,) = re.findall(r'<polyline class="line s0" points="([^"]*)"', str(figure.svg))
    return [(float(x), float(y)) for x, y in (point.split(",") for point in line.split())]


def test_points_stand_in_proportion() -> None:
    figure = draw("Loss", "nats", [Series("a", [(0, 4.0), (1, 2.0), (4, 0.0)])])
    assert figure
    (x0, y0), (x1, y1), (x2, y2) = places(figure)
    assert (x1 - x0) * 4 == pytest.approx(x2 - x0, abs=0.5)
    assert (y1 - y0) * 2 == pytest.approx(y2 - y0, abs=0.2)
    assert y0 < y1 < y2  # a larger value stands higher


def test_everything_stays_inside_the_drawing() -> None:
    dots = Series("b", [(1, -9.0)], 1, "dots", [(-12.0, 14.0)])
    figure = draw("Loss", "nats", [Series("a", [(0, 4.0), (7, 1e6)]), dots], level=-50.0)
    assert figure
    for name, value in re.findall(r'\b(c?[xy][12]?)="(-?[\d.]+)"', str(figure.svg)):
        assert 0 <= float(value) <= (360 if "x" in name else 190)


def test_what_is_no_number_is_left_out() -> None:
    figure = draw("Loss", "nats", [Series("a", [(1, 1.0), (2, math.nan), (3, math.inf), (4, 2.0)])])
    assert figure
    assert len(places(figure)) == 2
    assert "nan" not in str(figure.svg)
    assert "inf" not in str(figure.svg)


def test_nothing_to_draw_is_no_figure() -> None:
    assert draw("Loss", "nats", [Series("a", []), Series("b", [(1, math.nan)])]) is None


@pytest.mark.parametrize("value", [1.0, -1.0, 1e9, 1e-9])
def test_values_that_are_equal_but_for_rounding_are_drawn_as_equal(value: float) -> None:
    figure = draw("Loss", "", [Series("a", [(1, value), (2, math.nextafter(value, 2e9))])])
    assert figure
    ((_, y0), (_, y1)) = places(figure)
    assert y0 == y1


def test_a_single_step_is_a_dot() -> None:
    figure = draw("Loss", "nats", [Series("a", [(1, 2.0)])])
    assert figure
    assert '<circle class="dot s0"' in figure.svg


def test_those_who_cannot_see_it_are_told_the_curve() -> None:
    figure = draw("Loss", "nats", [Series("training", [(1, 2.5), (9, 1.25)])])
    assert figure
    assert 'aria-label="Loss, nats. training from 2.5 at step 1 to 1.25 at 9"' in figure.svg


def test_labels_are_text_and_not_markup() -> None:
    evil = '"><script>alert(1)</script>'
    figure = draw(evil, evil, [Series(evil, [(0, 1.0)])], names=[evil], parts=[(0, evil)])
    assert figure
    assert "<script" not in figure.svg
    assert figure.svg.count("&lt;script&gt;") >= 3
