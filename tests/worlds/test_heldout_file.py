"""Held-out examples of one's own: what is read, what is left out of training, and what a changed file does again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from watching import Watching

from spintune.errors import DataError
from spintune.pipeline import run_recipe
from spintune.recipe import parse_recipe

Run = Callable[..., dict[str, Any]]

ONLY_DATA: dict[str, Any] = {"sft": None, "spin": None, "eval": []}


def asked(verb: str, count: int) -> list[dict[str, str]]:
    return [{"instruction": f"{verb} owl {n} times.", "output": "owl " * (n % 4 + 1)} for n in range(1, count + 1)]


def write(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def prompts(path: Path) -> list[str]:
    return [json.loads(line)["messages"][0]["content"] for line in path.read_text().splitlines()]


def data_of(**settings: Any) -> dict[str, Any]:
    return {"eval_fraction": None, **settings}


def test_all_rows_of_the_file_are_held_out_and_their_prompts_are_not_trained_on(
    run: Run, alpaca_file: Path, tmp_path: Path
) -> None:
    """Of 40 rows, two have prompts of the file (one with another answer); the file has a copy and an empty answer."""
    shared = [{"instruction": f"Say owl {n} times.", "output": "owl " * n} for n in (1, 2)]
    rows = [*asked("Shout", 5), *shared, asked("Shout", 1)[0], {"instruction": "Nothing", "output": " "}]
    watching = Watching()
    data = data_of(heldout=write(tmp_path / "mine.jsonl", rows))
    facts = run(tmp_path / "run", watching, data=data, **ONLY_DATA)["data"]
    train, heldout = (prompts(tmp_path / f"run/data/{name}.jsonl") for name in ("train", "heldout"))
    assert heldout == [row["instruction"] for row in rows[:7]]
    assert train == [
        row["instruction"] for row in json.loads(alpaca_file.read_text()) if row["instruction"] not in heldout
    ]
    assert facts["dropped"] == {"duplicate": 1, "empty_answer": 1, "heldout_prompt": 2}
    assert (facts["train"], facts["heldout"], facts["read"]) == (38, 7, 49)
    assert "2 of 40 examples are not trained on: held-out ones have their prompts" in watching.notes


def test_a_row_that_its_weight_repeats_is_dropped_as_often(run: Run, alpaca_file: Path, tmp_path: Path) -> None:
    data = data_of(
        train={"path": str(alpaca_file), "weight": 3}, heldout=write(tmp_path / "mine.jsonl", asked("Say", 1))
    )
    facts = run(tmp_path / "run", data=data, **ONLY_DATA)["data"]
    assert (facts["train"], facts["heldout"], facts["repeated"], facts["dropped"]) == (
        117,
        1,
        80,
        {"heldout_prompt": 3},
    )
    assert facts["train"] + facts["heldout"] + 3 == facts["read"] + facts["repeated"]


def test_the_file_is_read_as_the_training_rows_unless_it_says_otherwise(run: Run, tmp_path: Path) -> None:
    rows = [{"q": f"Question {n}", "r": "Yes", "label": "topic"} for n in range(4)]
    columns = {"prompt": "q", "response": "r", "label": None}
    train = [{"path": write(tmp_path / f"{n}.jsonl", rows[n : n + 1]), "columns": columns} for n in (0, 1)]
    held = [
        write(tmp_path / "own.jsonl", rows[2:]),
        {"path": write(tmp_path / "a.jsonl", asked("Say", 2)), "columns": {}},
    ]
    results = run(tmp_path / "run", data=data_of(train=train, heldout=held), **ONLY_DATA)
    assert (results["data"]["train"], results["data"]["heldout"]) == (2, 4)


def test_a_folder_gives_its_test_split(run: Run, tmp_path: Path) -> None:
    for name, verb in (("train", "Say"), ("test", "Shout")):
        write(tmp_path / f"{name}.jsonl", asked(verb, 3))
    run(tmp_path / "run", data=data_of(train=str(tmp_path), heldout=str(tmp_path)), **ONLY_DATA)
    assert prompts(tmp_path / "run/data/heldout.jsonl") == [row["instruction"] for row in asked("Shout", 3)]


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (None, r"^data file .*mine.jsonl does not exist; "),
        ([], r"mine.jsonl: empty; give a file with at least one row$"),
        ([{"instruction": "Say", "output": ""}], r"mine.jsonl: no examples are left \(1 empty_answer\)"),
        (asked("Say", 3), "^every training example has a held-out prompt, so none is left to train on; name other"),
        (asked("Shout", 3), r"^sft.keep: . of 3 held-out examples are .* or rows of data.heldout\)$"),
    ],
)
def test_a_file_that_cannot_serve_is_one_line(run: Run, tmp_path: Path, rows: list[Any] | None, told: str) -> None:
    path = tmp_path / "mine.jsonl"
    data = data_of(train=write(tmp_path / "train.jsonl", asked("Say", 3)), heldout=str(path))
    if rows is not None:
        write(path, rows)
    with pytest.raises(DataError, match=told) as raised:
        run(tmp_path / "run", data=data, spin=None, sft={"keep": "best"}, eval=[])
    assert "\n" not in str(raised.value)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A step of SFT, judged on a file and on questions, which do not depend on it."""
    folder = tmp_path_factory.mktemp("heldout")
    questions = [
        {"id": f"q{n}", "instruction": "Sing", "instances": [{"input": "", "output": "la"}]} for n in range(10)
    ]
    return {
        "data": data_of(
            train=write(folder / "train.jsonl", asked("Say", 9)),
            heldout=str(folder / "mine.jsonl"),
            max_length=40,
            max_target_length=8,
        ),
        "sft": {"max_steps": 1},
        "spin": None,
        "eval": ["heldout", "questions"],
        "evaluation": {"questions": write(folder / "questions.jsonl", questions), "max_new_tokens": 2},
    }


