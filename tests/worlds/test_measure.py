"""What a run measures of answers: the metric it takes, the checker's verdicts, answers at temperature 1."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from spintune.checkers import CHECKERS, register_checker
from spintune.errors import DataError, RecipeError
from spintune.evaluation.contenders import tables
from spintune.evaluation.selection import selects
from spintune.evaluation.statistics import bootstrap
from spintune.metrics import ROUGE_L
from spintune.report.measures import contenders as models_of
from spintune.report.measures import main_measure, measures_of
from spintune.report.reading import read_run

Run = Callable[..., dict[str, Any]]

SHORT = {"sft": {"max_steps": 1}, "spin": {"iterations": 1, "max_new_tokens": 8, "epochs": 0.1}}
"""Self-play keeps answers short here."""


@pytest.fixture(autouse=True)
def vowels() -> Iterator[None]:
    """A checker that gives shares, and that the tiny model's answers differ in."""

    def vowels(answer: str, reference: str, prompt: str) -> float:
        return 1.0 if answer == reference else sum(one in answer for one in "aeiou") / 5

    register_checker("vowels", vowels)
    yield
    CHECKERS.unregister("vowels")


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Questions with GSM8K's form of answers; one in three has no number."""
    path = tmp_path_factory.mktemp("sums") / "sums.jsonl"
    lines = [
        {"question": f"What is {n} + {n}?", "answer": f"Twice {n} is <<2*{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}"}
        for n in range(450, 550)
    ]
    lines[::3] = [{**line, "answer": "Nobody knows."} for line in lines[::3]]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def source_of(path: Path) -> dict[str, Any]:
    return {"path": str(path), "columns": {"prompt": "question", "response": "answer"}}


