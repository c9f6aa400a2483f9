"""A run that is judged by everything: benchmarks, one's own task, stored answers of rivals, and a judge over HTTP."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_server import ChatServer, verdict

from spintune.errors import DataError, ModelError, RecipeError, StoppedBySignal, TeacherError
from spintune.pipeline import run_recipe
from spintune.progress import Silent, StopRequest
from spintune.recipe import parse_recipe
from spintune.teachers.registry import TEACHERS, register_teacher
from spintune.teachers.scripted import ScriptedTeacher

Run = Callable[..., dict[str, Any]]
Spintune = Callable[..., Any]

ANSWER = "the quick brown fox jumps over the lazy dog"


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[str], str]], ChatServer]]:
    servers: list[ChatServer] = []

    def start(says: Callable[[str], str] = verdict) -> ChatServer:
        servers.append(ChatServer(says))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()


def lines(path: Path, rows: list[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Any]:
    """IFEval prompts, questions with answers, a rival's answers to them, and MT-Bench questions."""
    ifeval = [
        {
            "key": key,
            "prompt": f"Say number {key} without commas, in at least 300 words.",
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": [{}, {"relation": "at least", "num_words": 300}],
        }
        for key in range(11)
    ]
    questions = [
        {"id": f"q{n}", "instruction": f"Say it {n} times", "instances": [{"input": "", "output": ANSWER}]}
        for n in range(12)
    ]
    rival = [{"instruction": f"Say it {n} times", "input": "", "response": ANSWER} for n in range(12)]
    mt_bench = [{"question_id": n, "category": "writing", "turns": [f"Write {n}", "Again"]} for n in range(3)]
    return {
        "ifeval": lines(tmp_path / "ifeval.jsonl", ifeval),
        "questions": lines(tmp_path / "questions.jsonl", questions),
        "rivals": [lines(tmp_path / "parrot.jsonl", rival)],
        "mt_bench": lines(tmp_path / "mt.jsonl", mt_bench),
        "max_new_tokens": 8,
    }


SMALL: dict[str, Any] = {"spin": {"iterations": 1, "max_new_tokens": 8}}
EVERYTHING = ["heldout", "ifeval", "questions", "mt-bench"]


@pytest.mark.slow
def test_everything_judges_every_model_and_a_second_run_asks_nothing_again(
    run: Run, serve: Callable[..., ChatServer], files: dict[str, Any], tmp_path: Path
) -> None:
    server = serve()
    settings = {"eval": EVERYTHING, "evaluation": files, "judge": {"url": server.url, "model": "counter"}, **SMALL}
    results = run(tmp_path / "run", **settings)
    models = ["base", "sft", "iterate-1"]

    ifeval = results["benchmarks"]["ifeval"]
    assert ifeval["items"] == dict.fromkeys(models, 11)
    # eight tokens are no 300 words, so no prompt is followed in full, and at most every second instruction
    for model in models:
        assert ifeval["scores"][model]["prompt_strict"]["mean"] == 0
        assert ifeval["scores"][model]["instruction_strict"]["mean"] <= 0.5
    verdicts = [json.loads(line) for line in (tmp_path / "run/eval/ifeval/sft/answers.jsonl").read_text().splitlines()]
    strict = [follows for row in verdicts for follows in row["strict"]]
    assert ifeval["scores"]["sft"]["instruction_strict"]["mean"] == pytest.approx(sum(strict) / len(strict))

    questions = results["benchmarks"]["questions"]["scores"]
    assert questions["parrot"]["rouge_l"]["mean"] == questions["parrot"]["exact_match"]["mean"] == 1
    assert set(questions) == {*models, "parrot"}

    judge = results["judge"]
    assert judge["judge"].startswith("counter at 127.0.0.1")
    assert not judge["problems"]
    assert all(canary["trusted"] and canary["rate"] == 0 for canary in judge["canary"].values())
    beaten = judge["pairs"]["questions"]
    chosen = results["best"]["name"] if results["best"]["name"] in models else models[-1]
    assert beaten[f"{chosen} - parrot"]["losses"] == 12  # the rival says the reference itself
    assert set(judge["pairs"]["heldout"]) == {"base - sft", "iterate-1 - sft"}
    assert {name: said["mean"]["mean"] for name, said in judge["ratings"].items()} == dict.fromkeys(models, 7)
    assert results["benchmarks"]["mt-bench"]["scores"]["sft"]["rating"]["mean"] == 7
    assert any("cannot be told apart" in line for line in results["conclusions"])

    asked = server.asked.copy()
    assert judge["cost"]["requests"] == sum(asked.values())
    assert run(tmp_path / "run", **settings) == results
    assert server.asked == asked


