"""A mixture of tasks as training data: from task files to accuracies on held-out tasks, for both kinds of models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.recipe import load_recipe
from spintune.stages.data import mixture_of, read_data

Run = Callable[..., dict[str, Any]]
Spintune = Callable[..., Any]


@pytest.fixture
def tasks(tmp_path: Path) -> list[str]:
    """Sums and differences, with rationales; and a task that is held out."""
    made = {
        "sums": (
            "arithmetic",
            [(f"{n} plus {n + 1}", f"{n} and {n + 1} make {2 * n + 1}.", 2 * n + 1) for n in range(24)],
        ),
        "halves": ("arithmetic", [(f"half of {2 * n}", f"two times {n} is {2 * n}.", n) for n in range(24)]),
        "doubles": ("doubling", [(f"twice {n}", f"{n} and {n} make {2 * n}.", 2 * n) for n in range(24)]),
    }
    for name, (cluster, rows) in made.items():
        lines = [json.dumps({"question": q, "why": w, "answer": str(a)}) for q, w, a in rows]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        (tmp_path / f"{name}.yaml").write_text(
            f"name: {name}\ncluster: {cluster}\nfamily: arithmetic\nfile: {name}.jsonl\ncheck: number\n"
            "fields: {question: question, rationale: why, answer: answer}\n"
            "phrasings: builtin:arithmetic\n"
        )
    return [str(tmp_path / f"{name}.yaml") for name in made]


def mixture(made: list[str], **changes: Any) -> dict[str, Any]:
    return {"tasks": made, "examples": 40, "held_out": ["doubles"], "heldout_rows": 3, "shots": [1, 2], **changes}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_prompt_that_one_source_holds_out_is_trained_on_in_none(run: Run, tasks: list[str], tmp_path: Path) -> None:
    """A file of held-out examples has a prompt that the mixture draws, and the training file one that it holds out."""
    only: dict[str, Any] = {"sft": None, "spin": None, "eval": []}
    data = {"max_length": 256, "mixture": mixture(tasks)}
    run(tmp_path / "alone", data={**data, "train": None, "eval_fraction": None}, **only)
    drawn, tested = (rows(tmp_path / f"alone/data/{name}.jsonl") for name in ("train", "heldout"))
    asked, other = (some[0]["messages"][0]["content"] for some in (drawn, tested))

    def file(name: str, *prompts: str) -> str:
        lines = [json.dumps({"prompt": prompt, "response": "none"}) + "\n" for prompt in prompts]
        (tmp_path / name).write_text("".join(lines))
        return str(tmp_path / name)

    data |= {"train": file("train.jsonl", "Hello?", other), "heldout": file("mine.jsonl", asked), "eval_fraction": None}
    facts = run(tmp_path / "run", data=data, **only)["data"]
    kept = [row["messages"][0]["content"] for row in drawn if row["messages"][0]["content"] != asked]
    assert [row["messages"][0]["content"] for row in rows(tmp_path / "run/data/train.jsonl")] == ["Hello?", *kept]
    assert facts["dropped"]["heldout_prompt"] == len(drawn) - len(kept) + 1


DATA: dict[str, Any] = {"train": None, "max_length": 256, "eval_fraction": 0.2}


def check(results: dict[str, Any], out: Path) -> None:
    """What holds for every run of the mixture."""
    train, heldout = rows(out / "data/train.jsonl"), rows(out / "data/heldout.jsonl")
    assert len(train) == results["data"]["train"] == 40
    assert not any(row["source"].startswith("mixture:doubles") for row in train)
    assert any(row["source"].startswith("mixture:doubles") for row in heldout)
    shares = results["data"]["mixture"]["quadrants"]
    assert sum(share["realised"] for share in shares.values()) == pytest.approx(1.0)
    accuracy = results["tasks"]["accuracy"]
    for model in ("base", "sft"):
        groups = accuracy[model]
        assert groups["held-out tasks"]["items"] + groups["trained tasks"]["items"] == len(heldout)
        assert groups["cluster doubling"] == groups["held-out tasks"] == groups["task doubles"]
    # by hand: the share of answers whose announced, or only, number is the reference's
    answers = rows(out / "eval/heldout/sft/answers.jsonl")
    assert [row["id"] for row in answers] == [row["id"] for row in rows(out / "eval/heldout/base/answers.jsonl")]
    assert set(results["tasks"]["differences"]) == {"base - sft"}
    # answers are judged by the rules of their tasks, and the chosen model by the same
    verdicts = {row["id"]: row["scores"]["checker"] for row in rows(out / "eval/heldout-measures/sft/scores.jsonl")}
    kinds = rows(out / "eval/tasks/sft/scores.jsonl")
    assert verdicts == {row["id"]: next(iter(row["scores"].values())) for row in kinds}
    assert json.loads((out / "recipe.json").read_text())["recipe"]["evaluation"]["checker"] == "tasks"
    # what a comparison of runs reads: every question under its kind
    kept = rows(out / "eval/tasks/sft/scores.jsonl")
    assert {row["id"] for row in kept} == {row["id"] for row in answers}
    kind = "held-out tasks, zero-shot, direct"
    direct = [row["scores"][kind] for row in kept if kind in row["scores"]]
    group = accuracy["sft"][kind]
    assert (group["items"], group["mean"]) == (len(direct), pytest.approx(sum(direct) / len(direct)))


@pytest.mark.slow
def test_a_decoder_trains_on_a_mixture_and_is_judged_on_held_out_tasks(
    run: Run, tasks: list[str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    check(run(out, data={**DATA, "mixture": mixture(tasks)}, spin=None), out)


@pytest.mark.slow
def test_an_encoder_decoder_does_so_with_limits_for_input_and_target(
    run: Run, tasks: list[str], tiny_t5: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    data = {**DATA, "mixture": mixture(tasks), "max_input_length": 200, "max_target_length": 56}
    results = run(out, model=str(tiny_t5), data=data, spin={"iterations": 1}, sft={"dropout": 0.05})
    check({**results, "tasks": {**results["tasks"], "differences": {"base - sft": {}}}}, out)
    assert results["spin"][0]["heldout"]["start_loss"] == pytest.approx(0.6931, abs=1e-3)


def test_plain_sources_and_a_mixture_stand_beside_each_other(
    run: Run, tasks: list[str], alpaca_file: Path, tmp_path: Path
) -> None:
    data = {**DATA, "train": str(alpaca_file), "mixture": mixture(tasks)}
    results = run(tmp_path / "run", data=data, sft=None, spin=None, eval=[])
    assert results["data"]["train"] == 32 + 40
    assert results["data"]["read"] == 40
    # with a file to hold out, eval_fraction is of the tasks alone
    from_tasks = results["data"]["heldout"] - 8
    data["heldout"] = str(tmp_path / "mine.jsonl")
    (tmp_path / "mine.jsonl").write_text('{"instruction": "Shout.", "output": "Ho"}\n')
    found = run(tmp_path / "file", data=data, sft=None, spin=None, eval=[])["data"]
    assert (found["train"], found["heldout"], found["read"]) == (40 + 40, 1 + from_tasks, 41)


def test_another_rule_of_a_task_judges_the_same_answers_again(run: Run, tasks: list[str], tmp_path: Path) -> None:
    out, changes = tmp_path / "run", {"data": {**DATA, "mixture": mixture(tasks)}, "sft": None, "spin": None}

    def inputs() -> dict[str, str]:
        stages = ("heldout", "heldout-measures", "tasks")
        return {stage: json.loads((out / f"eval/{stage}/base/manifest.json").read_text())["inputs"] for stage in stages}

    run(out, **changes)
    before = inputs()
    run(out, **changes)
    assert inputs() == before
    task = Path(tasks[0])
    task.write_text(task.read_text().replace("check: number", "check: text"))
    run(out, **changes)
    assert {stage for stage, digest in inputs().items() if digest != before[stage]} == {"heldout-measures", "tasks"}


def test_the_command_shows_tasks_and_shares(
    spintune: Spintune, values: Callable[..., dict[str, Any]], tasks: list[str], tmp_path: Path
) -> None:
    shown = spintune("mix", "--show", tasks[0], "--rows", "6")
    assert shown.code == 0, shown.err
    assert "chain of thought" in shown.out
    assert "direct" in shown.out
    assert "plus" in shown.out
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(values(tmp_path / "out", data={**DATA, "mixture": mixture(tasks)})))
    mixed = spintune("mix", str(recipe))
    assert mixed.code == 0, mixed.err
    assert "Held-out tasks: doubles" in mixed.out
    assert "sums" in mixed.out
    plain = json.loads(spintune("mix", str(recipe), "--json").out)
    assert plain["examples"] == 40
    loaded = load_recipe(recipe)
    trained = read_data(loaded, mixture_of(loaded, tmp_path)).train
    inspected = json.loads(spintune("inspect", str(recipe), "--rows", "40", "--json").out)
    assert [row["example_id"] for row in inspected["shown"]] == [example.id for example in trained]
    assert (inspected["read"], inspected["repeated"], inspected["mixed"], inspected["rows"]) == (0, 0, 40, 40)
    file = Path(tasks[0]).with_suffix(".jsonl")
    file.write_text(file.read_text() + "\n{")
    assert f"{file}:25: not valid JSON" in spintune("mix", str(recipe)).err
    dropped = spintune("mix", str(recipe), "data.on_bad_row=drop")
    assert dropped.code == 0, dropped.err


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": ["nowhere.yaml"]}, "nowhere.yaml"),
        ({"tasks": ["builtin:nothing"]}, "nothing"),
        ({"held_out": ["triples"]}, "triples"),
        ({"weights": {"triples": 1.0}}, "triples"),
        ({"quadrants": {"zero_direct": 0.0}}, "sum to 0"),
        ({"few_shot_tokens": 4, "quadrants": {"few_direct": 1.0}}, "few_shot_tokens"),
        ({"example": 9}, "did you mean data.mixture.examples?"),
    ],
)
def test_a_mistake_in_a_mixture_is_one_line(
    spintune: Spintune,
    values: Callable[..., dict[str, Any]],
    tasks: list[str],
    tmp_path: Path,
    changes: dict[str, Any],
    words: str,
) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(json.dumps(values(tmp_path / "out", data={**DATA, "mixture": mixture(tasks, **changes)})))
    result = spintune("run", str(recipe))
    assert result.code in (2, 3)
    assert words in result.err
    assert "Traceback" not in result.err
