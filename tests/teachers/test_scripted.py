"""A script says what a teacher would; a wrong script is told where it is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from spintune.errors import DataError, TeacherError
from spintune.records import Message
from spintune.teachers.protocol import Failure, Reply, Request
from spintune.teachers.scripted import ScriptedTeacher

Questions = Callable[..., list[Request]]


def script(path: Path, *rows: object) -> ScriptedTeacher:
    path.write_text("".join(json.dumps(row) + "\n\n" for row in rows))
    return ScriptedTeacher.from_file(path)


def test_a_function_answers_in_order_with_texts_replies_and_failures(questions: Questions) -> None:
    replies = ["a text", Reply("cut", "length", 1, 2), Failure("timeout")]
    teacher = ScriptedTeacher(lambda request: replies[int(request.messages[-1].content[-1])], "three")
    assert list(teacher.ask(questions(3))) == [(0, Reply("a text", "stop")), (1, replies[1]), (2, replies[2])]
    assert (teacher.name, teacher.identity) == ("three", {"kind": "scripted", "name": "three"})


def test_the_lines_of_a_file_fit_by_what_the_request_says_those_with_when_first(tmp_path: Path) -> None:
    teacher = script(
        tmp_path / "s.jsonl",
        {"reply": "anything", "ending": "length"},
        {"when": "classification", "reply": "No"},
        {"when": "2. Task", "failure": "rate_limited"},
    )
    requests = [
        Request((Message("user", "hello"),)),
        Request((Message("system", "Is it classification?"), Message("user", "hello"))),
        Request((Message("user", "hello"),), begin="2. Task"),
    ]
    assert list(teacher.ask(requests)) == [
        (0, Reply("anything", "length")),
        (1, Reply("No", "stop")),
        (2, Failure("rate_limited")),
    ]


def test_draws_of_one_request_spread_over_the_lines_and_repeat(tmp_path: Path, questions: Questions) -> None:
    """300 draws over 3 lines: 100 each, within 6 standard deviations of √(300·⅓·⅔) = 8.2."""
    teacher = script(tmp_path / "s.jsonl", {"reply": "a"}, {"reply": "b"}, {"reply": "c"})
    requests = [questions(1, draw=n)[0] for n in range(300)]
    outcomes = [outcome for _, outcome in teacher.ask(requests)]
    counts = Counter(outcome.text for outcome in outcomes if isinstance(outcome, Reply))
    assert set(counts) == {"a", "b", "c"}
    assert all(abs(count - 100) < 50 for count in counts.values())
    assert outcomes == [outcome for _, outcome in teacher.ask(requests)]


def test_another_script_is_another_teacher(tmp_path: Path) -> None:
    first = script(tmp_path / "s.jsonl", {"reply": "a"})
    second = script(tmp_path / "s.jsonl", {"reply": "b"})
    assert first.name == second.name == "s"
    assert first.identity != second.identity


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('{"reply": "a"', "Invalid JSON"),
        ('["reply"]', "Input should be an object"),
        ('{"reply": 1}', "reply: Input should be a valid string"),
        ('{"when": "a"}', "give a reply or a failure, and not both"),
        ('{"when": 1, "reply": "a"}', "when: Input should be a valid string"),
        ('{"reply": "a", "ending": "eos"}', "ending: Input should be 'stop', 'length' or 'refused'"),
        ('{"reply": "a", "failure": "b"}', "give a reply or a failure, and not both"),
        ('{"reply": "a", "weight": 1}', "weight: Unexpected keyword argument"),
        ('{"failure": "a", "ending": "stop"}', "ending is for a reply"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: str, words: str) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"reply": "fine"}\n' + row)
    with pytest.raises(DataError, match=rf"s\.jsonl:2: .*{words}"):
        ScriptedTeacher.from_file(path)


def test_a_script_that_is_missing_empty_or_does_not_fit_is_an_error(tmp_path: Path, questions: Questions) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        ScriptedTeacher.from_file(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DataError, match="has no lines"):
        ScriptedTeacher.from_file(tmp_path / "empty.jsonl")
    teacher = script(tmp_path / "s.jsonl", {"when": "tea", "reply": "a"})
    with pytest.raises(TeacherError, match="no line matches the request that ends with 'question 0'"):
        list(teacher.ask(questions(1)))


@pytest.mark.slow
def test_nothing_about_teachers_imports_torch() -> None:
    program = (
        "import importlib, pkgutil, sys, spintune.teachers as t\n"
        "names = [m.name for m in pkgutil.iter_modules(t.__path__)]\n"
        "[importlib.import_module('spintune.teachers.' + name) for name in names]\n"
        "assert 'endpoint' in names\n"
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
