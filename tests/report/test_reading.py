"""A run folder is read as far as it has come, and a folder that is none is called so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import RunError
from spintune.evaluation.contenders import tables
from spintune.report.page import write_report
from spintune.report.reading import read_run

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
    made.results(["base", "sft", "iterate-1"], stopped="nothing is left to learn")
    run = read_run(made.path)
    assert (run.missing, run.results.stopped) == ((), "nothing is left to learn")


def test_without_held_out_examples_no_answers_are_missing(folder: Make) -> None:
    made = folder(data={"eval_fraction": 0.0}, spin=None).data(0).sft()
    assert read_run(made.path).missing == ()


def test_evaluations_are_missing_until_every_model_has_them(folder: Make) -> None:
    files = {"ifeval": "i.jsonl", "mt_bench": "m.jsonl"}
    wanted = ["ifeval", "mt-bench", "spin-paper"]
    made = folder(data={"eval_fraction": 0.0}, spin=None, eval=wanted, evaluation=files, judge={"model": "wise-1"})
    made.data(0).sft()
    paper = ["arc_challenge", "truthfulqa_mc2", "winogrande", "gsm8k", "hellaswag", "mmlu"]  # SPIN's section 6.1
    last = "the judge's verdicts"
    everything = [f"{name} of base, sft" for name in ("ifeval", "mt-bench", *paper)]
    assert read_run(made.path).missing == (*everything, last)
    made.ifeval("base", [(True,)]).mt_bench("base").mt_bench("sft")
    assert read_run(made.path).missing == ("ifeval of sft", *everything[2:], last)
    made.ifeval("sft", [(True,)])
    for name in paper[1:]:
        for model in ("base", "sft"):
            made.scored(name, model, {"acc": [1.0, 0.0]})
    assert read_run(made.path).missing == ("arc_challenge of base, sft", last)
    cost = {"requests": 0, "prompt_tokens": 0, "completion_tokens": 0, "dollars": 0.0}
    judge = {"judge": "wise-1", "canary": {}, "pairs": {}, "ratings": {}, "words": [], "problems": [], "cost": cost}
    made.json("results.json", {"failed": ["arc_challenge"], "judge": {**judge, "problems": ["nobody answers"]}})
    run = read_run(made.path)
    assert run.results.failed == ["arc_challenge"]
    assert run.missing == ("a part of the judge's verdicts",)
    made.json("results.json", {"failed": ["arc_challenge"], "judge": judge, "conclusions": ["they are alike"]})
    run = read_run(made.path)
    assert (run.missing, run.results.conclusions) == ((), ["they are alike"])
    made.scored("arc_challenge", "base", {"acc": [1.0]}).scored("arc_challenge", "sft", {"acc": [1.0]})
    assert read_run(made.path).results.failed == []  # a later command did it


def test_a_task_of_one_s_own_goes_by_the_name_in_its_file(folder: Make, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("task: quiz\nprompt: '{q}'\n")
    made = folder(spin=None, sft=None, data={"eval_fraction": 0.0}, eval=[str(tmp_path / "mine.yaml")]).data(0)
    assert read_run(made.path).missing == ("quiz of base",)
    made.scored("quiz", "base", {"acc": [1.0]}, acc={"right_or_wrong": True})
    assert [one.name for one in read_run(made.path).evaluations] == ["quiz"]
    made.json("results.json", {"benchmarks": {"quiz": {"items": {"base": 1}, "measures": {}, "scores": {}}}})
    (tmp_path / "mine.yaml").unlink()  # results.json still knows it
    run = read_run(made.path)
    assert ([one.name for one in run.evaluations], run.missing) == (["quiz"], ())


def test_a_run_that_only_evaluates_needs_no_data(folder: Make) -> None:
    made = folder(spin=None, sft=None, data={"train": []}, eval=["quiz"])
    assert read_run(made.path).missing == ("quiz of base",)
    made.scored("quiz", "base", {"acc": [1.0]})
    assert read_run(made.path).missing == ()


def test_scores_of_an_evaluation_that_the_recipe_no_longer_names_are_left_out(everything: Make) -> None:
    made = everything()
    made.scored("old", "base", {"acc": [1.0]})
    assert [one.name for one in read_run(made.path).evaluations] == ["ifeval", "questions", "mt-bench"]


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
    assert [(answer.texts[0], answer.finished, answer.tokens) for answer in drawn] == [
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
    assert run.model("base").during[wanted].texts == ("after 0",)
    assert run.model("sft").during[wanted].texts == ("after 5",)


def test_samples_of_sft_are_those_of_the_step_that_it_kept(folder: Make) -> None:
    made = folder(spin=None).data(2).sft(planned_steps=5, kept_step=3)
    rows = [
        {"stage": "sft", "step": step, "prompt": "Say word 1.", "reference": "word 1", "answer": f"after {step}"}
        for step in (0, 3, 5)
    ]
    made.lines("sft/samples.jsonl", rows)
    assert read_run(made.path).model("sft").during[made.examples[1].id].texts == ("after 3",)


def test_a_line_that_is_still_being_written_is_left_out(folder: Make) -> None:
    made = folder().data().sft(steps=5)
    with (made.path / "metrics.jsonl").open("a") as file:
        file.write('{"stage":"spin/iterate-1","step":1,"lo')
    assert len(read_run(made.path).metrics["sft"]) == 5


def not_a_number(made: Any) -> tuple[str, list[dict[str, Any]]]:
    rows = [{"id": example.id, "nll": [], "tokens": 3} for example in made.examples]
    return "likelihood/base/likelihood.jsonl", rows


def damaged(made: Any) -> None:
    (made.path / "metrics.jsonl").write_text('{"stage": "sft", "st\n{"stage": "sft", "step": 2}\n')


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda made: (made.path / "recipe.json").unlink(), "no run folder, for it has no recipe.json"),
        (lambda made: (made.path / "recipe.json").write_text("{"), "recipe.json: damaged"),
        (lambda made: made.json("recipe.json", {"name": "a web page"}), "recipe.json: spintune: field required"),
        (lambda made: made.json("recipe.json", [1]), "recipe.json: damaged (no JSON object)"),
        (lambda made: made.stage("sft", rows=3, seconds=4.5), "sft/manifest.json: dropped: field required"),
        (lambda made: made.stage("sft", rows=3, dropped={}, truncated=0, seconds=4.5), "steps: field required"),
        (lambda made: made.json("results.json", {"heldout": {"sft": {"nll": 1}}}), "results.json: heldout.sft.nll: "),
        (lambda made: made.stage("eval/ifeval/base").lines("eval/ifeval/base/scores.jsonl", []), "items: field"),
        (lambda made: made.stage("eval/ifeval/base").lines("eval/ifeval/base/answers.jsonl", [{}]), "not as this"),
        (
            lambda made: made.json("results.json", {"judge": {"problems": [], "pairs": {}}}),
            "results.json: judge.canary: field required",
        ),
        (
            lambda made: made.stage("contamination", training_rows=3, sets={"x": {}}),
            "contamination/manifest.json: sets.x.items: field required",
        ),
        (lambda made: made.recipe(data=None), "recipe.json: data: "),
        (lambda made: made.recipe(spin={"iterations": "two"}), "recipe.json: spin.iterations: "),
        (lambda made: made.stage("likelihood/base", items=1, left_out=0), "likelihood.jsonl: cannot be read"),
        (lambda made: made.data().judged("base", 1.0).lines(*not_a_number(made)), "nll: "),
        (lambda made: made.metrics("sft", [{"loss": "x", "tokens": 1, "seconds": 1}]), "line 1: loss is no number"),
        (damaged, "metrics.jsonl:1: damaged"),
        (lambda made: made.metrics("sft", [{"loss": 1.0}]), "metrics.jsonl: not as this version"),
    ],
)
def test_a_folder_that_is_no_run_of_this_version_is_an_error_of_one_line(
    folder: Make, spoil: Callable[[Any], Any], told: str
) -> None:
    made = folder(eval=["ifeval"], evaluation={"ifeval": "i.jsonl"}, judge={"model": "wise-1"})
    spoil(made)
    with pytest.raises(RunError) as caught:
        read_run(made.path)
    assert told in str(caught.value)
    assert str(made.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_run_whose_loss_became_nan_is_reported(folder: Make, page: Make) -> None:
    made = folder(spin=None).data().sft(losses=(3.2, float("nan")), heldout_loss=None)
    lines = (made.path / "metrics.jsonl").read_text().replace("NaN", "null")
    (made.path / "metrics.jsonl").write_text(lines.replace('"tokens": 500', '"tokens": null', 1))
    assert read_run(made.path).metrics["sft/heldout"][-1]["loss"] is None
    assert "from 3.200 to non-finite nats a token in 2 steps" in page(write_report([made.path])).text
    made.metrics("sft", [{"step": None, "tokens": 1, "seconds": 1}])
    with pytest.raises(RunError, match="step is no number"):
        read_run(made.path)


def test_a_path_that_is_no_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(json.dumps({}))
    for path in (tmp_path / "file", tmp_path / "nowhere"):
        with pytest.raises(RunError, match="does not exist or is no folder"):
            read_run(path)


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run folder"):
        read_run(tmp_path)


def test_iterations_beyond_those_that_the_recipe_asks_for_are_not_shown(whole: Make, page: Make) -> None:
    """The recipe asked for two once, and now for one."""
    made = whole()
    recipe = json.loads((made.path / "recipe.json").read_text())
    recipe["recipe"]["spin"]["iterations"] = 1
    made.json("recipe.json", recipe).best("iterate-1")
    run = read_run(made.path)
    assert [model.name for model in run.models] == ["base", "sft", "iterate-1", "sft-more"]
    assert [one.number for one in run.iterations] == [1]
    assert run.leftover == (2,)
    shown = page(write_report([made.path]))
    assert not shown.row("iterate-2")
    assert "the folder still has 2; they are not shown" in shown.text
    assert sorted(tables([str(made.path)])) == ["base", "iterate-1", "sft", "sft-more"]
    assert list(tables([f"{made.path}:iterate-2"])) == ["iterate-2"]
