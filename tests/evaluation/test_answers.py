"""Files of answers are read as they come, and paired by what was asked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from growth import grows_too_fast

from spintune.errors import DataError
from spintune.evaluation.answers import (
    StoredAnswer,
    answered_models,
    pair_answers,
    read_answers,
)

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"


def written(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts(answers: list[StoredAnswer]) -> list[tuple[str, str, str | None]]:
    return [(one.prompt, one.answer, one.reference) for one in answers]


# Reading -------------------------------------------------------------------------------------------------------------


def test_a_row_may_call_its_parts_by_several_names(tmp_path: Path) -> None:
    path = written(
        tmp_path / "a.jsonl",
        {"id": "k", "prompt": "p", "reference": "r", "answer": "own", "nll": 3.2},
        {"instruction": "i\n", "input": "x", "prompt": "i\n\nInput: x\nOutput:", "response": " y", "target": "t"},
        {"instruction": "i", "input": None, "output": "", "generator": "gem"},
        {"instruction": "i", "input": "<noinput>", "answer": "Alpaca's word for no input"},
        {"question_id": 7, "question": "q", "completion": "c"},
        {"id": 8, "output": "only an id"},
        {"prompt": "e", "answer": "a", "reference": "", "target": "t"},
    )
    answers = read_answers(path)
    assert texts(answers) == [
        ("p", "own", "r"),
        ("i\n\nx", " y", "t"),
        ("i", "", None),
        ("i", "Alpaca's word for no input", None),
        ("q", "c", None),
        ("", "only an id", None),
        ("e", "a", "t"),
    ]
    assert [one.id for one in answers if one.prompt not in ("i", "i\n\nx", "e")] == ["k", "7", "8"]
    assert [one.where for one in answers] == [f"{path}:{line}" for line in range(1, 8)]


def test_one_list_of_rows_is_read_too(tmp_path: Path) -> None:
    path = tmp_path / "outputs.json"
    path.write_text(json.dumps([{"instruction": "a", "output": "b"}, {"instruction": "c", "output": "d"}]))
    assert texts(read_answers(path)) == [("a", "b", None), ("c", "d", None)]


def test_the_outputs_of_an_evaluation_set_are_its_writers_answers(tmp_path: Path) -> None:
    instances = [{"input": "", "output": "one"}, {"input": "x", "output": "two"}]
    path = written(tmp_path / "set.jsonl", {"id": "task", "instruction": "Do.", "instances": instances})
    assert [(one.id, one.prompt, one.answer) for one in read_answers(path)] == [
        ("task", "Do.", "one"),
        ("task/2", "Do.\n\nx", "two"),
    ]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p"}, r"a row without an answer \('answer' is missing\)"),
        ({"prompt": "p", "output": None}, r"a row without an answer \('output' is null\)"),
        ({"prompt": "p", "answer": ["a"]}, "'answer' is a list, not a text"),
        ({"answer": "a"}, "without a prompt and without an id"),
        ({"prompt": " ", "answer": "a"}, "without a prompt and without an id"),
        ({"id": True, "answer": "a"}, "'id' is a boolean"),
        ({"id": "0", "answer": "a"}, r"a\.jsonl:1 has the id 0 too"),
        ({"prompt": "p", "answer": "a", "reference": 5}, "'reference' is a number"),
        (5, "the row is a number"),
    ],
)
def test_a_row_that_is_no_answer_is_named(tmp_path: Path, row: Any, words: str) -> None:
    path = written(tmp_path / "a.jsonl", {"id": 0, "answer": "a"}, row)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{words}"):
        read_answers(path)


def test_a_file_that_is_not_there_or_no_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl does not exist"):
        read_answers(tmp_path / "none.jsonl")
    (tmp_path / "a.jsonl").write_text('{"id": 1, "answer": "a"}\n{"id": 2,')
    with pytest.raises(DataError, match=r"a\.jsonl:2: not valid JSON"):
        read_answers(tmp_path / "a.jsonl")


def test_the_answers_of_a_run_are_found_by_the_models_name(tmp_path: Path) -> None:
    for model in ("sft", "iterate-1"):
        folder = tmp_path / "eval" / "heldout" / model
        folder.mkdir(parents=True)
        written(folder / "answers.jsonl", {"id": "x", "prompt": "p", "reference": "r", "answer": model})
    assert answered_models(tmp_path) == ["iterate-1", "sft"]
    assert texts(read_answers(tmp_path / "eval/heldout/sft/answers.jsonl")) == [("p", "sft", "r")]


# Pairing -------------------------------------------------------------------------------------------------------------


def answer(id: str, prompt: str, text: str = "") -> StoredAnswer:
    return StoredAnswer(id, prompt, text or f"{id}/{prompt}", where=f"f.jsonl:{id}")


def paired(first: list[StoredAnswer], second: list[StoredAnswer]) -> list[tuple[str, str]]:
    return [(one.answer, other.answer) for one, other in pair_answers(first, second).pairs]


def test_prompts_are_equal_up_to_white_space_whatever_order_and_ids() -> None:
    first = [answer("1", "Say  hi.\n"), answer("2", "Add.\n\n1 2")]
    second = [answer("1", "Add. 1 2"), answer("9", "Say hi.")]
    assert paired(first, second) == [("1/Say  hi.\n", "9/Say hi."), ("2/Add.\n\n1 2", "1/Add. 1 2")]


def test_items_without_a_partner_are_counted() -> None:
    first = [answer(str(n), f"p{n}") for n in range(5)]
    second = [answer(str(n), f"p{n}") for n in range(3, 12)]
    found = pair_answers(first, second)
    assert (len(found.pairs), found.only_first, found.only_second) == (2, 3, 7)


def test_a_prompt_that_comes_several_times_is_paired_by_id_and_then_in_order() -> None:
    first = [answer("a", "p"), answer("b", "p"), answer("c", "p"), answer("d", "q")]
    second = [answer("c", "p"), answer("x", "p"), answer("a", "p"), answer("y", "p"), answer("d", "q")]
    found = pair_answers(first, second)
    assert [(one.id, other.id) for one, other in found.pairs] == [("a", "a"), ("b", "x"), ("c", "c"), ("d", "d")]
    assert (found.only_first, found.only_second) == (0, 1)


def test_ids_decide_only_where_there_are_no_prompts() -> None:
    bare = [StoredAnswer("2", "", "two"), StoredAnswer("1", "", "one")]
    assert paired([answer("1", "p", "a"), answer("2", "q", "b")], bare) == [("a", "one"), ("b", "two")]
    with pytest.raises(DataError, match="0 of them are the same"):
        pair_answers([answer("1", "p")], [answer("1", "q")])


def test_prompts_and_ids_that_were_made_up_for_them_never_meet(tmp_path: Path) -> None:
    prompts = read_answers(written(tmp_path / "p.jsonl", {"prompt": "a", "answer": "x"}))
    ids = read_answers(written(tmp_path / "i.jsonl", {"id": 1, "answer": "x"}))
    with pytest.raises(DataError, match=r"p\.jsonl answers 1 items and .*i\.jsonl 1, but 0 of them are the same"):
        pair_answers(prompts, ids)


def test_answers_to_other_items_are_an_error_with_counts() -> None:
    first = [answer(str(n), f"p{n}") for n in range(5)]
    second = [answer(str(n), f"p{n}") for n in range(5, 14)]
    message = (
        r"f\.jsonl answers 5 items and f\.jsonl 9, but 0 of them are the same \(the first prompts: 'p0' and 'p5'\)"
    )
    with pytest.raises(DataError, match=message):
        pair_answers(first, second)
    assert len(pair_answers([*first, second[0]], second).pairs) == 1


# The 252 user-oriented tasks -----------------------------------------------------------------------------------------


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the repository")
@pytest.mark.parametrize("model", ["davinci", "davinci-self-instruct", "text-davinci-003"])
def test_stored_predictions_answer_the_252_tasks_in_their_order(model: str) -> None:
    """One instruction comes twice, with different inputs: two items."""
    people = read_answers(SHARED / "user_oriented_instructions.jsonl")
    machine = read_answers(SHARED / "user_oriented_predictions" / f"{model}.jsonl")
    found = pair_answers(people, machine)
    assert (len(found.pairs), found.only_first, found.only_second) == (252, 0, 0)
    assert [other for _, other in found.pairs] == machine
    assert all(one.answer.strip() == (other.reference or "").strip() for one, other in found.pairs)
    instructions = [json.loads(line)["instruction"] for line in (SHARED / "user_oriented_instructions.jsonl").open()]
    assert len(set(instructions)) == 251
    assert len({" ".join(one.prompt.split()) for one in people}) == 252


@pytest.mark.parametrize("ids", ["equal", "different"])
def test_time_to_pair_grows_with_the_number_of_answers_to_one_prompt(ids: str) -> None:
    def pair(text: str) -> None:
        sides = [[StoredAnswer(f"{name}{n}", "the same", "a") for n in range(len(text))] for name in ("", "x")]
        first, second = (sides[0], sides[0][::-1]) if ids == "equal" else sides
        assert len(pair_answers(first, second).pairs) == len(text)

    assert grows_too_fast(pair, lambda size: "~" * size) is None
