"""A metric that a user registers is scored, stored, summarized, compared, and may choose the best iterate."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from spintune.errors import DataError, RecipeError
from spintune.evaluation.comparison import compare
from spintune.evaluation.contenders import tables
from spintune.evaluation.heldout import HeldoutAnswer, heldout_differences, summarize_heldout
from spintune.metrics import EXACT_MATCH, METRICS, ROUGE_L, Metric, answer_metrics, metric_inputs, register_metric
from spintune.recipe import parse_recipe
from spintune.records import read_records, write_records
from spintune.typed_json import to_json


def length_gap(prediction: str, references: Sequence[str]) -> float:
    return float(min(abs(len(prediction) - len(reference)) for reference in references))


GAP = Metric("length_gap", length_gap, "lower", "Characters more or fewer than the nearest reference.")


@pytest.fixture
def gap() -> Iterator[None]:
    register_metric(GAP)
    yield
    METRICS.unregister("length_gap")


def answers(texts: Sequence[str]) -> list[HeldoutAnswer]:
    return [
        HeldoutAnswer(
            id=str(number),
            prompt=f"Say {number}",
            reference="a b c",
            answer=text,
            finish_reason="stop",
            answer_tokens=3,
            reference_tokens=4,
            nll=2.0,
            scores={one.name: one.score(text, ["a b c"]) for one in answer_metrics()},
        )
        for number, text in enumerate(texts)
    ]


def test_built_in_metrics_take_the_best_of_several_references() -> None:
    assert ROUGE_L.score("the cat", ["a dog", "the cat sat"]) == pytest.approx(0.8)
    assert EXACT_MATCH.score(" the  cat", ["a dog", "the cat"]) == 1
    assert EXACT_MATCH.score("the cat", ["a dog"]) == 0


def test_what_is_no_score_is_an_error_of_one_line() -> None:
    with pytest.raises(DataError, match="the metric odd gives nan for the answer 'x', not a finite number"):
        Metric("odd", lambda *_: float("nan"), "higher", "").score("x", ["y"])
    with pytest.raises(DataError, match=r"gives 2\.0 for the answer 'x', not 0 or 1"):
        Metric("odd", lambda *_: 2, "higher", "", right_or_wrong=True).score("x", ["y"])
    for name in ("answer_tokens", "Rouge L", ""):
        with pytest.raises(RecipeError, match="cannot be named"):
            Metric(name, length_gap, "higher", "")
    with pytest.raises(RecipeError, match="'rouge_l' already"):
        register_metric(Metric("rouge_l", length_gap, "lower", ""))


def test_only_added_metrics_are_inputs_of_a_stage(gap: None) -> None:
    assert metric_inputs() == {"metrics": ["length_gap"]}
    METRICS.unregister("length_gap")
    assert metric_inputs() == {}


def test_scores_are_keys_of_a_stored_answer(gap: None, tmp_path: Path) -> None:
    rows = answers(["a b c", "a b"])
    path = tmp_path / "answers.jsonl"
    write_records(path, map(to_json, rows))
    stored = json.loads(path.read_text().splitlines()[1])
    assert (stored["rouge_l"], stored["exact_match"], stored["length_gap"]) == (pytest.approx(0.8), False, 2)
    assert list(stored)[-3:] == ["rouge_l", "exact_match", "length_gap"]
    assert read_records(path, HeldoutAnswer) == rows
    METRICS.unregister("length_gap")  # a run folder is read without the package that added a metric
    assert read_records(path, HeldoutAnswer) == rows


def test_tables_and_comparisons_have_it(gap: None, tmp_path: Path) -> None:
    near, far = answers(["a b c"] * 20), answers(["a b"] * 20)
    assert summarize_heldout(far)["length_gap"].mean == 2
    assert heldout_differences(far, near)["length_gap"].mean == 2
    for name, rows in (("near", near), ("far", far)):
        write_records(tmp_path / f"{name}.jsonl", map(to_json, rows))
    found = compare(tables([str(tmp_path / "near.jsonl"), str(tmp_path / "far.jsonl")]))
    (gaps,) = [one for one in found.differences if one.measure == "length_gap"]
    assert (gaps.finding, gaps.values) == ("better", (0, 2))


def test_files_of_anybody_are_scored_by_it(gap: None, tmp_path: Path) -> None:
    for name, text in (("near", "a b c"), ("far", "a b")):
        lines = [json.dumps({"prompt": f"Say {n}", "answer": text, "reference": "a b c"}) for n in range(20)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    found = tables([str(tmp_path / "near.jsonl"), str(tmp_path / "far.jsonl")])
    assert set(found["far"]["length_gap"].values.values()) == {2}
    assert found["far"]["length_gap"].better == "lower"


def test_a_recipe_may_choose_by_it_and_a_typo_gets_a_suggestion(gap: None) -> None:
    values = {"out": "o", "model": "m", "data": {"train": "builtin:seeds"}}
    recipe = parse_recipe({**values, "evaluation": {"metric": "length_gap"}}, "r.yaml")
    assert recipe.evaluation.metric == "length_gap"
    with pytest.raises(
        RecipeError, match=r"^r\.yaml: evaluation\.metric: there is no metric 'rouge'; did you mean rouge_l\?$"
    ):
        parse_recipe({**values, "evaluation": {"metric": "rouge"}}, "r.yaml")
