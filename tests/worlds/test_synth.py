"""Writing data as a stage: through HTTP, by a model on this machine, and on to training."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, invented
from command_server import Command

from spintune.errors import RecipeError
from spintune.recipe import Recipe, load_recipe
from spintune.teachers.protocol import Outcome, Reply, Request
from spintune.teachers.registry import TEACHERS, register_teacher

Run = Callable[..., dict[str, Any]]
Spintune = Callable[..., Any]


@pytest.fixture
def server() -> Iterator[ChatServer]:
    server = ChatServer()
    yield server
    server.stop()


@pytest.fixture
def recipe(values: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Path]:
    def write(**changes: Any) -> Path:
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps(values(tmp_path / "out", **changes)))
        return path

    return write


def section(server: ChatServer, **changes: Any) -> dict[str, Any]:
    teacher = {"url": server.url, "model": "inventor", **changes.pop("teacher", {})}
    return {"instructions": 12, "requests_per_round": 3, "teacher": teacher, **changes}


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


ALONE = {"data": {"train": "synth"}, "sft": None, "spin": None, "eval": []}


@pytest.mark.slow
def test_seeds_to_data_to_sft_to_self_play_in_one_command(run: Run, server: ChatServer, tmp_path: Path) -> None:
    server.usage = {"prompt_tokens": 2000, "completion_tokens": 200}
    results = run(tmp_path / "run", synth=section(server), data={"train": "synth"}, spin={"iterations": 1})
    examples = rows(tmp_path / "run/synth/examples.jsonl")
    assert results["synth"]["examples"] == len(examples) == 12
    assert results["data"]["read"] == 12
    assert results["data"]["train"] + results["data"]["heldout"] + sum(results["data"]["dropped"].values()) == 12
    assert set(results["models"]) == {"base", "sft", "iterate-1"}
    trained = rows(tmp_path / "run/data/train.jsonl")
    assert {row["messages"][0]["content"] for row in trained} <= {
        f"{e['instruction']}\n\n{e['input']}" for e in examples
    }
    assert results["synth"]["cost"]["requests"] == sum(server.asked.values())
    assert results["synth"]["cost"]["prompt_tokens"] == 2000 * sum(server.asked.values())


def test_every_row_tells_where_it_comes_from(run: Run, server: ChatServer, tmp_path: Path) -> None:
    run(tmp_path / "run", synth=section(server), **ALONE)
    for row in rows(tmp_path / "run/synth/examples.jsonl"):
        provenance = row["provenance"]
        assert provenance["teacher"] == f"inventor at {server.url.removeprefix('http://').removesuffix('/v1')}"
        assert [r["prompt"] for r in provenance["requests"]] == [
            "self-instruct/instructions/1",
            "self-instruct/classification/1",
            "self-instruct/input-first/1",
        ]
        assert len(provenance["demonstrations"]) == 8
    card = json.loads((tmp_path / "run/synth/card.json").read_text())
    assert card["examples"] == 12
    instances = card["funnel"][-1]
    assert instances["dropped"] == {"empty_output": 12}
    for step in card["funnel"]:
        assert step["read"] == step["kept"] + sum(step["dropped"].values())
    assert sum(bound["count"] for bound in card["nearest_seed"]["histogram"]) == card["instructions"] == 12
    text = (tmp_path / "run/synth/card.md").read_text()
    assert "# 12 examples written by inventor" in text
    assert "empty_output 12" in text


@pytest.mark.parametrize(
    ("format", "file"), [("alpaca", "alpaca.json"), ("chat", "chat.jsonl"), ("parquet", "examples.parquet")]
)
def test_the_file_for_others_reads_back_as_the_same_examples(
    run: Run, server: ChatServer, tmp_path: Path, format: str, file: str
) -> None:
    from spintune.data.sources import Source, read_sources

    run(tmp_path / "run", synth=section(server, format=format), **ALONE)
    ours = read_sources([Source(str(tmp_path / "run/synth/examples.jsonl"))], 0).examples
    theirs = read_sources([Source(str(tmp_path / "run/synth" / file))], 0).examples
    assert [example.messages for example in theirs] == [example.messages for example in ours]
    assert len(ours) == 12


def test_the_same_command_asks_nothing_and_more_instructions_go_on_from_there(
    run: Run, server: ChatServer, tmp_path: Path
) -> None:
    run(tmp_path / "run", synth=section(server), **ALONE)
    before = rows(tmp_path / "run/synth/examples.jsonl")
    asked = server.asked.copy()
    run(tmp_path / "run", synth=section(server), **ALONE)
    assert server.asked == asked
    run(tmp_path / "run", synth=section(server, instructions=20), **ALONE)
    assert rows(tmp_path / "run/synth/examples.jsonl")[:12] == before
    assert set(server.asked.values()) == {1}
    assert sum(server.asked.values()) > sum(asked.values())


def test_a_budget_that_ends_keeps_what_it_paid_for_and_a_larger_one_goes_on(
    run: Run, server: ChatServer, tmp_path: Path
) -> None:
    server.usage = {"prompt_tokens": 500, "completion_tokens": 100}
    poor = {"budget": {"tokens": 12_000}, "concurrency": 1}
    results = run(tmp_path / "run", synth=section(server, teacher=poor), **ALONE)
    assert "budget" in results["synth"]["stopped"]
    kept = len(rows(tmp_path / "run/synth/examples.jsonl"))
    assert 0 < kept <= 12
    cost = results["synth"]["cost"]
    assert cost["prompt_tokens"] + cost["completion_tokens"] <= 12_000
    results = run(tmp_path / "run", synth=section(server), **ALONE)
    assert results["synth"]["examples"] == 12
    assert results["synth"]["stopped"] is None
    assert set(server.asked.values()) == {1}


def test_examples_that_touch_evaluation_data_are_taken_out_and_named(
    run: Run, server: ChatServer, tmp_path: Path
) -> None:
    run(tmp_path / "first", synth=section(server), **ALONE)
    leaked = rows(tmp_path / "first/synth/examples.jsonl")[4]
    (tmp_path / "exam.jsonl").write_text(json.dumps({"instruction": leaked["instruction"], "output": "secret"}) + "\n")
    clean = section(server, decontaminate={"files": [str(tmp_path / "exam.jsonl")], "ngram": 7})
    results = run(tmp_path / "run", synth=clean, **ALONE)
    assert results["synth"]["examples"] == 11
    card = json.loads((tmp_path / "run/synth/card.json").read_text())
    (removed,) = card["decontaminated"]
    assert removed["instruction"] == leaked["instruction"]
    assert removed["evaluation"] == str(tmp_path / "exam.jsonl")
    assert leaked["instruction"] not in (tmp_path / "run/synth/examples.jsonl").read_text()


def test_a_short_prompt_is_found_whatever_its_answer_and_files_of_one_name_are_two_files(
    run: Run, server: ChatServer, tmp_path: Path
) -> None:
    """Seven words are fewer than 13, so the prompt is looked up whole; each file knows one of the leaked prompts."""
    run(tmp_path / "first", synth=section(server), **ALONE)
    written = rows(tmp_path / "first/synth/examples.jsonl")
    files = []
    for place, leaked in enumerate((written[2], written[7])):
        files.append(tmp_path / f"{place}" / "exam.jsonl")
        files[-1].parent.mkdir()
        filler = {"instruction": f"something else entirely {place}", "output": "other"}
        item = {"instruction": leaked["instruction"], "output": "an answer of a great many other words " * 5}
        files[-1].write_text(json.dumps(filler) + "\n" + json.dumps(item) + "\n")
    clean = section(server, decontaminate={"files": [str(file) for file in files]})
    results = run(tmp_path / "run", synth=clean, **ALONE)
    assert results["synth"]["examples"] == 10
    card = json.loads((tmp_path / "run/synth/card.json").read_text())
    assert [(one["evaluation"], one["item"]) for one in card["decontaminated"]] == [(str(file), 1) for file in files]


def test_a_broken_evaluation_file_shows_before_anything_is_asked(run: Run, server: ChatServer, tmp_path: Path) -> None:
    from spintune.errors import DataError

    (tmp_path / "exam.jsonl").write_text('{"instruction": "a", "output": "b"}\n{"instruction": 3, "output": "b"}\n')
    broken = section(server, decontaminate={"files": [str(tmp_path / "exam.jsonl")]})
    with pytest.raises(DataError, match=r"exam.jsonl:2: 'instruction' is a number"):
        run(tmp_path / "run", synth=broken, **ALONE)
    assert sum(server.asked.values()) == 0


@pytest.mark.parametrize("by_override", [True, False])
def test_a_model_is_named_for_the_teacher_that_the_recipe_has(
    spintune: Callable[..., Any], recipe: Callable[..., Path], server: ChatServer, tmp_path: Path, by_override: bool
) -> None:
    """The recipe's own teacher lacks it, and is no whole one without."""
    synth = section(server)
    del synth["teacher"]["model"]
    words = [f"synth.teacher.url={synth.pop('teacher')['url']}"] if by_override else []
    result = spintune("synth", recipe(synth=synth, **ALONE), "--model", "inventor", *words)
    assert result.code == 0, result.err
    provenance = rows(tmp_path / "out/synth/examples.jsonl")[0]["provenance"]
    assert provenance["teacher"].startswith("inventor at 127.0.0.1")