def test_a_judge_that_prefers_nonsense_is_not_counted(
    run: Run, serve: Callable[..., ChatServer], files: dict[str, Any], tmp_path: Path
) -> None:
    def first(prompt: str) -> str:
        found = re.search(r"\[(\w+): task begins\]", prompt)
        return f"[[{found[1]}:A]]" if found else ""

    notes: list[str] = []
    kept = {"questions": files["questions"], "max_new_tokens": 8}
    settings = {"eval": ["questions"], "evaluation": kept, "judge": {"url": serve(first).url, "model": "first"}}
    results = run(tmp_path / "run", Notes(notes), **settings, sft={"max_steps": 1}, spin=None)
    canary = results["judge"]["canary"]["questions"]
    assert canary["rate"] == 0.5  # the first of both orders: a tie with everything
    assert not canary["trusted"]
    assert results["judge"]["pairs"] == {}
    assert any("its verdicts mean nothing" in note for note in notes)
    assert results["benchmarks"]["questions"]["items"]["sft"] == 12  # what needs no judge stays


def test_a_registered_teacher_may_judge(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    register_teacher("counter", lambda: ScriptedTeacher(lambda request: verdict(request.messages[-1].content), "count"))
    kept = {"questions": files["questions"], "max_new_tokens": 8}
    settings = {"eval": ["questions"], "evaluation": kept, "judge": {"kind": "counter", "items": 3}}
    try:
        judge = run(tmp_path / "run", **settings, sft={"max_steps": 1}, spin=None)["judge"]
    finally:
        TEACHERS.unregister("counter")
    assert judge["judge"] == "count"
    assert judge["canary"]["questions"]["trusted"]
    assert [pair["items"] for pair in judge["pairs"]["questions"].values()] == [3]
    assert judge["cost"]["dollars"] == 0


def test_a_judge_that_never_answers_leaves_what_needs_none(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    kept = {"questions": files["questions"], "max_new_tokens": 8}
    nobody = {"url": "http://127.0.0.1:9/v1", "model": "nobody", "max_retries": 0}
    results = run(tmp_path / "run", eval=["questions"], evaluation=kept, judge=nobody, sft={"max_steps": 1}, spin=None)
    assert results["judge"]["pairs"] == {}
    assert "127.0.0.1:9" in results["judge"]["problems"][0]
    assert results["benchmarks"]["questions"]["scores"]["sft"]["rouge_l"]["mean"] >= 0


def test_items_that_were_trained_on_are_counted_and_scores_without_them_given(
    run: Run, files: dict[str, Any], tmp_path: Path
) -> None:
    leaked = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    asked = [leaked if n < 3 else f"Say it {n} times" for n in range(12)]
    questions = [
        {"id": f"q{n}", "instruction": text, "instances": [{"input": f"{n}", "output": ANSWER}]}
        for n, text in enumerate(asked)
    ]
    train = [{"instruction": f"{leaked} please {n}", "input": "", "output": f"fine {n}"} for n in range(20)]
    kept = {"questions": lines(tmp_path / "q.jsonl", questions), "max_new_tokens": 8}
    data = {"train": lines(tmp_path / "train.jsonl", train), "eval_fraction": 0.0}
    results = run(tmp_path / "run", data=data, eval=["questions"], evaluation=kept, sft={"max_steps": 1}, spin=None)
    found = results["contamination"]["sets"]["questions"]
    assert (found["items"], found["8"], found["13"]) == (12, 3, 3)
    assert sorted(found["unclean"]) == ["q0", "q1", "q2"]
    rows = [json.loads(line) for line in (tmp_path / "run/eval/questions/sft/scores.jsonl").read_text().splitlines()]
    clean = [row["scores"]["rouge_l"] for row in rows if row["id"] not in ("q0", "q1", "q2")]
    given = results["benchmarks"]["questions"]["clean"]["sft"]["rouge_l"]["mean"]
    assert given == pytest.approx(sum(clean) / 9)


@pytest.mark.slow
def test_a_task_of_ones_own_runs_on_every_model_and_one_that_cannot_run_is_left_out(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"q": f"Who says {n}?", "c": ["the fox", "the dog"], "a": n % 2} for n in range(12)]
    lines(tmp_path / "quiz.jsonl", rows)
    task = {"task": "quiz", "kind": "multiple_choice", "data": "quiz.jsonl", "prompt": "{q}", "choices": "c"}
    (tmp_path / "quiz.yaml").write_text(json.dumps({**task, "answer": "a"}))
    notes: list[str] = []
    wanted = [str(tmp_path / "quiz.yaml"), "piqa"]
    results = run(tmp_path / "run", Notes(notes), eval=wanted, sft={"max_steps": 1}, spin=None)
    assert results["failed"] == ["piqa"]
    assert any("piqa skipped" in note for note in notes)
    scores = results["benchmarks"]["quiz"]["scores"]
    told = json.loads((tmp_path / "run/eval/quiz/sft/manifest.json").read_text())["facts"]
    assert scores["sft"]["acc"]["mean"] == told["results"][0]["metrics"]["acc,none"]["value"]
    assert set(scores) == {"base", "sft"}


def test_mistakes_show_before_anything_is_trained(run: Run, files: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        run(out, eval=["ifeval"], evaluation={"ifeval": str(tmp_path / "nowhere.jsonl")})
    other = lines(tmp_path / "other.jsonl", [{"instruction": "Something else", "output": "x"}])
    with pytest.raises(DataError, match="0 of them are the same"):
        run(out, eval=["questions"], evaluation={"questions": files["questions"], "rivals": [other]})
    same = tmp_path / "sft.jsonl"
    same.write_text(Path(files["rivals"][0]).read_text())
    with pytest.raises(RecipeError, match=r"sft\.jsonl has the name of a model of the run"):
        run(out, eval=["questions"], evaluation={"questions": files["questions"], "rivals": [str(same)]})
    settings = {"eval": ["questions"], "evaluation": {"questions": files["questions"]}}
    with pytest.raises(ModelError, match="no model 'nosuchmodel'"):
        run(out, judge={"model": "nosuchmodel"}, **settings)
    with pytest.raises(TeacherError, match="JUDGE_API_KEY"):
        run(out, judge={"model": "m", "url": "https://127.0.0.1:9/v1", "key_variable": "JUDGE_API_KEY"}, **settings)
    assert not (out / "sft").exists()


class Notes:
    """Progress that remembers what it was told."""

    def __init__(self, notes: list[str]) -> None:
        from spintune.progress import Silent

        self.notes, self.task = notes, Silent().task

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_other_training_data_leaves_what_was_judged_of_the_base_model(
    run: Run, files: dict[str, Any], tmp_path: Path
) -> None:
    """Benchmarks do not depend on the data, and the recipe's model is the same."""
    kept = {"questions": files["questions"], "max_new_tokens": 8}
    settings = {"eval": ["questions"], "evaluation": kept, "sft": {"max_steps": 1}, "spin": None}
    run(tmp_path / "one", **settings)
    run(tmp_path / "two", until="sft", data={"eval_fraction": 0.5}, **settings)
    shutil.copytree(tmp_path / "one/eval/questions/base", tmp_path / "two/eval/questions/base")
    marker = tmp_path / "two/eval/questions/base/manifest.json"
    before = marker.stat().st_mtime_ns
    results = run(tmp_path / "two", data={"eval_fraction": 0.5}, **settings)
    assert marker.stat().st_mtime_ns == before
    assert set(results["benchmarks"]["questions"]["scores"]) == {"base", "sft"}


@pytest.mark.slow
def test_a_metric_that_a_user_registered_chooses_the_model(run: Run, many: dict[str, Any], tmp_path: Path) -> None:
    from spintune.metrics import METRICS, Metric, register_metric

    register_metric(Metric("brevity", lambda prediction, _: -len(prediction), "higher", "Fewer characters."))
    try:
        changes = {"spin": {"iterations": 1, "max_new_tokens": 8}, "evaluation": {"metric": "brevity"}}
        results = run(tmp_path / "run", data=many, **changes)
        assert set(results["heldout"]) == {"base", "sft", "iterate-1"}
        assert all(measures["brevity"]["mean"] <= 0 for measures in results["heldout"].values())
        assert "brevity" in results["best"]["why"]
        assert "brevity" in results["differences"]["iterate-1 - sft"]
    finally:
        METRICS.unregister("brevity")


# Stops --------------------------------------------------------------------------------------------------------------


def lasting(results: dict[str, Any]) -> dict[str, Any]:
    """Results without times and costs."""
    if isinstance(results, dict):
        return {key: lasting(value) for key, value in results.items() if key not in ("seconds", "hardware", "cost")}
    return results


@pytest.mark.slow
def test_a_stop_while_the_judge_answers_loses_no_answer(
    run: Run,
    values: Callable[..., Any],
    spintune: Spintune,
    serve: Callable[..., ChatServer],
    files: Any,
    tmp_path: Path,
) -> None:
    """SIGTERM comes while it compares, and again while it rates."""
    told: list[str] = []

    def says(prompt: str) -> str:
        told.append(prompt)
        if len(told) in (20, 50):
            os.kill(os.getpid(), signal.SIGTERM)
        return verdict(prompt)

    judge = {"url": serve(says).url, "model": "counter", "concurrency": 1}
    kept = {key: value for key, value in files.items() if key != "ifeval"}
    settings = {"eval": ["questions", "mt-bench"], "evaluation": kept, "sft": {"max_steps": 1}, "spin": None}
    recipe, out = tmp_path / "recipe.yaml", tmp_path / "stopped"
    recipe.write_text(json.dumps(values(out, judge=judge, **settings)))
    codes = []
    for _ in range(3):
        result = spintune("run", recipe)
        codes.append(result.code)
        if result.code:
            assert result.err.splitlines()[-1].startswith("spintune: stopped by SIGTERM")
    assert codes == [75, 75, 0]
    assert len(told) <= len(set(told)) + 2  # what was under way may be asked again
    straight = run(tmp_path / "straight", judge=judge, **settings)
    assert len(set(told)) > 50
    assert lasting({**json.loads((out / "results.json").read_text()), "models": 0}) == lasting(
        {**straight, "models": 0}
    )


@pytest.mark.slow
def test_a_stop_inside_of_the_harness_repeats_one_evaluation(
    values: Callable[..., Any], run: Run, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same end as SIGTERM's, asked for by the second report of progress on a benchmark of the second model."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    rows = [{"q": f"Who says {n}?", "c": ["the fox", "the dog"], "a": n % 2} for n in range(12)]
    lines(tmp_path / "quiz.jsonl", rows)
    task = {"task": "quiz", "kind": "multiple_choice", "data": "quiz.jsonl", "prompt": "{q}", "choices": "c"}
    (tmp_path / "quiz.yaml").write_text(json.dumps({**task, "answer": "a"}))
    settings = {"eval": [str(tmp_path / "quiz.yaml")], "sft": {"max_steps": 1}, "spin": None}
    stop, out = StopRequest(), tmp_path / "stopped"

    class AsksToStop(Silent):
        @contextlib.contextmanager
        def task(self, name: str, total: float, unit: str) -> Iterator[Any]:
            if name == "sft: quiz":
                stop.ask(StoppedBySignal("stopped by SIGTERM"))
            yield Silent().task(name, total, unit).__enter__()

    recipe = parse_recipe(values(out, **settings), "test")
    with pytest.raises(StoppedBySignal) as stopped:
        run_recipe(recipe, cache, AsksToStop(), stop=stop)
    assert stopped.value.exit_code == 75
    assert (out / "eval/quiz/base/manifest.json").is_file()
    assert not (out / "eval/quiz/sft").exists()
    straight = run(tmp_path / "straight", **settings)
    assert lasting({**run(out, **settings), "models": 0}) == lasting({**straight, "models": 0})
