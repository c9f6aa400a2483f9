"""Shares against hand arithmetic and the published tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.errors import RecipeError
from spintune.mixtures.declarations import BUILTIN
from spintune.mixtures.selectors import select
from spintune.mixtures.shares import MixturePlan, fit, load_preset, plan
from spintune.mixtures.tasks import MixtureTask
from spintune.recipe.mixture import QuadrantName, WeighingSection

TaskOf = Callable[..., MixtureTask]
ALL: list[QuadrantName] = ["zero_direct", "few_direct", "zero_cot", "few_cot"]


def planned(tasks: Sequence[MixtureTask], rows: Sequence[int], mixture: Any = None, overall: Any = None) -> MixturePlan:
    weighing = WeighingSection.model_validate(mixture or {}) if not isinstance(mixture, WeighingSection) else mixture
    supported = {task.name: [key for key in ALL if key.partition("_")[2] in task.kinds] for task in tasks}
    return plan(
        tasks,
        {task.name: count for task, count in zip(tasks, rows, strict=True)},
        supported,
        weighing,
        overall and WeighingSection.model_validate(overall),
    )


def shares(made: MixturePlan) -> dict[str, float]:
    return {share.task: share.share for share in made.tasks}


def marginals(made: MixturePlan) -> dict[str, float]:
    return {key: math.fsum(share.quadrants.get(key, 0) for share in made.tasks) for key in ALL}


@pytest.fixture
def three(additions: TaskOf, news: TaskOf) -> list[MixtureTask]:
    """a and b have rationales, c has none."""
    return [additions(4, "a"), additions(4, "b"), news(4, "c")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [100 / 600, 200 / 600, 300 / 600]),
        ({"cap": 150}, [100 / 400, 150 / 400, 150 / 400]),
        ({"rate_maximum": 50}, [1 / 3, 1 / 3, 1 / 3]),
        ({"temperature": 2.0}, [v / (10 + 200**0.5 + 300**0.5) for v in (10, 200**0.5, 300**0.5)]),
        ({"rate_maximum": 200, "temperature": 2.0}, [v / (10 + 2 * 200**0.5) for v in (10, 200**0.5, 200**0.5)]),
        ({"weights": {"a": 1.0, "b": 1.0, "c": 2.0}}, [0.25, 0.25, 0.5]),
        ({"weights": {"[ab]": 1.0, "cluster:c": 2.0}}, [0.25, 0.25, 0.5]),
        ({"weights": {"*": 3.0}}, [1 / 3, 1 / 3, 1 / 3]),
        ({"groups": {"x": {"tasks": ["a", "b"]}, "y": {"tasks": ["c"]}}}, [1 / 6, 2 / 6, 3 / 6]),
        (
            {"groups": {"x": {"tasks": ["a", "b"], "share": 3.0}, "y": {"tasks": ["c"], "share": 1.0}}},
            [0.25, 0.5, 0.25],
        ),
        (
            {
                "groups": {
                    "x": {"tasks": ["a", "b"], "share": 0.5, "weights": {"*": 1.0}},
                    "y": {"tasks": ["c"], "share": 0.5},
                }
            },
            [0.25, 0.25, 0.5],
        ),
        (
            {
                "groups": {
                    "outer": {
                        "share": 0.8,
                        "groups": {"i": {"tasks": ["a"], "share": 1.0}, "j": {"tasks": ["c"], "share": 3.0}},
                    },
                    "y": {"tasks": ["b"], "share": 0.2},
                }
            },
            [0.2, 0.2, 0.6],
        ),
        (
            {"cap": 100, "groups": {"x": {"tasks": ["a", "b"], "cap": 150}, "y": {"tasks": ["c"]}}},
            [100 / 350, 150 / 350, 100 / 350],
        ),
    ],
)
def test_shares_by_hand(three: list[MixtureTask], settings: dict[str, Any], expected: list[float]) -> None:
    made = planned(three, [100, 200, 300], settings)
    assert list(shares(made).values()) == pytest.approx(expected, abs=1e-12)
    for share in made.tasks:
        assert math.fsum(share.quadrants.values()) == pytest.approx(share.share, abs=1e-12)


def test_without_wanted_quadrants_a_task_spreads_over_what_it_has(three: list[MixtureTask]) -> None:
    made = planned(three, [1, 1, 2])
    assert made.quadrants is None
    assert made.tasks[0].quadrants == pytest.approx(dict.fromkeys(ALL, 1 / 16))
    assert made.tasks[2].quadrants == pytest.approx({"zero_direct": 0.25, "few_direct": 0.25})


def test_wanted_quadrants_and_shares_of_tasks_both_hold_where_that_is_possible(three: list[MixtureTask]) -> None:
    wanted = {"zero_direct": 0.3, "few_direct": 0.3, "zero_cot": 0.3, "few_cot": 0.1}
    made = planned(three, [1, 2, 2], {"quadrants": wanted})
    assert list(shares(made).values()) == pytest.approx([0.2, 0.4, 0.4])
    assert marginals(made) == pytest.approx(wanted, abs=1e-7)
    assert made.quadrants == pytest.approx(wanted)


def test_tasks_keep_their_shares_where_too_few_have_rationales(three: list[MixtureTask]) -> None:
    made = planned(three, [1, 1, 8], {"quadrants": {"zero_cot": 0.9, "zero_direct": 0.1}})
    assert list(shares(made).values()) == pytest.approx([0.1, 0.1, 0.8])
    assert marginals(made)["zero_cot"] == pytest.approx(0.2, abs=1e-3)
    assert made.quadrants == pytest.approx({"zero_cot": 0.9, "zero_direct": 0.1, "few_cot": 0.0, "few_direct": 0.0})


def test_a_task_without_any_wanted_quadrant_keeps_its_share(three: list[MixtureTask]) -> None:
    made = planned(three, [1, 1, 2], {"quadrants": {"few_cot": 1.0}})
    assert made.tasks[2].quadrants == pytest.approx({"zero_direct": 0.25, "few_direct": 0.25})


@given(
    st.lists(st.floats(0.05, 1), min_size=1, max_size=6),
    st.lists(st.floats(0.05, 1), min_size=1, max_size=6),
    st.lists(st.floats(0, 1), min_size=4, max_size=4).filter(lambda q: sum(q[:2]) > 0.1),
)
def test_fit_meets_tasks_always_and_quadrants_whenever_hall_allows(
    with_cot: list[float], without: list[float], quadrants: list[float]
) -> None:
    total = sum(with_cot) + sum(without)
    tasks = {f"c{n}": v / total for n, v in enumerate(with_cot)} | {f"d{n}": v / total for n, v in enumerate(without)}
    wanted = {key: v / sum(quadrants) for key, v in zip(ALL, quadrants, strict=True)}
    supported = {name: ALL if name[0] == "c" else ALL[:2] for name in tasks}
    cells = fit(tasks, wanted, supported)
    assert {name: math.fsum(row.values()) for name, row in cells.items()} == pytest.approx(tasks, abs=1e-9)
    # feasible with room to spare: the tasks without rationales fit into the direct quadrants
    if sum(without) / total < 0.9 * (wanted["zero_direct"] + wanted["few_direct"]):
        sums = {key: math.fsum(row.get(key, 0) for row in cells.values()) for key in ALL}
        assert sums == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (
            {"groups": {"x": {"tasks": ["a", "d"]}}},
            "mixture: group x: tasks: there is no task d in this mixture; known here",
        ),
        (
            {"groups": {"x": {"tasks": ["cluster:aa"]}}},
            "there is no task cluster:aa in this mixture; did you mean cluster:a?",
        ),
        ({"groups": {"x": {"tasks": ["a", "b"]}}}, "task c (collection muffin) is in no group of the mixture (x)"),
        (
            {"groups": {"x": {}, "y": {"tasks": ["a"]}}},
            "mixture: group y: task a is in mixture: group x too; name it once",
        ),
        ({"groups": {"x": {"share": 1.0, "tasks": ["a"]}, "y": {"tasks": ["b"]}}}, "group y has no share"),
        ({"groups": {"x": {"share": 0.0}}}, "mixture: the shares of x sum to 0; give at least one above 0"),
        ({"weights": {"*": 0.0}}, "mixture: the weights of its tasks sum to 0"),
        ({"weights": {"a": 1.0}}, "mixture: weights: task b has none; give it one, or 0"),
        ({"weights": {"*": 1.0, "a": 2.0}}, "mixture: weights: a matches task a, which has one already; name it once"),
        ({"weights": {"aa": 1.0}}, "mixture: weights: there is no task aa in this mixture; did you mean a?"),
    ],
)
def test_shares_that_cannot_be_had_are_one_clear_line(
    three: list[MixtureTask], settings: dict[str, Any], expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        planned(three, [1, 1, 1], settings)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_quadrant_that_no_task_has_is_an_error(news: TaskOf) -> None:
    with pytest.raises(RecipeError) as caught:
        planned([news(4)], [4], {"quadrants": {"zero_direct": 1.0, "few_cot": 0.1}})
    assert str(caught.value) == (
        "quadrants: few_cot has a share and no task for it; set it to 0, or add a task with rationales "
        "and more than one row within its cap"
    )


# --- selectors and presets ---


@pytest.mark.parametrize(
    ("selectors", "expected"),
    [(["a"], ["a"]), (["c", "a"], ["a", "c"]), (["?"], ["a", "b", "c"]), (["family:*"], ["a", "b", "c"]), ([], [])],
)
def test_selectors_mean_tasks_in_their_order(
    three: list[MixtureTask], selectors: list[str], expected: list[str]
) -> None:
    assert [task.name for task in select(selectors, three, "here")] == expected


TABLE_23: Mapping[str, Mapping[str, float]] = {
    "flan2022": {"muffin": 46.0, "t0": 27.9, "cot": 1.8, "niv2": 24.2},
    "flan2022-ablations": {"muffin": 52.0, "t0": 15.0, "cot": 3.0, "niv2": 30.0},
    "flan2022-released": {"muffin": 40.0, "t0": 32.0, "cot": 5.0, "niv2": 20.0, "dialog": 3.0},
}


@pytest.mark.parametrize("preset", TABLE_23)
def test_a_presets_collections_get_the_published_proportions(additions: TaskOf, news: TaskOf, preset: str) -> None:
    table = TABLE_23[preset]
    tasks = [(additions if key == "cot" else news)(4, key, collection=key) for key in table]
    made = planned(tasks, [10_000_000] * len(tasks), load_preset(preset))
    total = sum(table.values())  # the published ones of the final models sum to 99.9
    assert shares(made) == pytest.approx({key: value / total for key, value in table.items()})
    assert made.absent == ()
    cot = made.tasks[list(table).index("cot")]
    assert cot.quadrants == pytest.approx({"zero_cot": cot.share / 2, "few_cot": cot.share / 2}, abs=1e-6)
    assert marginals(made)["zero_direct"] == pytest.approx((1 - cot.share) / 2, abs=1e-6)


@pytest.mark.parametrize(("collection", "cap"), [("muffin", 30_000), ("t0", 20_000), ("niv2", 5_000), ("cot", 100_000)])
def test_flan_2022_caps_are_rates_and_cut_no_rows(additions: TaskOf, collection: str, cap: int) -> None:
    tasks = [additions(4, name, collection=collection) for name in ("small", "large")]
    made = planned(tasks, [1000, 10**6], load_preset("flan2022"))
    assert shares(made)["small"] == pytest.approx(1000 / (1000 + cap))
    assert [share.cap for share in made.tasks] == [None, None]


def test_flan_2021_cuts_at_30000_rows_and_weighs_3000(news: TaskOf) -> None:
    made = planned([news(4, "small"), news(4, "large")], [1000, 10**6], load_preset("flan2021"))
    assert shares(made) == pytest.approx({"small": 0.25, "large": 0.75})
    assert {share.cap for share in made.tasks} == {30_000}


def test_absent_groups_of_a_preset_are_named_and_the_others_share_theirs(news: TaskOf) -> None:
    made = planned([news(4, "n", collection="t0"), news(4, "m")], [10, 10], load_preset("flan2022"))
    assert made.absent == ("cot", "niv2")
    assert shares(made) == pytest.approx({"n": 27.9 / 73.9, "m": 46.0 / 73.9})


def test_settings_beside_a_preset_go_before_its_own(additions: TaskOf) -> None:
    tasks = [additions(4, "c", collection="cot"), additions(4, "m", collection="muffin")]
    made = planned(tasks, [10, 10], load_preset("flan2022"), {"quadrants": {"zero_direct": 1.0}})
    assert marginals(made) == pytest.approx({"zero_direct": 1.0, "few_direct": 0, "zero_cot": 0, "few_cot": 0})


def test_a_task_outside_a_presets_collections_is_an_error(news: TaskOf) -> None:
    with pytest.raises(
        RecipeError, match=r"news.yaml: task news \(collection mine\) is in no group of the preset flan2022"
    ):
        planned([news(4, collection="mine")], [4], load_preset("flan2022"))


def test_an_unknown_preset_is_suggested_a_known_one() -> None:
    with pytest.raises(RecipeError, match="there is no mixture preset flan22; did you mean flan20"):
        load_preset("flan22")


@pytest.mark.parametrize("name", [path.stem for path in sorted((BUILTIN / "presets").glob("*.yaml"))])
def test_every_preset_states_its_source(name: str) -> None:
    preset = load_preset(name)
    assert preset.name == name
    assert "arXiv" in preset.about or "google-research/FLAN at" in preset.about
