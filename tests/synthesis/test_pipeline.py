"""The whole pipeline as one function, with a teacher of the caller's own."""

from __future__ import annotations

import doctest
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import spintune.synthesis.pipeline
from spintune.data.sources import Source, read_sources
from spintune.errors import BudgetError, DataError, RecipeError
from spintune.synthesis.examples import SeedTask
from spintune.synthesis.pipeline import EvaluationTexts, SynthesisOptions, synthesize
from spintune.teachers.protocol import Outcome, Reply, Request

OPTIONS = SynthesisOptions(requests_per_round=2, patience=2)


class Inventor:
    """A teacher as a user would write it: it invents tasks from the number of the request."""

    name = "inventor"
    identity = {"kind": "inventor"}  # noqa: RUF012

    def __init__(self, output: str = "an answer") -> None:
        self.output = output
        self.asked = 0

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        for index, request in enumerate(requests):
            self.asked += 1
            yield index, Reply(self.reply(request), "stop", 1000, 500)

    def reply(self, request: Request) -> str:
        text, n = request.messages[-1].content, request.draw
        if "classification task when" in text:
            return "No"
        if "Write examples of each task" in text:
            return f"Input: a text\nOutput: {self.output}"
        if request.begin.endswith("Instruction:"):
            return f"4. Instruction: p{n} q{n} r{n} s{n}\n4. Input:\n<noinput>\n4. Output:\n{self.output}"
        return f"9. p{n} q{n} r{n} s{n}\n10. t{n} u{n} v{n} w{n}"


def test_the_docstrings_example_is_true() -> None:
    results = doctest.testmod(spintune.synthesis.pipeline)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize("method", ["self_instruct", "alpaca"])