def test_a_model_on_this_machine_is_the_teacher_by_default(
    run: Run, tiny_model: Path, tmp_path: Path, contents: Callable[[Path], Any]
) -> None:
    """A random model writes noise. What counts is that it is asked, and that noise ends in one clear line."""
    from spintune.errors import TeacherError

    small = {"instructions": 3, "requests_per_round": 2, "patience": 1, "max_tokens": 8}
    with pytest.raises(TeacherError, match=f"{tiny_model}: no usable task in 2 replies"):
        run(tmp_path / "run", synth=small, **ALONE)
    assert (tmp_path / "run/synth/replies.sqlite").is_file()


class Inventor:
    """A teacher of a user's own, in this process."""

    def __init__(self, model: str, prefix: str = "") -> None:
        self.name = model
        self.identity = {"kind": "inventor", "prefix": prefix}
        self.prefix = prefix

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        for index, request in enumerate(requests):
            yield index, Reply(self.prefix + invented(request.messages[-1].content))


def test_a_registered_teacher_writes_by_its_name_in_the_recipe(run: Run, tmp_path: Path) -> None:
    register_teacher("inventor", Inventor)
    teacher = {"kind": "inventor", "model": "own words", "extra": {"prefix": "\n"}}
    synth = {"instructions": 12, "requests_per_round": 3, "teacher": teacher}
    try:
        results = run(tmp_path / "run", synth=synth, **ALONE)
        misspelled = synth | {"teacher": teacher | {"kind": "inventer"}}
        with pytest.raises(RecipeError, match=r"no kind of teacher 'inventer'; did you mean inventor\?"):
            run(tmp_path / "other", synth=misspelled, **ALONE)
    finally:
        TEACHERS.unregister("inventor")
    assert results["synth"]["teacher"] == "own words"
    assert results["synth"]["cost"]["dollars"] == 0
    assert len(rows(tmp_path / "run/synth/examples.jsonl")) == results["synth"]["examples"] == 12