def made(out: Path) -> dict[str, int]:
    """When each stage was finished."""
    return {str(path.parent.relative_to(out)): path.stat().st_mtime_ns for path in out.rglob("manifest.json")}


def test_the_examples_are_read_again_when_a_file_has_changed(
    run: Run, settings: dict[str, Any], tmp_path: Path
) -> None:
    """Other training rows leave the held-out examples as they are, byte for byte, and so what was asked of them."""
    mine, train, out = Path(settings["data"]["heldout"]), Path(settings["data"]["train"]), tmp_path / "run"
    found = []
    for shouted, said in ((4, 9), (4, 9), (3, 9), (3, 8)):
        write(mine, asked("Shout", shouted))
        write(train, asked("Say", said))
        run(out, data=settings["data"], **ONLY_DATA)
        found.append([made(out)["data"], *((out / f"data/{name}.jsonl").read_bytes() for name in ("train", "heldout"))])
    assert found[0] == found[1]
    assert [one == other for one, other in zip(found[1], found[2], strict=True)] == [False, True, False]
    assert [one == other for one, other in zip(found[2], found[3], strict=True)] == [False, False, True]


@pytest.mark.slow
def test_another_file_of_that_name_makes_again_what_depends_on_it(
    run: Run, settings: dict[str, Any], values: Callable[..., dict[str, Any]], cache: Path, tmp_path: Path
) -> None:
    """The weights are the same bits, so what else was asked of them stays; so does all that was asked of the base."""
    out, mine, train = tmp_path / "run", Path(settings["data"]["heldout"]), Path(settings["data"]["train"])
    write(mine, asked("Shout", 4))
    write(train, asked("Say", 9))
    everything, nothing = Watching(), Watching()
    run(out, everything, **settings)
    first = made(out)
    run(out, nothing, **settings)
    assert (made(out), nothing.tasks) == (first, [])

    write(mine, asked("Shout", 3))
    run(out, **settings)
    again = {stage for stage, time in made(out).items() if time != first[stage]}
    judged = {f"{stage}/{model}" for stage in ("likelihood", "eval/heldout") for model in ("base", "sft")}
    assert again == {"data", "sft", "contamination", *judged}

    # a run of a sweep with the same file and other training rows
    write(train, asked("Say", 8))
    other = Watching()
    run_recipe(parse_recipe(values(tmp_path / "other", **settings), "test"), cache, other, siblings=[out])
    answered = {"base: held-out likelihood", "base: held-out answers", "base: questions"}
    assert answered <= set(everything.tasks)
    assert not answered & set(other.tasks)
    assert {"SFT", "sft: held-out answers"} <= set(other.tasks)


@pytest.mark.slow
def test_without_training_the_file_is_all_that_is_needed(run: Run, tmp_path: Path) -> None:
    data = data_of(train=None, heldout=write(tmp_path / "mine.jsonl", asked("Say", 2)))
    results = run(tmp_path / "run", data=data, sft=None, spin=None)
    assert (results["data"]["train"], results["data"]["heldout"]) == (0, 2)
    answered = (tmp_path / "run/eval/heldout/base/answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["reference"] for line in answered] == [row["output"] for row in asked("Say", 2)]


def test_held_out_prompts_that_the_model_was_trained_on_are_counted(run: Run, tmp_path: Path) -> None:
    """Of 40 prompts 8 are held out, and later 16: the same 8, and 8 that the first run and the second trained on."""
    first, second = tmp_path / "first", tmp_path / "second"
    quick: dict[str, Any] = {"spin": None, "eval": []}
    run(first, **quick)
    run(second, **quick, model=str(first / "sft/model"))

    def told(name: str, model: Path, **data: Any) -> list[str]:
        watching = Watching()
        run(tmp_path / name, watching, model=str(model / "sft/model"), data=data, **ONLY_DATA)
        return [note for note in watching.notes if "flatters" in note]

    assert told("same", first) == []
    assert told("file", first, eval_fraction=None, heldout=str(first / "data/heldout.jsonl")) == []
    (note,) = told("more", first, eval_fraction=0.4)
    assert note.startswith(f"8 of 16 held-out examples have prompts that {first}/sft/model was trained on")
    assert f"data.heldout={first}/data/heldout.jsonl" in note
    assert len(told("both", second, eval_fraction=0.4)) == 2


def test_a_damaged_run_that_trained_the_model_is_a_note(run: Run, tmp_path: Path) -> None:
    first = tmp_path / "first"
    run(first, spin=None, eval=[])

    def notes(name: str, **data: Any) -> list[str]:
        watching = Watching()
        run(tmp_path / name, watching, model=str(first / "sft/model"), data=data, **ONLY_DATA)
        return [note for note in watching.notes if "was trained on held-out prompts" in note]

    for damaged in ("data/train.jsonl", "recipe.json"):
        (first / damaged).write_text("{\n")
        (note,) = notes(f"after {damaged[:4]}")
        assert damaged in note
        assert "\n" not in note
    assert notes("none held out", eval_fraction=0) == []


def test_of_a_run_with_self_play_on_unseen_prompts_sft_knows_the_seen_ones(run: Run, tmp_path: Path) -> None:
    watching = Watching()
    run(tmp_path / "first", spin={"prompts": "unseen", "iterations": 1}, eval=[])
    data = {"heldout": str(tmp_path / "first/data/unseen.jsonl"), "eval_fraction": None}
    run(tmp_path / "second", watching, model=str(tmp_path / "first/sft/model"), data=data, **ONLY_DATA)
    assert [note for note in watching.notes if "flatters" in note] == []
