"""Tests and intervals against hand arithmetic, exact enumeration, closed forms, and simulated equal models."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.evaluation.statistics import (
    Interval,
    bootstrap,
    holm,
    length_controlled_win_rate,
    mcnemar,
    minimum_detectable_difference,
    over_seeds,
    paired,
    verdict_difference,
    wilson,
    win_rate,
)
from spintune.student_t import t_quantile


def answers(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    pairs = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs += [(False, False)] * neither
    return [one for one, _ in pairs], [other for _, other in pairs]


# McNemar -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (1, 6, 2 * (1 + 7) / 128),
        (6, 1, 0.125),
        (0, 5, 2 / 32),
        (0, 6, 2 / 64),
        (5, 5, 1),
        (0, 0, 1),
        (0, 1, 1),
        (2, 10, 2 * (1 + 12 + 66) / 4096),
    ],
)
def test_mcnemar_by_hand(only_first: int, only_second: int, p: float) -> None:
    found = mcnemar(*answers(30, only_first, only_second, 7))
    assert (found.only_first, found.only_second) == (only_first, only_second)
    assert found.p == pytest.approx(p, rel=1e-14)


@given(st.integers(0, 7), st.integers(0, 7))
def test_mcnemar_is_the_share_of_coin_flips_that_are_as_lopsided(only_first: int, only_second: int) -> None:
    flips = only_first + only_second
    lopsided = [
        abs(2 * sum(coins) - flips) >= abs(only_first - only_second)
        for coins in itertools.product((0, 1), repeat=flips)
    ]
    assert mcnemar(*answers(3, only_first, only_second, 2)).p == pytest.approx(sum(lopsided) / 2**flips, rel=1e-14)


def test_mcnemar_is_exact_for_thousands_of_items() -> None:
    """Fair coins: 4,000 flips have a standard deviation of √1000, so 1,900 of them lie 3.16 deviations away."""
    exact = 2 * sum(Fraction(math.comb(4000, k), 2**4000) for k in range(1901))
    assert mcnemar(*answers(0, 1900, 2100, 5)).p == pytest.approx(float(exact), rel=1e-12)
    assert 0.001 < exact < 0.002  # normal theory: 2·Φ(−3.16) = 0.0016
    assert mcnemar(*answers(0, 0, 4000, 0)).p == 0  # 2⁻³⁹⁹⁹ is below the smallest float


def test_mcnemar_needs_the_same_items() -> None:
    with pytest.raises(ValueError, match=r"shorter|longer"):
        mcnemar([True], [True, False])


# Paired bootstrap ----------------------------------------------------------------------------------------------------


def test_the_interval_is_the_bootstrap_of_the_differences() -> None:
    random = np.random.default_rng(0)
    first, second = random.normal(1, 1, 60).tolist(), random.normal(0, 1, 60).tolist()
    differences = [one - other for one, other in zip(first, second, strict=True)]
    found = paired(first, second, resamples=500, seed=3)
    expected = bootstrap(differences, resamples=500, seed=3)
    assert found.difference.mean == pytest.approx(expected.mean)
    assert (found.difference.low, found.difference.high) == (expected.low, expected.high)
    tokens = random.integers(1, 9, 60).tolist()
    assert paired(first, second, tokens, 500, 3).difference.low == bootstrap(differences, tokens, 500, 3).low


def test_differences_of_verdicts_that_are_all_equal_have_a_width() -> None:
    """With s = 1.96²/(10 + 1.96²) = 0.27753 of the others unlike these: 1 - 2 s, and s on either side of 0."""
    assert verdict_difference([1.0] * 10) == Interval(1, pytest.approx(0.44493, abs=1e-5), 1)
    assert verdict_difference([-1.0] * 10) == Interval(-1, -1, pytest.approx(-0.44493, abs=1e-5))
    same = verdict_difference([0.0] * 10)
    assert same == Interval(0, pytest.approx(-0.27753, abs=1e-5), pytest.approx(0.27753, abs=1e-5))
    assert verdict_difference([1.0, 0.0] * 10) == bootstrap([1.0, 0.0] * 10)


def test_p_values_of_the_bootstrap_by_hand() -> None:
    """Two items with differences 1 and −1: a resample has mean −1, 0, 0 or 1, so three quarters lie at or below 0."""
    assert paired([1, 0], [0, 1]).p == 1
    assert paired([2, 2, 2], [1, 1, 1], resamples=999).p == 2 * 1 / 1000
    assert paired([1, 1, 1], [2, 2, 2], resamples=999).p == 2 * 1 / 1000
    assert paired([1, 2], [1, 2]).p == 1
    # differences 3 and −1: means 3, 1, 1, −1, so a quarter lies below 0 and p is near 1/2
    assert paired([3, 0], [0, 1], resamples=4000).p == pytest.approx(0.5, abs=0.04)


def test_p_is_below_5_percent_when_the_interval_leaves_zero_out() -> None:
    random = np.random.default_rng(1)
    sides = set()
    for repeat in range(60):
        found = paired(random.normal(0.25, 1, 60).tolist(), [0.0] * 60, resamples=1999, seed=repeat)
        outside = not found.difference.low <= 0 <= found.difference.high
        sides.add(outside)
        if abs(found.p - 0.05) > 0.003:
            assert outside == (found.p < 0.05)
    assert sides == {True, False}


def test_p_agrees_with_normal_theory_for_many_items() -> None:
    random = np.random.default_rng(2)
    difference = random.normal(0.1, 1, 400)
    z = difference.mean() / (difference.std() / math.sqrt(400))
    expected = math.erfc(abs(z) / math.sqrt(2))
    assert 0.01 < expected < 0.5
    assert paired(difference.tolist(), [0.0] * 400, resamples=20_000).p == pytest.approx(expected, abs=0.015)


def test_a_paired_comparison_needs_items_and_as_many_on_both_sides() -> None:
    with pytest.raises(ValueError, match="no items"):
        paired([], [])
    with pytest.raises(ValueError, match=r"shorter|longer"):
        paired([1.0], [])


# Equal models --------------------------------------------------------------------------------------------------------


def rejections(p_values: list[float]) -> float:
    return sum(p < 0.05 for p in p_values) / len(p_values)


def test_equal_models_seldom_differ_in_mcnemars_test() -> None:
    """Two models that are right on the same 60 % of the time, each on its own: the exact test errs on the safe side."""
    random = np.random.default_rng(3)
    p_values = [
        mcnemar((random.random(150) < 0.6).tolist(), (random.random(150) < 0.6).tolist()).p for _ in range(1000)
    ]
    # at most 5 %; the discreteness of some 72 differing items costs about a third of it
    assert 0.02 < rejections(p_values) < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_equal_models_differ_in_five_of_a_hundred_paired_bootstraps() -> None:
    random = np.random.default_rng(4)
    p_values = [
        paired(random.exponential(size=100).tolist(), random.exponential(size=100).tolist(), None, 600, seed).p
        for seed in range(800)
    ]
    assert rejections(p_values) == pytest.approx(0.05, abs=3 * math.sqrt(0.05 * 0.95 / 800))


def test_the_minimum_detectable_difference_is_detected_four_times_in_five() -> None:
    random = np.random.default_rng(5)
    effect = minimum_detectable_difference(2, 120)
    p_values = [paired(random.normal(effect, 2, 120).tolist(), [0.0] * 120, None, 600, seed).p for seed in range(600)]
    assert rejections(p_values) == pytest.approx(0.8, abs=3 * math.sqrt(0.8 * 0.2 / 600))


def test_holm_rejects_anything_among_five_true_hypotheses_in_five_of_a_hundred_families() -> None:
    random = np.random.default_rng(6)
    families = random.random((4000, 5))
    smallest = [min(holm(dict(zip("abcde", family, strict=True))).values()) for family in families.tolist()]
    # independent p-values: 1 − (1 − 0.05/5)⁵ = 0.049
    assert rejections(smallest) == pytest.approx(1 - 0.99**5, abs=3 * math.sqrt(0.05 * 0.95 / 4000))


# Holm ----------------------------------------------------------------------------------------------------------------


def test_holm_by_hand() -> None:
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005}) == pytest.approx(
        {"d": 4 * 0.005, "a": 3 * 0.01, "c": 2 * 0.03, "b": 2 * 0.03}
    )
    assert holm({"a": 0.6, "b": 0.7}) == {"a": 1, "b": 1}
    assert holm({"a": 0.03}) == {"a": 0.03}
    assert holm({}) == {}
    assert list(holm({"z": 0.5, "a": 0.1})) == ["z", "a"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7), st.floats(0.001, 0.999))
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values: list[float], level: float) -> None:
    adjusted = holm({str(number): p for number, p in enumerate(p_values)})
    rejected = set()
    for rank, number in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[number] * (len(p_values) - rank) > level:
            break
        rejected.add(str(number))
    assert {name for name, p in adjusted.items() if p <= level} == rejected


# Rates ---------------------------------------------------------------------------------------------------------------


def test_wilson_by_hand() -> None:
    z2 = 1.959963984540054**2
    assert (wilson(0, 10).low, wilson(0, 10).high) == (0, pytest.approx(z2 / (10 + z2)))  # 0.2775
    assert (wilson(10, 10).low, wilson(10, 10).high) == (pytest.approx(10 / (10 + z2)), 1)
    half = wilson(50, 100)
    assert half.mean == 0.5
    # centre 1/2; half width z·√(0.25/100 + z²/40000)/(1 + z²/100)
    assert (half.low, half.high) == (pytest.approx(0.403832, abs=1e-6), pytest.approx(0.596168, abs=1e-6))


@given(st.integers(1, 400), st.data())
def test_at_the_ends_of_wilsons_interval_the_rate_lies_196_standard_errors_away(
    items: int, data: st.DataObject
) -> None:
    successes = data.draw(st.integers(0, items))
    found = wilson(successes, items)
    for end in (found.low, found.high):
        if 0 < end < 1:
            assert abs(found.mean - end) / math.sqrt(end * (1 - end) / items) == pytest.approx(1.959964, rel=1e-5)


@pytest.mark.parametrize(("successes", "items"), [(0, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_what_is_no_rate_is_an_error(successes: float, items: int) -> None:
    with pytest.raises(ValueError, match="is no rate"):
        wilson(successes, items)


def test_a_tie_is_half_a_win() -> None:
    assert win_rate([1, 1, 0, 0.5]).mean == 2.5 / 4
    assert win_rate([0.5] * 100) == wilson(50, 100)
    assert win_rate([1, 0, 0, 1, 1]) == wilson(3, 5)


@pytest.mark.parametrize("preferences", [[], [1.5], [0.2, -0.1], [math.nan]])
def test_preferences_outside_zero_to_one_are_an_error(preferences: list[float]) -> None:
    with pytest.raises(ValueError, match="preference"):
        win_rate(preferences)


# Length control ------------------------------------------------------------------------------------------------------


def two_lengths(wins_longer: int, longer: int, wins_shorter: int, shorter: int) -> tuple[list[float], list[int]]:
    """Preferences and lengths (against 100) of answers that are 20 characters longer or shorter."""
    preferences = [1.0] * wins_longer + [0.0] * (longer - wins_longer)
    preferences += [1.0] * wins_shorter + [0.0] * (shorter - wins_shorter)
    return preferences, [120] * longer + [80] * shorter


def test_with_two_lengths_the_controlled_rate_has_a_closed_form() -> None:
    """Half of 2,000 answers 20 longer, 80 % of them win; half 20 shorter, 40 % win. tanh(±1) is ±0.762.

    Log-odds ln 4 and ln 2/3 are fitted exactly by b ± 0.762·a, so b = (ln 4 + ln 2/3)/2 = ln √(8/3), and the rate at
    equal length is √(8/3)/(1 + √(8/3)) = 0.6202, while the raw rate is 0.6.
    """
    preferences, lengths = two_lengths(800, 1000, 400, 1000)
    found = length_controlled_win_rate(preferences, lengths, [100] * 2000)
    odds = math.sqrt(8 / 3)
    assert win_rate(preferences).mean == 0.6
    assert found.rate.mean == pytest.approx(odds / (1 + odds), abs=1e-4)
    assert found.weight == pytest.approx(math.log(6) / 2 / math.tanh(1), abs=1e-3)
    # the delta method: b has variance (1/(1000·0.8·0.2) + 1/(1000·0.4·0.6))/4
    error = math.sqrt((1 / 160 + 1 / 240) / 4)
    logits = [math.log(end / (1 - end)) for end in (found.rate.low, found.rate.high)]
    assert logits[1] - logits[0] == pytest.approx(2 * 1.959964 * error, rel=1e-3)


def test_without_a_difference_of_lengths_control_changes_nothing() -> None:
    found = length_controlled_win_rate([1.0] * 300 + [0.0] * 100, [50] * 400, [50] * 400)
    assert (found.rate.mean, found.weight) == (pytest.approx(0.75, abs=1e-4), 0)


def test_a_constant_difference_of_lengths_explains_nothing() -> None:
    found = length_controlled_win_rate([1.0] * 40 + [0.0] * 10, [60] * 50, [50] * 50)
    plain = wilson(40, 50)
    assert (found.rate.mean, found.weight) == (pytest.approx(0.8, abs=1e-3), 0)
    assert (found.rate.low, found.rate.high) == (
        pytest.approx(plain.low, abs=0.01),
        pytest.approx(plain.high, abs=0.01),
    )


@pytest.mark.parametrize("items", [3, 10, 30])
def test_winning_always_is_no_more_certain_than_by_wilson(items: int) -> None:
    found = length_controlled_win_rate([1.0] * items, [7 + n % 3 for n in range(items)], [8] * items)
    plain = wilson(items, items)
    assert plain.low - 0.25 < found.rate.low < plain.low
    assert found.rate.high == plain.high == 1
    other = length_controlled_win_rate([0.0] * items, [8] * items, [7 + n % 3 for n in range(items)])
    assert (other.rate.low, other.rate.high) == (0, pytest.approx(1 - found.rate.low))


def test_swapping_the_models_turns_the_rate_around() -> None:
    random = np.random.default_rng(7)
    lengths, others = random.integers(10, 900, 120).tolist(), random.integers(10, 500, 120).tolist()
    preferences = random.random(120)
    one = length_controlled_win_rate(preferences.tolist(), lengths, others)
    other = length_controlled_win_rate((1 - preferences).tolist(), others, lengths)
    assert one.rate.mean == pytest.approx(1 - other.rate.mean, abs=1e-9)
    assert (one.rate.low, one.weight) == (pytest.approx(1 - other.rate.high), pytest.approx(other.weight))


def test_a_judge_that_likes_length_alone_is_seen_through() -> None:
    """Equally good models, one wordier: it wins well above half, and at equal length about half."""
    random = np.random.default_rng(8)
    difference = random.normal(150, 200, 3000)
    preferences = random.random(3000) < 1 / (1 + np.exp(-2 * np.tanh(difference / difference.std())))
    found = length_controlled_win_rate(preferences.astype(float).tolist(), difference.tolist(), [0] * 3000)
    assert preferences.mean() > 0.62
    assert found.rate.low < 0.5 < found.rate.high
    assert found.weight == pytest.approx(2, abs=0.25)


@pytest.mark.parametrize(
    ("preferences", "lengths", "low", "high"),
    [
        ([1.0] * 50, list(range(50)), 0.99, 1),  # always wins
        ([0.0] * 50, list(range(50)), 0, 0.01),
        ([1.0] * 25 + [0.0] * 25, [9] * 25 + [1] * 25, 0.499, 0.501),  # length decides all
        ([1.0], [3], 0.5, 1),
    ],
)
def test_preferences_that_one_thing_decides_still_give_a_rate(
    preferences: list[float], lengths: list[int], low: float, high: float
) -> None:
    found = length_controlled_win_rate(preferences, lengths, [5] * len(lengths))
    assert low <= found.rate.mean <= high
    assert 0 <= found.rate.low <= found.rate.mean <= found.rate.high <= 1
    assert math.isfinite(found.weight)


def test_length_control_needs_a_length_of_every_answer() -> None:
    with pytest.raises(ValueError, match="length"):
        length_controlled_win_rate([1.0, 0.0], [3, 4], [3])
    with pytest.raises(ValueError, match="no preferences"):
        length_controlled_win_rate([], [], [])


# Power ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("items", "discordance", "points"),
    [(14_042, 0.05, 0.5), (1319, 0.1, 2.4), (541, 0.2, 5.4), (252, 0.4, 11.2), (80, 0.05, 7.0), (80, 0.4, 19.8)],
)
def test_minimum_detectable_differences_are_those_of_the_table(items: int, discordance: float, points: float) -> None:
    """2.80·√(d/n) in percentage points, MMLU to MT-Bench."""
    found = 100 * minimum_detectable_difference(math.sqrt(discordance), items)
    assert found == pytest.approx(280 * math.sqrt(discordance / items), rel=1e-3)
    assert found == pytest.approx(points, abs=0.05)


def test_more_power_or_a_stricter_level_asks_for_a_larger_difference() -> None:
    assert minimum_detectable_difference(1, 100, power=0.9) == pytest.approx((1.959964 + 1.281552) / 10, rel=1e-5)
    assert minimum_detectable_difference(1, 100, level=0.01) == pytest.approx((2.575829 + 0.841621) / 10, rel=1e-5)


@pytest.mark.parametrize(
    ("deviation", "items", "power", "level"),
    [(1, 0, 0.8, 0.05), (-1, 5, 0.8, 0.05), (1, 5, 1.0, 0.05), (1, 5, 0.8, 0.0), (1, 5, 0.04, 0.05)],
)
def test_power_without_meaning_is_an_error(deviation: float, items: int, power: float, level: float) -> None:
    with pytest.raises(ValueError, match="give at least one item"):
        minimum_detectable_difference(deviation, items, power, level)


# Seeds ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("degrees", "quantile"),
    [(1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (9, 2.2622), (10, 2.2281), (30, 2.0423), (120, 1.9799)],
)
def test_quantiles_of_t_are_those_of_the_tables(degrees: int, quantile: float) -> None:
    assert t_quantile(degrees) == pytest.approx(quantile, abs=5e-5)


def test_quantiles_at_other_levels_and_in_the_limit() -> None:
    assert t_quantile(5, 0.99) == pytest.approx(4.0321, abs=5e-5)
    assert t_quantile(100_000) == pytest.approx(1.95999, abs=5e-5)


def test_a_mean_over_seeds_by_hand() -> None:
    """Mean 2, standard deviation 1, 4.3027/√3 = 2.4841 on both sides."""
    found = over_seeds([1.0, 2.0, 3.0])
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, -0.4841, 4.4841), abs=1e-4)
    assert over_seeds([5.0, 5.0]) == Interval(5.0, 5.0, 5.0)


def test_one_seed_has_no_interval() -> None:
    with pytest.raises(ValueError, match="1 values have no interval"):
        over_seeds([1.0])