def test_a_script_in_a_file_is_a_dry_run(run: Run, tmp_path: Path) -> None:
    script = [
        {"when": "classification task when", "reply": "No"},
        {"when": "Write examples of each task", "reply": "Output: Oats, apples and walnuts."},
        {"reply": "9. List three ingredients of a healthy breakfast."},
    ]
    path = tmp_path / "script.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in script))
    teacher = {"kind": "scripted", "model": str(path)}
    run(tmp_path / "run", synth={"instructions": 1, "requests_per_round": 1, "teacher": teacher}, **ALONE)
    (row,) = rows(tmp_path / "run/synth/examples.jsonl")
    assert (row["output"], row["provenance"]["teacher"]) == ("Oats, apples and walnuts.", "script")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"teacher": {"url": "ftp://example.org"}}, "ftp://example.org"),
        ({"teacher": {"url": "https://example.org/v1", "key_variable": "SOME_API_KEY"}}, "SOME_API_KEY"),
        ({"teacher": {"budget": {"dollars": 1.0}}}, "a budget in dollars needs prompt_price"),
        ({"method": "alpaca", "instance_tokens": 9}, "instance_tokens would do nothing here"),
        ({"filters": {"novelty": 0}}, "synth.filters.novelty"),
    ],
)
def test_bad_settings_are_one_clear_line(
    spintune: Spintune, recipe: Callable[..., Path], server: ChatServer, changes: dict[str, Any], words: str
) -> None:
    result = spintune("run", recipe(synth=section(server, **changes), **ALONE))
    assert result.code != 0
    assert words in result.err
    assert "Traceback" not in result.err
    assert sum(server.asked.values()) == 0


