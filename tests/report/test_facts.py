"""A run folder is read as far as it has come, and a folder that is none is called so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import RunError
from spintune.report.facts import read_run

Make = Callable[..., Any]


def test_what_is_missing_shrinks_stage_by_stage(folder: Make) -> None:
    made = folder()
    rest = [
        "the data",
        "SFT",
        "the pairs and the training of iteration 1",
        "the pairs and the training of iteration 2",
        "the held-out answers of base, sft, iterate-1, iterate-2",
    ]
    assert list(read_run(made.path).missing) == rest
    made.data()
    assert list(read_run(made.path).missing) == rest[1:]
    made.metrics("sft", [{"loss": 1.0, "tokens": 1, "seconds": 1.0}] * 3)
    assert read_run(made.path).missing[0] == "SFT, which has come to step 3"
    (made.path / "metrics.jsonl").unlink()
    made.sft()
    assert list(read_run(made.path).missing) == rest[2:]
    made.pairs(1)
    assert read_run(made.path).missing[0] == "the training of iteration 1"
    made.iterate(1)
    assert read_run(made.path).missing[0] == "the diagnosis of iteration 1"
    made.diagnosis(1).pairs(2).iterate(2).diagnosis(2)
    assert list(read_run(made.path).missing) == rest[4:]
    made.judged("base", 3.0).judged("sft", 2.0)
    assert list(read_run(made.path).missing) == ["the held-out answers of iterate-1, iterate-2"]
    made.judged("iterate-1", 2.0).judged("iterate-2", 2.0)
    assert read_run(made.path).missing == ()


def test_models_come_in_the_order_in_which_they_came_about(whole: Make) -> None:
    names = [model.name for model in read_run(whole().path).models]
    assert names == ["base", "sft", "iterate-1", "iterate-2", "sft-more"]


def test_iterations_after_an_early_stop_are_not_missing(folder: Make) -> None:
    made = folder().data().sft().pairs(1).iterate(1).diagnosis(1)
    for name in ("base", "sft", "iterate-1"):
        made.judged(name, 2.0)
    made.results(["base", "sft", "iterate-1"], spin=[{}], stopped="nothing is left to learn")
    run = read_run(made.path)
    assert (run.missing, run.stopped) == ((), "nothing is left to learn")


def test_without_held_out_examples_no_answers_are_missing(folder: Make) -> None:
    made = folder(data={"eval_fraction": 0.0}, spin=None).data(0).sft()
    assert read_run(made.path).missing == ()


def test_answers_to_other_examples_are_left_out(folder: Make) -> None:
    made = folder(spin=None).data(3).sft().judged("base", 2.0).judged("sft", 2.0).data(2).judged("sft", 2.0)
    run = read_run(made.path)
    assert run.model("base").judged == {}
    assert len(run.model("sft").judged) == 2
    assert run.missing == ("the held-out answers of base",)


def test_sampled_answers_stand_in_until_a_model_is_judged(folder: Make) -> None:
    made = folder().data(2).sft()
    stage = "spin/heldout/sft"
    rows = [
        {"example_id": example.id, "generated": [{"text": f"drawn {n}", "ids": [5, 6], "complete": n == 0}]}
        for n, example in enumerate(made.examples)
    ]
    made.lines(f"{stage}/answers.jsonl", rows).stage(stage, prompts=2, played=2)
    drawn = list(read_run(made.path).model("sft").sampled.values())
    assert [(answer.text, answer.finished, answer.tokens) for answer in drawn] == [
        ("drawn 0", True, 2),
        ("drawn 1", False, 2),
    ]


def test_samples_during_sft_are_the_first_and_last_model_s(folder: Make) -> None:
    made = folder(spin=None).data(2).sft()
    rows = [
        {"stage": "sft", "step": step, "prompt": "Say word 1.", "reference": "word 1", "answer": f"after {step}"}
        for step in (0, 3, 5)
    ]
    made.lines("sft/samples.jsonl", rows)
    run = read_run(made.path)
    wanted = made.examples[1].id
    assert run.model("base").during[wanted].text == "after 0"
    assert run.model("sft").during[wanted].text == "after 5"


def test_a_line_that_is_still_being_written_is_left_out(folder: Make) -> None:
    made = folder().data().sft(steps=5)
    with (made.path / "metrics.jsonl").open("a") as file:
        file.write('{"stage":"spin/iterate-1","step":1,"lo')
    assert len(read_run(made.path).metrics["sft"]) == 5


def damaged(made: Any) -> None:
    (made.path / "metrics.jsonl").write_text('{"stage": "sft", "st\n{"stage": "sft", "step": 2}\n')


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made: (made.path / "recipe.json").unlink(), "no run folder, for it has no recipe.json"),
        (lambda made: (made.path / "recipe.json").write_text("{"), "recipe.json: damaged"),
        (lambda made: made.json("recipe.json", {"name": "a web page"}), "not as this version of spintune writes it"),
        (lambda made: made.json("recipe.json", [1]), "not as this version of spintune writes it"),
        (lambda made: made.stage("sft", rows=3, seconds=4.5), "sft/manifest.json: not as this version"),
        (lambda made: made.stage("sft", rows=3, dropped={}, truncated=0, seconds=4.5), "not as this version"),
        (lambda made: made.json("results.json", {"heldout": {"sft": {"nll": 1}}}), "not as this version"),
        (damaged, "metrics.jsonl:1: damaged"),
        (lambda made: made.metrics("sft", [{"loss": 1.0}]), "metrics.jsonl: not as this version"),
    ],
)
def test_a_folder_that_is_no_run_of_this_version_is_an_error_of_one_line(
    folder: Make, spoil: Callable[[Any], Any], told: str
) -> None:
    made = folder()
    spoil(made)
    with pytest.raises(RunError) as caught:
        read_run(made.path)
    assert told in str(caught.value)
    assert str(made.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(RunError, match="does not exist or is no folder"):
            read_run(path)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        read_run(tmp_path)
