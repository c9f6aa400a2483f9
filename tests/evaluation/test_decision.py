"""The rule that chooses a model, against arithmetic by hand, and its reasons in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from spintune.evaluation.decision import BestModel, Candidate, Decision, better_models, decide
from spintune.evaluation.model_pairs import measured_pairs, simplest_first
from spintune.evaluation.statistics import Interval


def candidate(name: str, scores: Sequence[float], losses: Sequence[float] | None = None, **more: bool) -> Candidate:
    ids = [f"item {number}" for number in range(len(scores))]
    found = losses if losses is not None else [2.0] * len(scores)
    return Candidate(name, dict(zip(ids, scores, strict=True)), dict(zip(ids, found, strict=True)), **more)


def alternating(mean: float, half: float, items: int = 100) -> list[float]:
    """Scores mean + half, mean - half, and so on: s = half·√(n/(n-1)), so one standard error is half/√(n-1)."""
    return [mean + (half if number % 2 else -half) for number in range(items)]


def chosen(*candidates: Candidate) -> Decision:
    return decide(candidates, "exact_match")


@pytest.mark.parametrize(("errors", "name"), [(0.98, "base"), (1.02, "sft"), (-3.0, "base"), (0.0, "base")])
def test_a_later_model_must_lead_by_more_than_one_standard_error(errors: float, name: str) -> None:
    error = 0.5 / math.sqrt(99)
    decision = chosen(candidate("base", [0.4] * 100), candidate("sft", alternating(0.4 + errors * error, 0.5)))
    assert decision.name == name


def test_one_answer_of_n_that_is_better_is_exactly_one_standard_error_and_too_little() -> None:
    """d = 1/n, s² = (1 - 1/n)/(n - 1) = 1/n, so s/√n = 1/n; two of n are more than their error."""
    for items in (20, 25, 33, 100, 257):
        right = [[0.0] * items for _ in range(3)]
        right[1][0] = right[2][0] = right[2][1] = 1.0
        assert chosen(candidate("base", right[0]), candidate("sft", right[1])).name == "base"
        assert chosen(candidate("base", right[0]), candidate("sft", right[2])).name == "sft"


def test_the_difference_is_paired() -> None:
    """What all models find hard does not count: the same scores but for 0.01 on every example."""
    base = alternating(0.5, 0.5)
    assert chosen(candidate("base", base), candidate("sft", [score + 0.01 for score in base])).name == "sft"


def test_of_models_with_equal_answers_the_likelier_one_is_chosen_and_of_those_the_simplest() -> None:
    wrong, losses = [0.0] * 50, alternating(3.0, 0.1, 50)
    decision = chosen(
        candidate("base", wrong, losses),
        candidate("sft", wrong, [loss - 0.5 for loss in losses]),
        candidate("sft-more", wrong, [loss - 0.5 for loss in losses]),
        candidate("iterate-1", wrong, [loss - 0.49 for loss in losses]),
    )
    assert decision.name == "sft"
    assert decision.why == (
        "4 models are too close to call by exact match on 50 held-out examples, and it is the simplest of those with "
        "least loss (2.500 nats a token)"
    )


def test_the_loss_does_not_overrule_answers_that_are_better() -> None:
    decision = chosen(candidate("base", [0.0] * 50, [1.0] * 50), candidate("sft", [1.0] * 50, [2.0] * 50))
    assert decision.name == "sft"


def test_a_deleted_model_is_measured_and_not_chosen() -> None:
    decision = chosen(
        candidate("base", [0.1] * 30), candidate("sft", [0.5] * 30), candidate("iterate-1", [0.9] * 30, deleted=True)
    )
    assert decision.name == "sft"
    assert [(one.name, one.mean, one.deleted) for one in decision.candidates] == [
        ("base", pytest.approx(0.1), False),
        ("sft", pytest.approx(0.5), False),
        ("iterate-1", pytest.approx(0.9), True),
    ]
    with pytest.raises(ValueError, match="nothing to choose from"):
        chosen(candidate("base", [0.1] * 30, deleted=True))


def test_only_examples_that_all_models_have_count() -> None:
    base = candidate("base", [1.0] * 40)
    sft = Candidate("sft", {**candidate("sft", [0.0] * 30).scores, "other": 99.0}, {**base.losses, "other": 0.0})
    decision = chosen(base, sft)
    assert decision.name == "base"
    assert "on 30 held-out examples" in decision.why


def test_means_and_differences_have_the_direction_of_the_metric() -> None:
    """Scores of a loss are its negative."""
    decision = decide(
        [candidate("base", [-2.5] * 40), candidate("sft", alternating(-2.0, 0.1, 40))], "nll", lower_is_better=True
    )
    assert decision.name == "sft"
    base, sft = decision.candidates
    assert (base.mean, sft.mean) == (pytest.approx(2.5), pytest.approx(2.0))
    assert base.difference.mean == pytest.approx(0.5)
    assert base.difference.low < 0.5 < base.difference.high
    assert (sft.difference.low, sft.difference.high) == (0, 0)
    told = decision.why.replace(f"{base.difference.low:.3f} to {base.difference.high:.3f}", "L to H")
    assert told == (
        "its held-out loss of 2.000 nats a token is the best of 2 models on 40 held-out examples, by more than one "
        "standard error: the next, base, is worse by 0.500, 95 % interval L to H"
    )


def test_a_model_that_is_chosen_for_its_simplicity_says_what_is_ahead_and_how_little() -> None:
    better = alternating(0.51, 0.5)
    decision = chosen(candidate("base", [0.5] * 100), candidate("sft", better))
    found = decision.candidates[0].difference
    assert decision.why == (
        "2 models are too close to call by exact match on 100 held-out examples (sft is ahead by 0.010, 95 % interval "
        f"{-found.high:.3f} to {-found.low:.3f}), and it is the simplest of them"
    )


def test_the_same_scores_give_the_same_decision() -> None:
    made = [candidate(name, alternating(mean, 0.3)) for name, mean in (("base", 0.2), ("sft", 0.21), ("sft-more", 0.3))]
    assert decide(made, "rouge_l") == decide(made, "rouge_l")


@pytest.mark.parametrize(
    ("metric", "measure", "up"), [("nll", "nll_per_token", False), ("sampled:rouge_l", "rouge_l@T1", True)]
)
def test_models_that_are_better_on_other_examples_are_named(metric: str, measure: str, up: bool) -> None:
    worse, better, unsure = Interval(-1, -2, -0.1), Interval(1, 0.1, 2), Interval(1, -0.1, 2)
    if not up:
        worse, better = better, worse
    differences = {
        "base - sft": {measure: worse},
        "iterate-1 - sft": {measure: better},
        "sft - sft-more": {measure: worse},
        "iterate-2 - sft": {measure: unsure},
        "iterate-1 - base": {measure: better},
    }
    best = BestModel("sft", "sft/model", "", metric)
    assert better_models(best, differences) == ["iterate-1", "sft-more"]
    assert better_models(BestModel("sft", "sft/model", ""), differences) == []


# Names ---------------------------------------------------------------------------------------------------------------


def test_the_simplest_model_went_through_least() -> None:
    names = ["base", "sft", "iterate-1", "iterate-2", "iterate-10", "sft-more"]
    assert simplest_first(names) == ["base", "sft", "sft-more", "iterate-1", "iterate-2", "iterate-10"]
    assert simplest_first(["iterate-10", "iterate-9", "base"]) == ["base", "iterate-9", "iterate-10"]


@pytest.mark.parametrize("best", ["base", "sft", "sft-more", "iterate-1", "iterate-2"])
def test_the_model_to_use_is_compared_with_every_other_once(best: str) -> None:
    names = ["base", "sft", "iterate-1", "iterate-2", "sft-more"]
    pairs = [frozenset(pair) for pair in measured_pairs(names, best)]
    assert len(set(pairs)) == len(pairs)
    assert {frozenset((best, name)) for name in names if name != best} <= set(pairs)
