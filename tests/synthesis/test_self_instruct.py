"""Classification tasks are told from others, and instances pass the paper's filters in its order."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from spintune.errors import DataError
from spintune.synthesis.examples import AnsweredPrompt, GeneratedExample, SeedTask, SynthesisProvenance, read_seeds
from spintune.synthesis.filters import FilterRules
from spintune.synthesis.self_instruct import INSTANCE_DECODING, InstanceWriter
from spintune.teachers.cached import CachedTeacher
from spintune.teachers.protocol import Failure, Reply, Request

FROM = SynthesisProvenance("script", "self_instruct", (AnsweredPrompt("p", "k"),), ())


def written(instruction: str, classification: bool | None = None) -> GeneratedExample:
    return GeneratedExample(SeedTask(f"id {instruction}", instruction, classification=classification), FROM)


def instances(teacher: CachedTeacher, task: GeneratedExample) -> tuple[list[tuple[str, str | None]], dict[str, int]]:
    writer = InstanceWriter(teacher, FilterRules(), INSTANCE_DECODING, 3)
    writer.write([task])
    funnel = writer.instances
    assert funnel.read == funnel.kept + funnel.dropped.total()
    assert funnel.kept == len(writer.examples)
    return [(one.task.input, one.task.output) for one in writer.examples], dict(funnel.dropped)


def test_what_cannot_be_read_is_no_classification_task(teacher_of: Callable[..., CachedTeacher]) -> None:
    said = {"Sort it.": " Yes", "Write it.": " No", "Bend it.": "Maybe", "Lose it.": Failure("timeout")}
    teacher = teacher_of(lambda request: said[request.messages[0].content.rpartition("Task: ")[2]])
    writer = InstanceWriter(teacher, FilterRules(), INSTANCE_DECODING, 3)
    judged, funnel = writer.classify([written(text) for text in said]), writer.classified
    assert [one.task.classification for one in judged] == [True, False, False, False]
    assert (funnel.read, funnel.kept, funnel.dropped) == (4, 2, {"unparsed": 1, "timeout": 1})
    assert [request.prompt for request in judged[0].provenance.requests] == ["p", "self-instruct/classification/1"]


def test_classification_tasks_are_asked_label_first_and_others_input_first(
    teacher_of: Callable[..., CachedTeacher],
) -> None:
    asked: list[Request] = []

    def script(request: Request) -> str:
        asked.append(request)
        return " warm\nWeather: Sun.\nClass label: cold\nWeather: Snow." if "label" in request.begin else "Output: Ok."

    assert instances(teacher_of(script), written("Sort the weather.", True)) == (
        [("Weather: Sun.", "warm"), ("Weather: Snow.", "cold")],
        {},
    )
    assert instances(teacher_of(script), written("Say ok.", False)) == ([("", "Ok.")], {})
    for request in asked:
        assert (request.temperature, request.presence_penalty, request.max_tokens) == (0.0, 1.5, 300)
        assert request.stop == ("\nTask:", "\nExample 6")


def test_conflicting_outputs_cost_the_whole_task(teacher_of: Callable[..., CachedTeacher]) -> None:
    text = "Input: a\nOutput: x\nExample 2\nInput: b\nOutput: y\nExample 3\nInput: a\nOutput: z"
    assert instances(teacher_of(lambda _: text), written("Map it.")) == ([], {"conflicting_outputs": 3})


def test_form_comes_before_conflicts_and_duplicates_are_dropped(teacher_of: Callable[..., CachedTeacher]) -> None:
    """The second output for "a" ends with a colon: it is dropped first, and conflicts with nothing."""
    text = "Input: a\nOutput: x\nExample 2\nInput: a\nOutput: x\nExample 3\nInput: a\nOutput: see:"
    assert instances(teacher_of(lambda _: text), written("Map it.")) == (
        [("a", "x")],
        {"ends_with_colon": 1, "duplicate": 1},
    )


def test_at_most_five_instances_always_the_same(teacher_of: Callable[..., CachedTeacher]) -> None:
    text = "\n".join(f"Example {n}\nInput: in {n}\nOutput: out {n}" for n in range(1, 9))
    first = instances(teacher_of(lambda _: text), written("Map it."))
    assert len(first[0]) == 5
    assert first[1] == {"more_than_wanted": 3}
    assert instances(teacher_of(lambda _: text), written("Map it.")) == first


def test_what_is_copied_from_the_worked_examples_is_dropped(teacher_of: Callable[..., CachedTeacher]) -> None:
    text = (
        "Input: She never forgets to water the plants.\nOutput: She never forgot to water the plants.\n"
        "Example 2\nInput: She sings.\nOutput: She sang."
    )
    assert instances(teacher_of(lambda _: text), written("Rewrite it.")) == (
        [("She sings.", "She sang.")],
        {"copied_from_prompt": 1},
    )


def test_a_reply_that_ran_out_of_room_loses_its_last_instance(teacher_of: Callable[..., CachedTeacher]) -> None:
    cut = Reply("Input: a\nOutput: x\nExample 2\nInput: b\nOutput: y and", "length")
    assert instances(teacher_of(lambda _: cut), written("Map it.")) == ([("a", "x")], {"cut_off": 1})


# Seeds ----------------------------------------------------------------------------------------------------------------


def test_seeds_of_the_papers_form_and_of_alpaca(tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "seeds.jsonl"
    path.write_text(
        '{"id": "s", "instruction": "Sort.", "is_classification": true,'
        ' "instances": [{"input": "b a", "output": "a b"}]}\n'
        '{"instruction": "Write a program", "input": "<noinput>", "output": "ok"}\n'
    )
    assert read_seeds(str(path)) == [
        SeedTask("s", "Sort.", "b a", "a b", True),
        SeedTask("seed-2", "Write a program", "", "ok", None),
    ]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"instruction": "a"', "seeds.jsonl:2: not valid JSON"),
        ('{"instruction": "Sort.", "instances": []}', "seeds.jsonl:2: a row without an answer"),
        ('{"instruction": " ", "output": "x"}', "seeds.jsonl:2: a seed task with an empty instruction"),
        ('{"instruction": "Sort.", "output": ""}', "seeds.jsonl:2: a seed task with an empty output"),
        (
            '{"instruction": "Sort.", "output": "x", "is_classification": "no"}',
            "seeds.jsonl:2: is_classification is 'no'",
        ),
        ("[1]", "seeds.jsonl:2: the row is a list"),
    ],
)
def test_a_broken_seed_is_one_line_with_its_place(tmp_path, line: str, words: str) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "seeds.jsonl"
    path.write_text('{"instruction": "Add.", "output": "3"}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_seeds(str(path))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