def test_synth_as_a_source_needs_its_section(spintune: Spintune, recipe: Callable[..., Path]) -> None:
    result = spintune("run", recipe(**ALONE))
    assert result.code == 2
    assert "data.train names synth, but there is no synth section" in result.err


@pytest.mark.parametrize(
    ("status", "words"), [(401, "API_KEY"), (404, "404"), (500, "no answer for 8 requests in a row")]
)
def test_a_teacher_that_refuses_is_one_clear_line(
    spintune: Spintune, recipe: Callable[..., Path], server: ChatServer, status: int, words: str
) -> None:
    server.status = status
    settings = section(server, teacher={"max_retries": 0}, requests_per_round=8)
    result = spintune("run", recipe(synth=settings, **ALONE))
    assert result.code == 9
    assert words in result.err


def test_the_command_alone_shows_what_was_dropped(spintune: Spintune, server: ChatServer, tmp_path: Path) -> None:
    options = ("--url", server.url, "--model", "inventor", "--instructions", "5", "--out", str(tmp_path / "out"))
    result = spintune("synth", *options, "synth.requests_per_round=2")
    assert result.code == 0, result.err
    assert "instances" in result.out
    assert "empty_output 5" in result.out
    assert "read card.md" in result.out
    assert len(rows(tmp_path / "out/synth/examples.jsonl")) == 5


def test_the_model_of_the_command_is_the_teacher_of_a_recipe_that_has_one(
    spintune: Spintune, recipe: Callable[..., Path], server: ChatServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Recipe] = []
    monkeypatch.setattr("spintune.cli.stages.execute", lambda found, *more: loaded.append(found))
    for settings in (section(server), {}):
        assert spintune("synth", recipe(synth=settings, **ALONE), "--model", "other").code == 0
    (taught, alone), student = loaded, load_recipe(recipe(synth={}, **ALONE)).model
    assert taught.synth
    assert taught.synth.teacher
    assert (taught.synth.teacher.model, taught.synth.teacher.url, taught.model) == ("other", server.url, student)
    assert alone.model == "other" != student


@pytest.mark.slow
def test_kill_of_either_side_loses_nothing_and_asks_nothing_twice(
    values: Callable[..., dict[str, Any]], server: ChatServer, tmp_path: Path
) -> None:
    """The client is killed with -9 in the middle; the server ends and comes back on the same port; then both go on."""
    file = tmp_path / "recipe.yaml"
    settings = section(server, instructions=30, teacher={"concurrency": 2, "max_retries": 0})
    file.write_text(json.dumps(values(tmp_path / "run", synth=settings, **ALONE)))
    server.seconds = 0.05
    killed = Command("synth", file)
    deadline = time.monotonic() + 60
    while sum(server.asked.values()) < 8 and time.monotonic() < deadline:
        time.sleep(0.01)
    killed.signal(signal.SIGKILL)
    killed.wait()
    before = server.asked.copy()
    port = server.server_address[1]
    server.stop()
    down = Command("synth", file)
    assert down.wait() == 9
    assert len(down.err.strip().splitlines()[-1].splitlines()) == 1
    back = ChatServer(port=port)
    try:
        done = Command("synth", file)
        assert done.wait() == 0, done.err
        # what was under way when the client died may come twice: two requests at most
        twice = [body for body in back.asked if body in before]
        assert len(twice) <= 2
        assert max((before + back.asked).values()) <= 2
        assert len(rows(tmp_path / "run/synth/examples.jsonl")) == 30
    finally:
        back.stop()
