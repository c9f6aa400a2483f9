"""The stream: a pure function of seed and position, whole epochs, exact shards, counted exemplars."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune import number_files, record_files
from spintune.errors import DataError, RecipeError
from spintune.mixtures.mixture import Mixture, Prompting, load_mixture
from spintune.mixtures.rendering import PromptBudget, RenderedPrompt
from spintune.mixtures.report import ExemplarReport, materialize, show
from spintune.mixtures.tasks import MixtureTask, load_tasks
from spintune.recipe.checking import checked
from spintune.recipe.mixture import MixtureSection, WeighingSection

TaskOf = Callable[..., MixtureTask]


def weighing(**settings: Any) -> WeighingSection:
    return WeighingSection.model_validate(settings)


def first(mixture: Mixture, count: int) -> list[RenderedPrompt]:
    return [mixture.element(position) for position in range(count)]


@pytest.fixture
def mixed(additions: TaskOf, news: TaskOf) -> Callable[..., Mixture]:
    def make(seed: int = 7, **settings: Any) -> Mixture:
        return Mixture([additions(30, "a"), additions(12, "b"), news(20, "c")], seed, **settings)

    return make


# --- position ---


def test_an_element_depends_on_seed_and_position_alone(mixed: Callable[..., Mixture]) -> None:
    forwards = first(mixed(), 200)
    backwards = mixed()
    assert [backwards.element(position) for position in reversed(range(200))] == forwards[::-1]
    assert first(mixed(seed=8), 200) != forwards


def test_fewer_examples_are_the_beginning_of_more(mixed: Callable[..., Mixture]) -> None:
    mixture = mixed()
    assert materialize(mixture, 50).examples == materialize(mixture, 120).examples[:50]


# --- rows ---


@pytest.mark.parametrize("rows", [1, 3, 9, 10, 11, 47])
def test_every_row_comes_once_before_any_comes_twice(additions: TaskOf, rows: int) -> None:
    numbers = [element.row for element in first(Mixture([additions(rows)], 3), 3 * rows)]
    for epoch in range(3):
        assert sorted(numbers[epoch * rows : (epoch + 1) * rows]) == list(range(1, rows + 1))


def test_an_epoch_has_an_order_of_its_own(additions: TaskOf) -> None:
    numbers = [element.row for element in first(Mixture([additions(20)], 3), 40)]
    assert numbers[:20] != numbers[20:]
    assert numbers[:20] != sorted(numbers[:20])


def test_rows_of_every_task_come_in_whole_passes(mixed: Callable[..., Mixture]) -> None:
    rows = {"a": 30, "b": 12, "c": 20}
    counts = Counter((element.task, element.row) for element in first(mixed(), 310))
    for name, count in rows.items():
        seen = [counts[(name, row)] for row in range(1, count + 1)]
        assert max(seen) - min(seen) <= 1
        assert sum(seen) == pytest.approx(310 * count / 62, abs=4)


def test_a_cap_uses_that_many_rows_and_no_others(additions: TaskOf) -> None:
    mixture = Mixture([additions(50)], 3, weighing(cap=8))
    assert len({element.row for element in first(mixture, 80)}) == 8


def test_a_cap_that_leaves_no_exemplar_leaves_no_few_shot_prompts(additions: TaskOf) -> None:
    with pytest.raises(RecipeError, match="few_direct has a share and no task for it"):
        Mixture([additions(50)], 3, weighing(cap=1, quadrants={"few_direct": 1.0}))
    mixture = Mixture([additions(50)], 3, weighing(cap=1))
    assert mixture.plan.tasks[0].quadrants == {"zero_direct": 0.5, "zero_cot": 0.5}
    assert {element.shots for element in first(mixture, 20)} == {0}


def test_a_task_with_weight_zero_never_comes(additions: TaskOf) -> None:
    mixture = Mixture([additions(5, n) for n in "abc"], 3, weighing(weights={"a": 0.0, "b": 1.0, "c": 0.0}))
    assert {element.task for element in first(mixture, 100)} == {"b"}


# --- shares ---


@pytest.mark.parametrize("count", [100, 1000, 5000])
def test_realised_shares_stay_within_a_few_examples_of_the_wanted_ones(
    mixed: Callable[..., Mixture], count: int
) -> None:
    wanted = {"zero_direct": 0.3, "few_direct": 0.3, "zero_cot": 0.3, "few_cot": 0.1}
    report = materialize(
        mixed(weighing=weighing(weights={"a": 2.0, "b": 1.0, "c": 1.0}, quadrants=wanted)), count
    ).report
    for name, share in (("a", 0.5), ("b", 0.25), ("c", 0.25)):
        assert report.tasks[name].wanted == pytest.approx(share)
        assert report.tasks[name].realised == report.tasks[name].examples / count
        assert abs(report.tasks[name].examples - share * count) <= 10
    for name, share in wanted.items():
        assert report.quadrants[name].wanted == pytest.approx(share)
        assert abs(report.quadrants[name].realised - share) * count <= 10 * 3  # one interval a task


def test_shares_of_any_window_are_close_too(mixed: Callable[..., Mixture]) -> None:
    mixture = mixed(weighing=weighing(weights={"a": 1.0, "b": 1.0, "c": 2.0}))
    for begin in (0, 1234, 10**9, 10**15):
        tasks = Counter(mixture.element(position).task for position in range(begin, begin + 200))
        assert abs(tasks["c"] - 100) <= 6


def test_phrasings_and_inversions_get_even_and_wanted_shares(additions: TaskOf) -> None:
    task = additions(50, phrasings="builtin:arithmetic", direct=None, cot=None)
    mixture = Mixture([task], 1, weighing(quadrants={"zero_direct": 1.0}), Prompting(inversion=0.3))
    elements = first(mixture, 3000)
    # binomial: five standard deviations of 3000 draws
    assert sum(element.inverted for element in elements) == pytest.approx(900, abs=5 * 25.1)
    straight = Counter(element.phrasing for element in elements if not element.inverted)
    assert set(straight) == set(range(10))
    assert min(straight.values()) > 210 - 5 * 14.0


def test_hidden_options_get_the_wanted_share_only_where_a_task_allows_it(news: TaskOf) -> None:
    for optional, expected in ((True, 500), (False, 0)):
        task = news(40, options={"fixed": ["world", "sports", "business", "science"], "optional": optional})
        mixture = Mixture([task], 1, prompting=Prompting(inversion=0.0, no_options=0.5))
        assert sum(element.hides_options for element in first(mixture, 1000)) == pytest.approx(expected, abs=5 * 15.8)


# --- exemplars ---


def test_exemplars_are_training_rows_that_ask_something_else(additions: TaskOf) -> None:
    mixture = Mixture([additions(40)], 5, weighing(quadrants={"few_direct": 1.0}), eval_fraction=0.5)
    pool = mixture.pools[0]
    train = {pool.task.items[index].fields["question"] for index in pool.train}
    held = {pool.task.items[index].fields["question"] for index in pool.heldout}
    for element in [*first(mixture, 200), *mixture.heldout(20)]:
        query = pool.task.items[element.row - 1].fields["question"]
        asked = re.findall(r"What is \d+ plus \d+\?", element.prompt)
        assert asked[-1] == query
        assert query not in asked[:-1]
        assert set(asked[:-1]) <= train
        assert len(set(asked)) == len(asked) == element.shots + 1
    assert {pool.task.items[element.row - 1].fields["question"] for element in mixture.heldout(20)} == held


def test_shots_have_the_wanted_range(additions: TaskOf) -> None:
    mixture = Mixture([additions(40)], 5, weighing(quadrants={"few_direct": 1.0}), Prompting(shots=(2, 4)))
    assert Counter(element.shots for element in first(mixture, 300)).keys() == {2, 3, 4}


def test_exemplars_share_the_phrasing_of_the_query(additions: TaskOf) -> None:
    ways = [{"input": f"[{n}] {{question}}", "target": "{answer}"} for n in range(6)]
    mixture = Mixture([additions(20, direct=ways, cot=None)], 5, weighing(quadrants={"few_direct": 1.0}))
    for element in first(mixture, 100):
        assert re.findall(r"\[(\d)\]", element.prompt) == [str(element.phrasing)] * (element.shots + 1)


def test_frames_vary_from_example_to_example(additions: TaskOf) -> None:
    mixture = Mixture([additions(20)], 5, weighing(quadrants={"few_direct": 1.0}), Prompting(shots=(2, 2)))
    between = {
        re.split(r"What is \d+ plus \d+\?", element.prompt)[1].replace("\n", "|") for element in first(mixture, 200)
    }
    assert len({re.sub(r"\d+", "", text) for text in between}) > 20


def test_too_small_a_pool_gives_fewer_exemplars_and_says_so(additions: TaskOf) -> None:
    mixture = Mixture([additions(3)], 5, weighing(quadrants={"few_direct": 1.0}), Prompting(shots=(5, 5)))
    report = materialize(mixture, 10).report
    assert report.exemplars == ExemplarReport(
        asked_for=50, used=20, over_budget=0, none_other=30, prompts_left_without=0
    )


def test_what_the_budget_drops_is_counted(additions: TaskOf) -> None:
    words = PromptBudget(30, lambda text: len(text.split()))
    mixture = Mixture(
        [additions(40)], 5, weighing(quadrants={"few_direct": 1.0}), Prompting(shots=(5, 5), budget=words)
    )
    made = materialize(mixture, 100)
    counts = made.report.exemplars
    assert counts.asked_for == counts.used + counts.over_budget == 500
    assert counts.over_budget > 0
    assert all(len(example.messages[0].content.split()) <= 30 for example in made.examples)


def test_few_shot_prompts_without_room_are_counted_as_zero_shot(additions: TaskOf) -> None:
    rows = [{"question": "word " * (3 if n % 2 else 100) + str(n), "why": "w", "sum": n} for n in range(40)]
    mixture = Mixture(
        [_wordy(additions, rows)],
        5,
        weighing(quadrants={"few_direct": 1.0}),
        Prompting(budget=PromptBudget(60, lambda t: len(t.split()))),
    )
    report = materialize(mixture, 80).report
    assert report.examples == 80
    left = report.exemplars.prompts_left_without
    assert 40 <= left < 80  # every long question, and those whose first exemplar is long
    assert report.quadrants["zero_direct"].realised == left / 80


def _wordy(additions: TaskOf, rows: list[dict[str, Any]]) -> MixtureTask:
    plain = additions(len(rows))
    items = tuple(
        type(item)(item.number, {**item.fields, "question": row["question"]})
        for item, row in zip(plain.items, rows, strict=True)
    )
    return MixtureTask(**{**vars(plain), "items": items})


def test_a_budget_that_never_fits_an_exemplar_is_an_error(additions: TaskOf) -> None:
    mixture = Mixture(
        [additions(10)],
        5,
        weighing(quadrants={"few_direct": 1.0}),
        Prompting(budget=PromptBudget(6, lambda t: len(t.split()))),
    )
    with pytest.raises(DataError) as caught:
        materialize(mixture, 10)
    assert str(caught.value) == (
        "mixture: in none of 10 few-shot prompts does an exemplar fit into 6 tokens beside the question; "
        "raise few_shot_tokens (and data.max_length), or set the few-shot quadrants to 0"
    )


def test_a_task_of_one_question_has_no_few_shot_quadrants(additions: TaskOf) -> None:
    assert {element.quadrant for element in first(Mixture([additions(1)], 5), 20)} == {"zero_direct", "zero_cot"}
    with pytest.raises(RecipeError, match="few_direct has a share and no task for it"):
        Mixture([additions(1)], 5, weighing(quadrants={"few_direct": 1.0}))


# --- held out ---


def test_held_out_questions_are_never_trained_on(additions: TaskOf, news: TaskOf) -> None:
    rows = 30
    mixture = Mixture([additions(rows, "a"), news(20, "b")], 5, eval_fraction=0.2)
    trained = {(element.task, element.row) for element in first(mixture, 500)}
    held = {(element.task, element.row) for element in mixture.heldout(100)}
    assert not trained & held
    assert Counter(task for task, _ in held) == {"a": 6, "b": 4}
    assert len(trained) == 24 + 16


def test_equal_questions_are_on_one_side(task: TaskOf) -> None:
    rows = [{"question": f"q{n % 5}", "why": "w", "sum": n} for n in range(50)]
    mixture = Mixture([task(rows=rows)], 5, eval_fraction=0.4)
    pool = mixture.pools[0]
    sides = [{pool.task.items[index].fields["question"] for index in side} for side in (pool.train, pool.heldout)]
    assert (len(sides[0]), len(sides[1]), sides[0] & sides[1]) == (3, 2, set())


def test_a_held_out_task_is_only_asked_in_every_quadrant_it_has(additions: TaskOf, news: TaskOf) -> None:
    tasks = [additions(10, "a"), additions(12, "b", cluster="far"), news(20, "c")]
    mixture = Mixture(tasks, 5, held_out=["cluster:far"])
    assert {element.task for element in first(mixture, 300)} == {"a", "c"}
    asked = mixture.heldout(4)
    assert Counter(element.quadrant for element in asked) == dict.fromkeys(
        ("zero_direct", "few_direct", "zero_cot", "few_cot"), 4
    )
    assert {element.task for element in asked} == {"b"}
    assert not any(element.inverted or element.hides_options for element in asked)
    assert materialize(mixture, 10).report.held_out_tasks == ["b"]


def test_a_held_out_task_of_one_row_is_asked_without_exemplars(additions: TaskOf) -> None:
    mixture = Mixture([additions(5, "a"), additions(1, "b")], 5, held_out=["b"])
    assert [element.quadrant for element in mixture.heldout(9)] == ["zero_direct", "zero_cot"]


def test_held_out_prompts_do_not_depend_on_what_else_is_mixed(additions: TaskOf, news: TaskOf) -> None:
    alone = Mixture([additions(20, "a")], 5, eval_fraction=0.2).heldout(9)
    beside = Mixture([news(9, "n"), additions(20, "a")], 5, eval_fraction=0.2).heldout(9)
    assert alone == [element for element in beside if element.task == "a"]


@pytest.mark.parametrize(
    ("held_out", "expected"),
    [
        (["*"], "held_out: every task is held out, so none is left to train on; hold out fewer"),
        (["bb"], "held_out: there is no task bb in this mixture; did you mean b?"),
        (["cluster:x"], "held_out: there is no task cluster:x in this mixture; known here: a, b, c"),
    ],
)
def test_holding_out_what_is_not_there_or_everything_is_an_error(
    mixed: Callable[..., Mixture], held_out: list[str], expected: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        mixed(held_out=held_out)
    assert str(caught.value) == expected


def test_two_tasks_of_one_name_are_an_error(additions: TaskOf) -> None:
    with pytest.raises(RecipeError, match="there are 2 tasks named sums; rename one"):
        Mixture([additions(3), additions(3)], 1)


def test_a_fraction_that_leaves_nothing_names_the_task(additions: TaskOf) -> None:
    with pytest.raises(DataError, match=r"^task sums: a held-out fraction of 0.9 leaves none of 2 distinct prompts"):
        Mixture([additions(2)], 1, eval_fraction=0.9)


# --- from a recipe ---


def section(**settings: Any) -> MixtureSection:
    return checked(settings, MixtureSection, "recipe: data.mixture")


def test_a_recipe_names_tasks_weights_and_quadrants(declare: Callable[..., Path]) -> None:
    made = section(tasks=str(declare()), examples=40, quadrants={"few_cot": 1.0}, shots=[2, 2], few_shot_tokens=500)
    mixture = load_mixture(made, 7, 0.2, 1024, len)
    assert {element.shots for element in first(mixture, 40)} == {2}
    assert mixture.prompting.budget is not None
    assert mixture.prompting.budget.tokens == 500
    assert len(mixture.heldout(5)) == 2 * 4


@pytest.mark.parametrize(
    ("settings", "max_length", "expected"),
    [({}, 1024, 768), ({"preset": "flan2022"}, 1024, 768), ({"preset": "flan2022"}, 8192, 1920), ({}, 2560, 1920)],
)
def test_few_shot_prompts_leave_a_quarter_of_the_length_to_the_answer(
    declare: Callable[..., Path], settings: dict[str, Any], max_length: int, expected: int
) -> None:
    mixture = load_mixture(section(tasks=str(declare()), examples=1, **settings), 7, 0.0, max_length, len)
    assert mixture.prompting.budget is not None
    assert mixture.prompting.budget.tokens == expected


def test_settings_go_before_the_presets_which_go_before_the_defaults(declare: Callable[..., Path]) -> None:
    path = str(declare())
    preset = load_mixture(section(tasks=path, examples=1, preset="flan2022", inversion=0.0), 7, 0.0, 1024, len)
    assert preset.prompting.inversion == 0.0
    assert preset.plan.quadrants == pytest.approx({"zero_direct": 0.5, "few_direct": 0.5, "zero_cot": 0, "few_cot": 0})
    assert load_mixture(section(tasks=path, examples=1), 7, 0.0, 1024, len).plan.quadrants is None


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"exampels": 3}, "recipe: data.mixture: unknown key exampels; did you mean examples?"),
        ({"quadrants": {"zero_shot": 1.0}}, "unknown key quadrants.zero_shot; did you mean"),
        ({"quadrants": {"zero_cot": 0.0}}, "quadrants: the shares sum to 0; give at least one above 0"),
        ({"quadrants": {"zero_cot": -1.0}}, "quadrants.zero_cot: Input should be greater than or equal to 0"),
        ({"tasks": []}, "tasks is empty; name at least one"),
        ({"shots": [5, 1]}, "shots: give the minimum first, such as [1, 5]"),
        ({"preset": "flan2022", "weights": {"a": 1.0}}, "a preset has groups of its own"),
        ({"groups": {"x": {"tasks": ["a"], "groups": {}}}}, "groups"),
        ({"weights": {}}, "weights is empty; leave it out or fill it in"),
        ({"weights": {"a": 1.0}, "temperature": 2.0}, "temperature would do nothing beside weights, which are fixed"),
        ({"groups": {"x": {"share": 1.0, "weights": {"a": 1.0}, "rate_maximum": 9}}}, "rate_maximum would do nothing"),
        ({"groups": {"x": {"taks": ["a"]}}}, "unknown key groups.x.taks; did you mean groups.x.tasks?"),
    ],
)
def test_wrong_settings_are_one_clear_line(settings: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        section(**{"tasks": "builtin:gsm8k", "examples": 1, **settings})
    assert expected in str(caught.value)


def test_a_group_with_fixed_weights_may_be_weighted_by_its_rates() -> None:
    made = section(tasks="builtin:gsm8k", examples=1, groups={"x": {"weights": {"a": 1.0}, "rate_maximum": 9}})
    assert made.groups is not None
    assert made.groups["x"].rate_maximum == 9


def test_settings_without_tasks_say_what_is_missing() -> None:
    with pytest.raises(RecipeError, match=r"tasks is missing; add 'tasks: ...' \(tasks: builtin:NAME or YAML files\)"):
        section(examples=1)


def test_show_gives_plain_examples_of_one_task(additions: TaskOf) -> None:
    shown = show(additions(9), 20, seed=3)
    assert {row.quadrant for row in shown} == {"zero_direct", "few_direct", "zero_cot", "few_cot"}
    assert shown == show(additions(9), 20, seed=3)


def test_the_stream_is_the_same_in_every_process_and_needs_no_torch(declare: Callable[..., Path]) -> None:
    program = (
        "import importlib, pkgutil, sys\nimport spintune.mixtures as package\n"
        "for module in pkgutil.iter_modules(package.__path__):\n"
        "    importlib.import_module(f'spintune.mixtures.{module.name}')\n"
        "from spintune.mixtures.report import show\nfrom spintune.mixtures.tasks import load_tasks\n"
        "heavy = {'torch', 'transformers', 'datasets'} & set(sys.modules)\n"
        "print(heavy or show(load_tasks([sys.argv[1]]).tasks[0], 20, 3))\n"
    )
    path = str(declare())
    printed = [
        subprocess.run(
            [sys.executable, "-c", program, path],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert printed[0].startswith("[RenderedPrompt(prompt=")
    assert printed[0] == printed[1] == f"{show(load_tasks([path]).tasks[0], 20, 3)}\n"


def test_test_rows_may_differ_by_selector_and_the_first_that_means_a_task_counts(
    mixed: Callable[..., Mixture],
) -> None:
    mixture = mixed(held_out=["c"], eval_fraction=0.4)
    asked = {
        name: {r.row for r in mixture.heldout({"a": 3, "family:*": 1, "*": 9}) if r.task == name} for name in "abc"
    }
    assert [len(asked[name]) for name in "abc"] == [3, 1, 1]
    assert {rendered.task for rendered in mixture.heldout({"b": 2, "c": 0})} == {"b"}
    with pytest.raises(RecipeError, match=r"heldout_rows: there is no task d"):
        mixture.heldout({"d": 1})


def test_memory_does_not_grow_with_the_examples(
    task: Callable[..., MixtureTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "_READ", 1 << 14)  # or so few examples are one block and one part
    monkeypatch.setattr(number_files, "_BLOCK", 64)
    monkeypatch.setattr(number_files, "_PART", 64)

    def held(rows: int, examples: int) -> int:
        data = [{"question": f"What is {n} plus 1?", "why": "It is next.", "sum": n + 1} for n in range(rows)]
        mixture = Mixture([task(rows=data)], 7)
        tracemalloc.start()
        made = materialize(mixture, examples)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(made.examples) == examples
        return peak

    held(50, 50)  # what is imported and kept by the process
    assert held(50, 350) < held(50, 50) + 100 * 300  # an example as an object takes over 1,000 bytes
