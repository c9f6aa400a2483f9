"""Which metric decides: by the recipe, by the checker, by how long the references are."""

from __future__ import annotations

import pytest

from spintune.errors import RecipeError
from spintune.evaluation.metric_choice import better_of, choose_metric, measure_of
from spintune.recipe import parse_recipe

LABELS = [
    "positive",
    "negative",
    "very  positive",
    "The\ncity of New York",
    "<think>a long thought of many words</think> no",
]
SENTENCES = ["The cat sat on the mat all day.", "Plants use light to make sugar from water and air."]


def test_auto_takes_the_checker_then_short_references_then_words() -> None:
    assert choose_metric("auto", "number", LABELS).line() == (
        "models are judged by checker: the recipe has one (evaluation.checker: number)"
    )
    assert choose_metric("auto", {"regex": "x"}, []).why == "the recipe has one (evaluation.checker: regex)"
    assert choose_metric("auto", None, LABELS).line() == (
        "models are judged by exact_match: 100 % of the references have at most 5 words"
    )
    assert choose_metric("auto", None, SENTENCES).line() == (
        "models are judged by rouge_l: 100 % of the references have more than 5 words, too many to be met exactly"
    )
    assert choose_metric("auto", None, []).name == "nll"
    assert choose_metric("nll", "number", LABELS).line() == (
        "models are judged by nll: the recipe says so (evaluation.metric)"
    )


def test_half_of_the_references_decide() -> None:
    assert choose_metric("auto", None, ["one", SENTENCES[0]]).name == "exact_match"
    assert choose_metric("auto", None, ["one", *SENTENCES]).name == "rouge_l"
    assert (
        choose_metric("auto", None, ["植物は光を使って水と空気から糖を作ります"]).name == "rouge_l"
    )  # no spaces, many words
    assert choose_metric("auto", None, ["東京"]).name == "exact_match"


def test_references_that_end_in_a_number_get_a_hint() -> None:
    rationale = "First add them, then divide by two and so on.\n#### 1,234"
    assert choose_metric("auto", None, [rationale]).why.endswith("evaluation.checker=number compares")
    assert "####" not in choose_metric("auto", None, [rationale, *SENTENCES]).why


def test_names_in_tables_and_directions() -> None:
    assert [measure_of(name) for name in ("nll", "sampled:exact_match", "checker", "sampled:checker")] == [
        *("nll", "exact_match@T1", "checker", "checker@T1")
    ]
    assert [better_of(name) for name in ("nll", "sampled:rouge_l", "sampled:checker")] == ["lower", "higher", "higher"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"evaluation": {"metric": "checker"}},
            "evaluation: metric: checker needs checker: number, choice, json, contains, {regex: PATTERN} or your own",
        ),
        (
            {"evaluation": {"metric": "sampled:rouge_l"}},
            "evaluation: metric: sampled:rouge_l needs sampled answers; set samples to 1 or more",
        ),
        (
            {"evaluation": {"metric": "sampled:nll", "samples": 1}},
            "evaluation.metric: nll is no metric of answers; name it without sampled:",
        ),
        (
            {"evaluation": {"metric": "exact"}},
            "evaluation.metric: there is no metric 'exact'; did you mean exact_match?",
        ),
        ({"spin": {"metric": "nll"}}, "spin.metric is now evaluation.metric; write it there"),
        (
            {"eval": [], "evaluation": {"checker": "number"}},
            "evaluation.checker would do nothing here: it needs spin, or heldout in eval; leave it out",
        ),
    ],
)
def test_what_cannot_be_is_one_line(settings: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as error:
        parse_recipe({"out": "o", "model": "m", "data": {"train": "builtin:seeds"}, **settings}, "r.yaml")
    assert str(error.value) == f"r.yaml: {message}"


def test_a_mixture_is_judged_by_the_rules_of_its_tasks_where_answers_are_short() -> None:
    rationale = "Two and two are four, and one more makes five. The answer is 5"
    assert choose_metric("auto", "tasks", ["positive", rationale]).line() == (
        "models are judged by checker: 100 % of the references give an answer of at most 5 words, which the rules of "
        "their tasks check"
    )
    assert choose_metric("auto", "tasks", [rationale, *SENTENCES]).name == "rouge_l"
    assert choose_metric("exact_match", "tasks", [rationale]).name == "exact_match"