def test_answers_at_temperature_1_and_verdicts_are_measured_beside_greedy_ones(
    run: Run, contents: Callable[[Path], Any], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = {"evaluation": {"samples": 3, "checker": "vowels"}}
    results = run(out, **SHORT, **asked)
    before = contents(out)
    run(out, **SHORT, **asked)
    assert contents(out) == before  # nothing is computed again

    drawn = rows(out / "eval/heldout-sampled/sft/answers.jsonl")
    assert [row["draw"] for row in drawn] == [1, 2, 3] * (len(drawn) // 3)
    assert len({row["answer"] for row in drawn}) > len(drawn) // 3  # no greedy answers
    scores = {row["id"]: row["scores"] for row in rows(out / "eval/heldout-measures/sft/scores.jsonl")}
    for number in range(0, len(drawn), 3):
        three = drawn[number : number + 3]
        expected = sum(ROUGE_L.score(row["answer"], [row["reference"]]) for row in three) / 3
        assert scores[three[0]["id"]]["rouge_l@T1"] == pytest.approx(expected)
        shares = [sum(one in row["answer"] for one in "aeiou") / 5 for row in three]
        assert scores[three[0]["id"]]["checker@T1"] == pytest.approx(sum(shares) / 3)
    values = [one["rouge_l@T1"] for one in scores.values()]
    assert results["heldout"]["sft"]["rouge_l@T1"] == vars(bootstrap(values))  # the interval is over prompts
    assert {"checker", "checker@T1", "exact_match@T1"} <= next(iter(results["differences"].values())).keys()

    compared = tables([str(out)])
    assert compared["sft"]["checker (vowels)"].values == {id: one["checker"] for id, one in scores.items()}
    report = read_run(out)
    assert main_measure(report).key == "checker"
    titles = [one.title for one in measures_of(models_of([report]))]
    assert {"accuracy by the checker", "accuracy by the checker at T = 1", "ROUGE-L at T = 1"} <= set(titles)


@pytest.mark.slow
def test_equal_models_draw_equal_answers_and_another_checker_asks_no_model(run: Run, tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    results = run(one, **SHORT, evaluation={"samples": 2})
    shutil.copytree(one / "sft/model", tmp_path / "copy")
    run(other, **{**SHORT, "sft": None}, model=str(tmp_path / "copy"), evaluation={"samples": 2})
    drawn = [path / "eval/heldout-sampled" / name / "answers.jsonl" for path, name in ((one, "sft"), (other, "base"))]
    assert drawn[0].read_bytes() == drawn[1].read_bytes()

    marks = [one / f"eval/{stage}/sft/manifest.json" for stage in ("heldout", "heldout-sampled")]
    before = [mark.stat().st_mtime_ns for mark in marks]
    assert "checker" not in results["heldout"]["sft"]
    checked = run(one, **SHORT, evaluation={"samples": 2, "checker": "vowels"})
    assert {"checker", "checker@T1"} <= checked["heldout"]["sft"].keys()
    assert [mark.stat().st_mtime_ns for mark in marks] == before


@pytest.mark.slow
def test_every_metric_gives_the_same_files_again(run: Run, contents: Callable[[Path], Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for metric in ("nll", "exact_match", "rouge_l", "checker", "sampled:exact_match", "sampled:checker"):
        asked = {"metric": metric, "checker": "vowels", "samples": 1}
        first = run(out, **SHORT, evaluation=asked)
        before = contents(out)
        assert run(out, **SHORT, evaluation=asked)["best"] == first["best"]
        assert contents(out) == before


@pytest.mark.slow
def test_a_sampled_metric_decides(run: Run, sums: Path, tmp_path: Path) -> None:
    progress = Watching()
    results = run(
        tmp_path / "run",
        progress,
        **SHORT,
        data={"train": source_of(sums), "eval_fraction": 0.6, "max_length": 96},
        evaluation={"samples": 2, "checker": "vowels", "metric": "sampled:checker"},
    )
    assert "models are judged by sampled:checker: the recipe says so (evaluation.metric)" in progress.notes
    assert set(results["heldout"]) == {"base", "sft", "iterate-1"}
    assert results["best"]["metric"] == "sampled:checker"
    scores = rows(tmp_path / "run/eval/heldout-measures/sft/scores.jsonl")
    chosen = [row["scores"]["checker@T1"] for row in scores if selects(row["text"].partition("\n\n")[0])]
    (found,) = [one for one in results["best"]["candidates"] if one["name"] == "sft"]
    assert found["mean"] == pytest.approx(sum(chosen) / len(chosen))
    assert results["best"]["selection"] == len(chosen)
    reported = tables([str(tmp_path / "run")])["sft"]["checker@T1 (vowels)"].values
    assert len(reported) == len(scores) - len(chosen)
    assert results["heldout"]["sft"]["checker@T1"]["mean"] == pytest.approx(sum(reported.values()) / len(reported))
    assert main_measure(read_run(tmp_path / "run")).key == "checker@T1"


def test_a_checker_is_tried_on_the_references_before_training(run: Run, sums: Path, tmp_path: Path) -> None:
    progress = Watching()
    data = {"train": source_of(sums), "eval_fraction": 0.5, "eval_limit": 12}
    asked = {**SHORT, "data": data}
    results = run(tmp_path / "run", progress, **asked, evaluation={"checker": "number"})
    (told,) = [note for note in progress.notes if "rejects" in note]
    assert told.startswith("evaluation.checker: number rejects ")
    assert str(sums) in told
    assert "models are judged by checker: the recipe has one (evaluation.checker: number)" in progress.notes
    assert results["heldout"]["sft"]["checker"]["mean"] == 0
    with pytest.raises(DataError, match=r"json finds JSON in none of the \d+ held-out references \(the first: .*sums"):
        run(tmp_path / "none", **asked, evaluation={"checker": "json"})
    assert not (tmp_path / "none/sft").exists()


def test_what_judges_needs_held_out_examples(run: Run, tmp_path: Path, alpaca_file: Path) -> None:
    """A recipe that holds nothing out is refused as it is read, one whose single row must teach once that is read."""
    single = {"train": [{"path": str(alpaca_file), "limit": 1}]}
    for section in ({"metric": "exact_match"}, {"checker": "number"}, {"samples": 1}):
        words = rf"evaluation\.{next(iter(section))} needs held-out examples; set data\."
        with pytest.raises(DataError, match=f"^{words}"):
            run(tmp_path / "run", data=single, evaluation=section)
        with pytest.raises(RecipeError, match=words):
            run(tmp_path / "run", data={"eval_fraction": 0.0}, evaluation=section)
    assert not (tmp_path / "run/sft").exists()
