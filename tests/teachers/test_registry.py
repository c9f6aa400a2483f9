"""Kinds of teachers: registered from Python, named by recipes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import RecipeError, TeacherError
from spintune.recipe import parse_recipe
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Outcome, Reply, Request
from spintune.teachers.registry import TEACHERS, build_teacher, register_teacher
from spintune.teachers.replies import Replies
from spintune.teachers.scripted import ScriptedTeacher


class Shouting:
    """The example of the documentation."""

    def __init__(self, model: str, marks: int = 1) -> None:
        self.name = model
        self.identity = {"kind": "shouting", "marks": marks}
        self.marks = marks

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        for index, request in enumerate(requests):
            yield index, Reply(request.messages[-1].content.upper() + "!" * self.marks)


@pytest.fixture
def shouting() -> Iterator[str]:
    register_teacher("shouting", Shouting)
    yield "shouting"
    TEACHERS.unregister("shouting")


def recipe(**teacher: Any) -> Any:
    values = {"out": "o", "model": "m", "data": {"train": "synth"}, "synth": {"teacher": teacher}}
    return parse_recipe(values, "test")


def test_a_registered_teacher_gets_model_and_extra_by_name(shouting: str, questions: Any) -> None:
    teacher = build_teacher(shouting, "loud", {"marks": 2})
    assert teacher.name == "loud"
    with Replies(None) as replies:
        cached = CachedTeacher(teacher, replies)
        assert cached.ask(questions(2)) == [Reply("QUESTION 0!!"), Reply("QUESTION 1!!")]
        assert cached.spent.requests == 2


def test_a_teacher_without_arguments_needs_no_model() -> None:
    class Plain(Shouting):
        def __init__(self) -> None:
            super().__init__("plain")

    register_teacher("plain", Plain)
    try:
        section = recipe(kind="plain").synth.teacher
        assert build_teacher("plain", section.model, section.extra).name == "plain"
        with pytest.raises(RecipeError, match="teacher 'plain': got an unexpected keyword argument 'model'"):
            build_teacher("plain", "any", {})
    finally:
        TEACHERS.unregister("plain")


def test_the_script_of_a_file_is_a_kind(tmp_path: Path, questions: Any) -> None:
    (tmp_path / "s.jsonl").write_text('{"reply": "yes"}\n')
    teacher = build_teacher("scripted", str(tmp_path / "s.jsonl"), {})
    assert list(teacher.ask(questions(1))) == [(0, Reply("yes"))]


@pytest.mark.parametrize(
    ("kind", "extra", "words"),
    [
        ("shoutin", {}, "there is no kind of teacher 'shoutin'; did you mean shouting?"),
        ("shouting", {"volume": 11}, "teacher 'shouting': got an unexpected keyword argument 'volume'"),
        ("shouting", {"model": "twice"}, "teacher 'shouting': model is an argument of its own; leave it out of extra"),
    ],
)
def test_an_unknown_kind_and_unknown_arguments_are_one_line(
    shouting: str, kind: str, extra: dict[str, int], words: str
) -> None:
    with pytest.raises(RecipeError) as caught:
        build_teacher(kind, "m", extra)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_that_are_taken_are_refused(shouting: str) -> None:
    for taken in ("endpoint", "shouting", "scripted"):
        with pytest.raises(RecipeError, match=f"named '{taken}' already"):
            register_teacher(taken, lambda model: ScriptedTeacher(lambda _: "", model))
    register_teacher("shouting", Shouting)  # the same once more, as a notebook's cell does


def test_what_is_no_teacher_is_said_at_once() -> None:
    class Half:
        name = "half"

    with (
        Replies(None) as replies,
        pytest.raises(TeacherError, match="Half is not a teacher: it lacks identity and ask"),
    ):
        CachedTeacher(Half(), replies)  # type: ignore[arg-type]


def test_a_teacher_that_leaves_a_request_out_is_said_so(questions: Any) -> None:
    class Lazy(Shouting):
        def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
            yield from list(super().ask(requests))[:1]

    with Replies(None) as replies, pytest.raises(TeacherError, match="lazy yielded no outcome for 2 of 3 requests"):
        CachedTeacher(Lazy("lazy"), replies).ask(questions(3))


def test_outcomes_may_come_as_a_list_and_in_any_order(questions: Any) -> None:
    class Backwards(Shouting):
        def ask(self, requests: Sequence[Request]) -> list[tuple[int, Outcome]]:  # type: ignore[override]
            return list(super().ask(requests))[::-1]

    with Replies(None) as replies:
        texts = [reply.text for reply in CachedTeacher(Backwards("b"), replies).ask(questions(2))]  # type: ignore[union-attr]
    assert texts == ["QUESTION 0!", "QUESTION 1!"]


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        ({"model": "m"}, "synth.teacher: url is missing"),
        ({"kind": "shouting", "model": "m", "url": "http://a/v1"}, "url is for an endpoint, and kind is shouting"),
        ({"kind": "shouting", "model": "m", "budget": {"tokens": 9}}, "budget is for an endpoint"),
        ({"url": "http://a/v1"}, "synth.teacher: model is missing"),
    ],
)
def test_a_recipe_gives_a_kind_nothing_that_does_nothing(teacher: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(**teacher)
    assert words in str(caught.value)


def test_a_judge_may_be_of_a_kind() -> None:
    judge = {"kind": "shouting", "model": "m", "extra": {"marks": 2}, "items": 3}
    values = {"out": "o", "model": "m", "data": {"train": "x.json"}, "sft": {}, "judge": judge}
    assert parse_recipe(values, "test").judge.runs_locally is False
    with pytest.raises(RecipeError, match="concurrency is for an endpoint"):
        parse_recipe(values | {"judge": judge | {"concurrency": 3}}, "test")


def test_an_endpoints_identity_is_that_of_runs_from_before_there_were_kinds() -> None:
    assert "kind" not in recipe(url="http://a/v1", model="m").identity()["synth"]["teacher"]
    assert recipe(kind="shouting", model="m").identity()["synth"]["teacher"]["kind"] == "shouting"
