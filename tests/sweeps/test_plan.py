"""The words of a sweep become runs, or one line for each thing that is wrong."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from spintune.errors import RecipeError, RunError
from spintune.sweeps.plan import SweepPlan, plan_sweep
from spintune.sweeps.sharing import shared_with, waves
from spintune.sweeps.values import folder_names, label, read_values


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(
        json.dumps({"out": "runs/small", "model": "m", "data": {"train": "a.jsonl"}, "sft": {}, "spin": {}})
    )
    return path


@pytest.fixture
def plan(recipe: Path):  # type: ignore[no-untyped-def]
    def build(*words: str, many: bool = False) -> SweepPlan:
        return plan_sweep(recipe, words, many)

    return build


def test_a_sweep_is_the_product_of_all_values_with_the_seed_outermost(plan) -> None:  # type: ignore[no-untyped-def]
    found = plan("spin.loss=[logistic,space]", "seed=0..1", "spin.epochs=2")
    assert [run.name for run in found.runs] == [
        "spin.loss=logistic,seed=0",
        "spin.loss=space,seed=0",
        "spin.loss=logistic,seed=1",
        "spin.loss=space,seed=1",
    ]
    run = found.runs[3]
    assert found.folder == Path("runs/small-sweep")
    assert run.recipe.out == "runs/small-sweep/spin.loss=space,seed=1"
    assert run.recipe.spin is not None
    assert (run.recipe.seed, run.recipe.spin.loss, run.recipe.spin.epochs) == (1, "space", 2)
    assert run.setting == {"spin.loss": "space"}
    assert plan("seed=0..1", "out=elsewhere").folder == Path("elsewhere")


@pytest.mark.parametrize(
    ("word", "values"),
    [
        ("seed=2..4", [2, 3, 4]),
        ("seed=-1..1", [-1, 0, 1]),
        ("seed=7..7", [7]),
        ("seed=[0, 7]", [0, 7]),
        ("spin.lambda=[0.1, 1e-3]", [0.1, 0.001]),
        ("spin.lambda=[null, 1]", [None, 1]),
        ("eval=[[heldout], [heldout, ifeval], []]", [["heldout"], ["heldout", "ifeval"], []]),
        ("spin.loss=[[logistic, space], [space, space]]", [["logistic", "space"], ["space", "space"]]),
        ("spin.stop=[{patience: 1}, {patience: 2}]", [{"patience": 1}, {"patience": 2}]),
        ("model=[org/a, ./b]", ["org/a", "./b"]),
    ],
)
def test_ranges_and_lists_are_values(word: str, values: list[object]) -> None:
    ((_, found),) = read_values([word]).axes.items()
    assert list(found) == values


@pytest.mark.parametrize("word", ["out=../x", "spin.loss=space", "spin={epochs: 2}", "model=0...4", "model='0..4'"])
def test_other_words_hold_for_every_run(word: str) -> None:
    assert read_values(["seed=0..1", word]).fixed == (word,)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["seed=3..1"], "seed=3..1 is an empty range; the smaller number comes first"),
        (["eval=[]"], "eval=[] has no values; a value that is an empty list is eval=[[]]"),
        (["seed"], "'seed' is not of the form key.path=value, key=a..b or key=[a,b]"),
        (["seed=0..1", "seed=4..5"], "seed has values twice; give them in one range or list"),
        (["seed=0..1", "seed=4"], "seed has several values and one for all runs; leave one out"),
        (["out=[a,b]"], "out has several values; give one folder, in which each run has its own"),
        (["seed=[0,1"], "override seed:1: expected ',' or ']'"),
        (["spin.epochs=2"], "nothing varies; give a key several values"),
        (["seed=0..50"], "this sweep has 51 runs; say --yes if you mean that"),
        (["seed=0..99", "spin.epochs=[1,2,3,4,5]"], "this sweep has 500 runs; say --yes"),
        (["seed=0..999999999999", "spin.mu=[1,2]"], "a sweep of 2,000,000,000,000 runs is more than 10,000"),
    ],
)
def test_words_that_make_no_sweep(words: list[str], line: str) -> None:
    with pytest.raises(RecipeError) as error:
        read_values(words)
    assert str(error.value).startswith(line)
    assert "\n" not in str(error.value)


def test_many_runs_are_asked_for() -> None:
    assert len(read_values(["seed=0..50"], many=True).product()) == 51


@pytest.mark.parametrize(
    ("words", "lines"),
    [
        (["spin.los=[space,logistic]"], ["{}: unknown key spin.los; did you mean spin.loss?"]),
        (["sed=0..1"], ["{}: unknown key sed; did you mean seed?"]),
        (["spin.loss=[space,spice]"], ["{}: spin.loss: there is no loss 'spice'; did you mean space? (in spin.loss=s"]),
        (["seed=-1..1"], ["{}: seed: Input should be greater than or equal to 0 (given: -1) (in seed=-1)"]),
        (
            ["seed=0..1", "spin.epochs=[0,1]"],
            ["{}: spin.epochs: Input should be greater than 0 (given: 0) (in seed=0, spin.epochs=0 and 1 more)"],
        ),
        (
            ["eval=[ifeval]"],
            [
                "{}: eval: Input should be a valid list (given: 'ifeval'); a list of lists gives lists as "
                "values: eval=[[...]]"
            ],
        ),
        (
            ["spin.loss=[logistic,space]", "spin.mu=[1,2]"],
            ["{}: spin: mu would do nothing here: it needs loss: space; leave it out (in spin.loss=logistic, s"],
        ),
        (["spin.lambda=[0.1,1e-1]"], ["spin.lambda=0.1 and spin.lambda=0.1 are the same run; give each value once"]),
        (["spin.keep=[all,best]"], ["spin.keep=all and spin.keep=best are the same run"]),
        (["seed=[0,1,0]"], ["seed=0 and seed=0 are the same run"]),
    ],
)
def test_every_recipe_is_checked_first(plan, recipe: Path, words: list[str], lines: list[str]) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(RecipeError) as error:
        plan(*words)
    told = str(error.value).splitlines()
    assert len(told) == len(lines)
    for found, line in zip(told, lines, strict=True):
        assert found.startswith(line.format(recipe))


def test_a_run_folder_is_no_sweep(plan, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(RunError, match="holds a run"):
        plan("seed=0..1", f"out={tmp_path}")


def test_a_page_of_something_else_is_not_written_over(plan, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "report.html").write_text("mine")
    with pytest.raises(RunError, match=r"has a report\.html of something else"):
        plan("seed=0..1", f"out={tmp_path}")


def test_parts_are_neighbors_and_together_the_sweep(plan) -> None:  # type: ignore[no-untyped-def]
    found = plan("seed=0..6")
    for parts in (1, 2, 3, 7, 9):
        pieces = [found.part(number, parts) for number in range(1, parts + 1)]
        assert [run for piece in pieces for run in piece] == list(found.runs)
        assert max(map(len, pieces)) - min(map(len, pieces)) <= 1


# Names ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("../a b/c.jsonl", "..-a-b-c.jsonl"),
        (-1, "-1"),
        (1e-05, "1e-05"),
        ([1, -2], "1-2"),
        (None, "null"),
        (True, "true"),
        ("", "empty"),
        ("–", "empty"),
        ("a\n/\0", "a"),
        ({"patience": 1}, "patience-1"),
    ],
)
def test_names_are_safe_and_readable(value: object, name: str) -> None:
    assert folder_names([{"k": value}]) == [f"k={name}"]


def test_names_are_unique_and_short() -> None:
    values: list[dict[str, object]] = [{"data.train": text} for text in ("a/b", "a-b", "A/B", "x" * 400)]
    names = folder_names(values)
    assert len({name.lower() for name in names}) == 4
    assert max(map(len, names)) < 140
    assert all(name.startswith(("data.train=a-b~", "data.train=A-B~", "data.train=xxx")) for name in names)


def test_labels_say_the_values() -> None:
    assert label({"spin.loss": "space", "spin.mu": 0.1, "eval": ["a"]}) == 'spin.loss=space, spin.mu=0.1, eval=["a"]'


# Shared work ---------------------------------------------------------------------------------------------------------


def test_runs_with_the_same_work_are_known(plan) -> None:  # type: ignore[no-untyped-def]
    runs = plan("seed=0..1", "spin.loss=[logistic,hinge,space]").runs
    assert shared_with([run.recipe for run in runs]) == [
        {"SFT": 0, "answers": 0, "self-play": 0},
        {"SFT": 0, "answers": 0, "self-play": 1},
        {"SFT": 0, "answers": 0, "self-play": 2},
        {"SFT": 3, "answers": 3, "self-play": 3},
        {"SFT": 3, "answers": 3, "self-play": 4},
        {"SFT": 3, "answers": 3, "self-play": 5},
    ]


def test_prompts_kept_out_of_sft_make_another_sft(plan) -> None:  # type: ignore[no-untyped-def]
    runs = plan("spin.prompts=[null,seen,unseen]").runs
    assert [shared["SFT"] for shared in shared_with([run.recipe for run in runs])] == [0, 1, 1]
    assert [shared["answers"] for shared in shared_with([run.recipe for run in runs])] == [0, 1, 2]


def test_a_wave_repeats_no_work(plan) -> None:  # type: ignore[no-untyped-def]
    def found(*words: str) -> list[list[int]]:
        return waves([run.recipe for run in plan(*words).runs])

    assert found("seed=0..3") == [[0, 1, 2, 3]]
    assert found("seed=0..1", "spin.loss=[logistic,hinge,space]") == [[0, 3], [1, 2, 4, 5]]
    # temperatures share SFT; of those, losses share answers
    assert found("spin.temperature=[1,0.5]", "spin.loss=[logistic,hinge]") == [[0], [1, 2], [3]]
    assert found("spin.iterations=[1,2,3]") == [[0], [1, 2]]