def test_seeds_and_a_teacher_give_examples_counts_and_cost(method, seeds: list[SeedTask], tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    teacher = Inventor()
    result = synthesize(seeds, teacher, 5, method, options=OPTIONS)
    assert [one.task.output for one in result.examples] == ["an answer"] * 5
    assert len(result.instructions) == 5
    assert result.stopped is None
    assert result.cost.requests == teacher.asked
    assert result.cost.completion_tokens == 500 * teacher.asked
    assert all(counts.read == counts.kept + counts.dropped.total() for counts in result.counts)
    assert "5 examples of 5 instructions" in str(result)
    result.save(tmp_path / "examples.jsonl")
    read = read_sources([Source(str(tmp_path / "examples.jsonl"))], 0).examples
    assert [example.messages for example in read] == [one.example.messages for one in result.examples]


def test_a_second_call_on_the_same_replies_asks_nothing_and_finds_the_same(
    seeds: list[SeedTask], tmp_path: Path
) -> None:
    teacher = Inventor()
    first = synthesize(seeds, teacher, 5, replies=tmp_path / "replies.sqlite", options=OPTIONS)
    asked = teacher.asked
    assert synthesize(seeds, teacher, 5, replies=str(tmp_path / "replies.sqlite"), options=OPTIONS) == first
    assert teacher.asked == asked


def test_the_seed_draws_what_is_shown(seeds: list[SeedTask]) -> None:
    shown = [synthesize(seeds, Inventor(), 5, seed=seed, options=OPTIONS) for seed in (0, 0, 1)]
    demonstrations = [[one.provenance.demonstrations for one in result.examples] for result in shown]
    assert demonstrations[0] == demonstrations[1] != demonstrations[2]


def test_what_overlaps_with_evaluation_data_is_removed(seeds: list[SeedTask], tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"instruction": "t1 u1 v1 w1", "output": "secret"}\n')
    options = SynthesisOptions(requests_per_round=2, evaluation=EvaluationTexts.read([str(exam)], 4))
    result = synthesize(seeds, Inventor(), 4, options=options)
    assert result.instructions == ["p0 q0 r0 s0", "t0 u0 v0 w0", "p1 q1 r1 s1"]
    assert [(one.evaluation, one.item, one.instruction) for one in result.removed] == [(str(exam), 0, "t1 u1 v1 w1")]
    assert result.counts[-1].dropped == {"in_evaluation_data": 1}


@pytest.mark.parametrize(
    "row",
    [
        {"instruction": "t1 u1 v1 w1", "output": " "},
        {"instruction": "t1 u1 v1 w1", "output": None},
        {"instruction": "t1 u1 v1 w1", "output": "a", "label": False},
        {"messages": [{"role": "user", "content": "t1 u1 v1 w1"}]},
        {"messages": [{"role": role, "content": "t1 u1 v1 w1"} for role in ("user", "assistant", "user")]},
        {"conversations": [{"from": "human", "value": "t1 u1 v1 w1"}, {"from": "gpt", "value": "a"}]},
        {"instruction": "t1 u1 v1 w1"},
        {"key": 1, "prompt": "t1 u1 v1 w1", "instruction_id_list": ["no_comma"], "kwargs": [{}]},
        {"question_id": 81, "category": "writing", "turns": ["t1 u1 v1 w1", "Again."]},
        {"question": "t1 u1 v1 w1", "choices": ["u1 v1", "w1"], "answer": 1},
        {"text": "t1 u1 v1 w1"},
        {"id": "squad/validation/5733be284776f41900661182/1", "query": "t1 u1 v1 w1"},
        {
            "context": "A long text about something else altogether.",
            "question": "t1 u1 v1 w1",
            "answers": {"text": ["a"]},
        },
        {"question": "t1 u1 v1 w1", "answer": ["a", "b"]},
        {"question": "t1 u1 v1 w1", "answer": {"value": "a", "aliases": ["b"]}},
    ],
)
def test_evaluation_prompts_are_kept_out_with_or_without_an_answer(
    seeds: list[SeedTask], tmp_path: Path, row: dict[str, Any]
) -> None:
    """The third row, after two equal ones with another prompt."""
    exam = tmp_path / "exam.jsonl"
    line = json.dumps(row) + "\n"
    exam.write_text(line.replace("t1 u1 v1 w1", "k l m n") * 2 + line)
    evaluation = EvaluationTexts.read([str(exam)], 4)
    result = synthesize(seeds, Inventor(), 4, options=SynthesisOptions(requests_per_round=2, evaluation=evaluation))
    assert [(one.item, one.source) for one in result.removed] == [(2, f"{exam}:3")]


def test_an_empty_cell_of_a_table_is_no_answer_either(tmp_path: Path) -> None:
    exam = tmp_path / "exam.csv"
    exam.write_text("question,answer\nWho?,\nWhere?,Here\n")
    evaluation = EvaluationTexts.read([str(exam)])
    assert [text.strip() for text in evaluation.texts[str(exam)]] == ["Who?", "Who?", "Where?", "Where?\n\nHere"]
    assert evaluation.sources == {str(exam): [f"{exam}:2", f"{exam}:3"]}


def test_rows_of_another_shape_than_the_first_ones_are_items_too(tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    first = '{"question": "Who?", "answer": "I"}\n' * 10
    exam.write_text(first + '{"prompt": "Who won the cup?"}\n{"question": null, "answer": "Nobody"}\n')
    texts = EvaluationTexts.read([str(exam)]).texts[str(exam)]
    assert texts[:2] == ["Who?", "Who?\n\nI"]
    assert texts[20:] == ["Who won the cup?", "Who won the cup?", "Nobody", "Nobody"]


def test_choices_belong_to_the_text_of_an_evaluation_item(tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"question": "Who?", "choices": ["I", "You"], "answer": 1}\n')
    assert EvaluationTexts.read([str(exam)]).texts[str(exam)] == ["Who?", "Who?\n\nI\n\nYou"]


def test_an_evaluation_row_without_text_is_named(tmp_path: Path) -> None:
    exam = tmp_path / "exam.jsonl"
    exam.write_text('{"text": "Who?"}\n{"text": " ", "label": 1}\n')
    with pytest.raises(DataError, match=r"exam.jsonl:2: holds no text; delete the row"):
        EvaluationTexts.read([str(exam)])


def test_an_unknown_method_useless_answers_and_a_budget_without_an_example_are_errors(seeds: list[SeedTask]) -> None:
    with pytest.raises(RecipeError, match=r"no method 'self-instruct'; did you mean self_instruct\?"):
        synthesize(seeds, Inventor(), method="self-instruct")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="inventor: no example passed the filters"):
        synthesize(seeds, Inventor("ends with a colon:"), 5, options=OPTIONS)

    class Poor(Inventor):
        def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
            for index, outcome in super().ask(requests):
                yield index, outcome
                if self.asked == 2:
                    raise BudgetError("the budget is used up")

    with pytest.raises(BudgetError, match="no example was finished: the budget is used up"):
        synthesize(seeds, Poor(), 5, options=OPTIONS)


@pytest.mark.slow
def test_synthesis_needs_no_torch() -> None:
    program = (
        "import sys; from spintune.synthesis.pipeline import synthesize\n"
        "import spintune.synthesis.card, spintune.synthesis.figure\n"
        "sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


class Thinker(Inventor):
    """Reasons before every second answer, and is asked without a temperature."""

    thoughts = 0

    def ask(self, requests: Sequence[Request]) -> Iterator[tuple[int, Outcome]]:
        for index, outcome in super().ask(requests):
            assert isinstance(outcome, Reply)
            reasoning = "Hm." if self.asked % 2 else ""
            self.thoughts += bool(reasoning)
            yield index, replace(outcome, reasoning=reasoning, left_out=("temperature",))


def test_thoughts_and_parameters_left_out_are_counted_once(seeds: list[SeedTask], tmp_path: Path) -> None:
    """Also by a call that finds every reply in the file."""
    teacher = Thinker()
    results = [synthesize(seeds, teacher, 5, replies=tmp_path / "r.sqlite", options=OPTIONS) for _ in range(2)]
    for result in results:
        assert (result.thoughts, result.left_out) == (teacher.thoughts, {"temperature": teacher.asked})
    assert 0 < teacher.thoughts < teacher.asked
