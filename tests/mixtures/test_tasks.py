"""Rows become fields, options and answers; what is wrong is said with file and key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from spintune.errors import DataError, RecipeError, SpintuneError
from spintune.mixtures.tasks import MixtureTask, load_tasks

Declare = Callable[..., Path]
TaskOf = Callable[..., MixtureTask]


def problem(path: Path | str, kind: type[SpintuneError], folder: Path | None = None) -> str:
    with pytest.raises(kind) as caught:
        load_tasks([str(path)], folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- fields ---


def test_a_pattern_keeps_its_group_and_remove_takes_matches_out(task: TaskOf) -> None:
    rows = [{"answer": "He has 2+3 = <<2+3=5>>5.\n#### 5", "question": "How many?"}]
    fields = {
        "question": "question",
        "rationale": {"from": "answer", "pattern": r"(?s)\A(.*?)\n####", "remove": "<<.*?>>"},
        "answer": {"from": "answer", "pattern": "#### *(.+)"},
    }
    assert task(rows=rows, fields=fields).items[0].fields == {
        "question": "How many?",
        "rationale": "He has 2+3 = 5.",
        "answer": "5",
    }


def test_numbers_booleans_and_keys_inside_objects_become_text(task: TaskOf) -> None:
    rows = [{"q": {"text": "Is it?"}, "n": 2.5, "yes": True}]
    fields = {"question": "q.text", "rationale": "n", "answer": {"from": "yes", "map": {"true": "yes", "false": "no"}}}
    assert dict(task(rows=rows, fields=fields, check="text").items[0].fields) == {
        "question": "Is it?",
        "rationale": "2.5",
        "answer": "yes",
    }


@pytest.mark.parametrize(
    ("is_", "answer"), [("text", "snow"), ("label", "B"), ("index", 1)], ids=["text", "label", "index"]
)
def test_the_answer_is_an_options_text_label_or_index(task: TaskOf, is_: str, answer: object) -> None:
    rows = [{"question": "White?", "choices": ["rain", "snow"], "answer": answer}]
    read = task(
        rows=rows,
        fields={"question": "question", "answer": {"from": "answer", "is": is_}},
        options={"from": "choices"},
        check=None,
        cot=None,
    )
    assert (read.items[0].options, read.items[0].choice, read.items[0].answer) == (("rain", "snow"), 1, "snow")
    assert read.check == "option"


def test_options_are_cut_out_of_a_text_with_their_labels(task: TaskOf) -> None:
    rows = [{"question": "White?\n(P) rain\n(Q) snow", "answer": "(Q)"}]
    read = task(
        rows=rows,
        fields={
            "question": {"from": "question", "pattern": r"\A(.*)\n"},
            "answer": {"from": "answer", "pattern": r"\((.)\)", "is": "label"},
        },
        options={"from": "question", "each": r"(?m)^\((?P<label>.)\) (?P<text>.*)$"},
        check=None,
        cot=None,
    )
    assert (read.items[0].options, read.items[0].answer) == (("rain", "snow"), "snow")


def test_more_than_26_options_are_numbered(task: TaskOf) -> None:
    rows = [{"question": "?", "choices": [f"c{n}" for n in range(30)], "answer": "30"}]
    fields = {"question": "question", "answer": {"from": "answer", "is": "label"}}
    assert task(rows=rows, fields=fields, options={"from": "choices"}, check=None, cot=None).items[0].choice == 29


def test_rows_without_an_answer_are_counted_and_nothing_else_is_lost(task: TaskOf) -> None:
    rows = [{"question": "a", "why": "b", "sum": ""}, {"question": " ", "why": "b", "sum": 1}]
    read = task(rows=[*rows, {"question": "a", "why": "b", "sum": 2}])
    assert (read.read, len(read.items), dict(read.dropped)) == (3, 1, {"empty_answer": 1, "empty_question": 1})
    assert read.items[0].number == 3


def test_a_null_and_a_key_that_a_row_lacks_are_empty_fields(task: TaskOf) -> None:
    """The key must be in some row. A pattern and a map are for texts: an empty one is empty behind them too."""
    rows = [{"question": "a", "why": "b", "sum": None}, {"question": "c", "sum": 1}, {"question": "d", "why": "e"}]
    fields = {
        "question": "question",
        "rationale": {"from": "why", "pattern": "[a-z]"},
        "answer": {"from": "sum", "map": {"1": "one"}},
    }
    read = task(rows=[*rows, {"question": "f", "why": "g", "sum": 1}], fields=fields)
    assert dict(read.dropped) == {"empty_answer": 2, "empty_rationale": 1}
    assert [item.fields for item in read.items] == [{"question": "f", "rationale": "g", "answer": "one"}]


def test_a_row_without_its_options_is_dropped(task: TaskOf) -> None:
    rows = [{"q": "a", "of": ["x", "y"], "a": "y"}, {"q": "b", "of": None, "a": "x"}, {"q": "c", "a": "x"}]
    changes = {"fields": {"question": "q", "answer": "a"}, "options": {"from": "of"}, "check": None, "cot": None}
    read = task(rows=rows, **changes)
    assert (read.read, len(read.items), dict(read.dropped)) == (3, 1, {"empty_options": 2})
    with pytest.raises(DataError, match="no 'of' for field options; the row has: q, a"):
        task(rows=rows[2:], **changes)


# --- files ---


def test_an_empty_cell_drops_its_row_in_every_kind_of_file(declare: Declare, tmp_path: Path) -> None:
    for suffix, mark in ((".tsv", "\t"), (".csv", ",")):
        lines = (["question", "why", "sum"], ["a", "b", "1"], ["c", "d", ""])
        (tmp_path / f"t{suffix}").write_text("".join(mark.join(line) + "\n" for line in lines))
        (read,) = load_tasks([str(declare(file=f"t{suffix}", rows=None))]).tasks
        assert (read.read, dict(read.dropped)) == (2, {"empty_answer": 1})


def test_a_tsv_with_a_header_is_read_as_anywhere_else(declare: Declare, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('question\tsum\twhy\n"Who ""is""\nthat?"\tC:\\new\tso\n')
    ((item,), tsv) = (load_tasks([str(declare(file="t.tsv", check="text"))]).tasks[0].items, tmp_path / "t.tsv")
    assert (item.fields["question"], item.answer) == ('Who "is"\nthat?', "C:\\new")
    tsv.rename(tmp_path / "t.csv")
    assert problem(declare(file="t.csv", columns=["question", "sum", "why"]), DataError) == (
        f"{tmp_path}/t.csv: columns in a task name those of a .tsv file; leave them out"
    )


def test_a_tsv_with_columns_has_a_line_break_for_backslash_n_and_no_quoting(declare: Declare, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text('"Who?\\nWho else?"\t"me\twhy\r\n\nB\tyou\tso\n')
    path = declare(file="t.tsv", columns=["question", "sum", "why"], check="text")
    first, second = load_tasks([str(path)]).tasks[0].items
    assert (first.number, first.fields["question"], first.answer) == (1, '"Who?\nWho else?"', '"me')
    assert (second.number, second.answer) == (3, "you")


def test_a_tsv_without_named_columns_names_them_in_its_first_line(declare: Declare, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("question\tsum\twhy\nA\t1\tb\n")
    assert [item.number for item in load_tasks([str(declare(file="t.tsv"))]).tasks[0].items] == [2]


def test_a_file_is_looked_for_in_the_folder_and_its_subfolders(declare: Declare, tmp_path: Path) -> None:
    path = declare()
    inner = tmp_path / "data" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "sums.jsonl").rename(inner / "sums.jsonl")
    assert len(load_tasks([str(path)], tmp_path / "data").tasks[0].items) == 10


def test_each_file_of_a_folder_is_a_task_and_one_without_rows_is_reported(tmp_path: Path) -> None:
    row = '{"prompt": "Hello?\\n", "completion": "Yes.<|endoftext|>"}\n'
    (tmp_path / "imdb_a.jsonl").write_text(row)
    (tmp_path / "xsum_b.jsonl").write_text(row)
    (tmp_path / "trec_empty.jsonl").write_text("")
    (tmp_path / "trec_blank.jsonl").write_text('{"prompt": "Hello?", "completion": "<|endoftext|>"}\n')
    found = load_tasks(["builtin:t0"], tmp_path)
    assert [(task.name, task.cluster, task.family) for task in found.tasks] == [
        ("t0/imdb_a", "sentiment", "classification"),
        ("t0/xsum_b", "summarisation", "summarisation"),
    ]
    assert found.tasks[0].items[0].fields == {"prompt": "Hello?", "answer": "Yes."}
    assert found.unusable == {"t0/trec_blank": "1 read, 1 empty_answer", "t0/trec_empty": "0 read"}


def test_shared_phrasings_with_rationales_are_for_tasks_that_have_them(task: TaskOf) -> None:
    shared: dict[str, Any] = {"direct": None, "cot": None, "phrasings": "builtin:arithmetic"}
    without = {"question": "question", "answer": "sum"}
    assert task(**shared).kinds == ("direct", "cot")
    assert task("other", fields=without, **shared).kinds == ("direct",)


def test_phrasings_may_come_from_a_file_beside_the_task(task: TaskOf, tmp_path: Path) -> None:
    (tmp_path / "ways.yaml").write_text("direct: [{input: 'Say: {question}', target: '{answer}'}]\n")
    read = task(phrasings="ways.yaml", cot=None)
    assert [way.input.literals[0] for way in read.ways("direct")] == ["", "Say: "]
    assert [way.number for way in read.ways("direct")] == [0, 1]


def test_the_digest_follows_what_decides_the_prompts(task: TaskOf, declare: Declare, tmp_path: Path) -> None:
    digest = task().digest
    assert task(about="Sums.").digest == digest
    assert task(direct=[{"input": "Say: {question}", "target": "{answer}"}]).digest != digest
    declare()
    data = (tmp_path / "sums.jsonl").read_text()
    (tmp_path / "sums.jsonl").write_text(data.replace("What is 3", "What was 3"))
    assert load_tasks([str(tmp_path / "sums.yaml")]).tasks[0].digest != digest


# --- what is wrong ---


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"clustre": "x"}, "unknown key clustre; did you mean cluster?"),
        (
            {"direct": [{"input": "{question}", "targt": "{answer}"}]},
            "unknown key direct.0.targt; did you mean direct.0.target?",
        ),
        (
            {"fields": {"answer": {"from": "sum", "patern": "x"}}},
            "unknown key fields.answer.patern; did you mean fields.answer.pattern?",
        ),
        ({"name": "a b"}, "name: String should match pattern"),
        ({"direct": None, "cot": None}, "no phrasings; write some under direct or cot"),
        ({"fields": {"question": "question"}}, "fields lacks answer"),
        ({"file": None}, "give one of file, files and hub"),
        ({"hub": "a/b"}, "give one of file, files and hub"),
        ({"check": "option"}, "check: option needs options"),
        ({"options": []}, "fixed is empty"),
        ({"options": {"from": "c", "fixed": ["a"]}}, "give either fixed or from"),
        ({"options": {"from": "c", "each": "(.*)"}}, "each lacks a group named text"),
        ({"options": {"fixed": [True, False]}}, "put it in quotes"),
        ({"fields": {"answer": {"from": "sum", "pattern": "("}}}, "not a regular expression"),
        (
            {"direct": [{"input": "{question}"}]},
            "direct.0.target is missing; add 'target: ...' (what is answered",
        ),
        ({"direct": [{"input": "{question}", "target": "yes"}]}, "direct.0.target holds no field"),
        ({"direct": [{"input": "{qestion}", "target": "{answer}"}]}, "no field {qestion}; did you mean {question}?"),
        ({"phrasings": "builtin:arithmetics"}, "there is no built-in phrasings builtin:arithmetics; did you mean"),
        ({"phrasings": "builtin:summarisation"}, "the task has no field {text}"),
    ],
)
def test_a_wrong_declaration_is_one_line_with_the_key(declare: Declare, changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_tasks([str(declare(**changes))])
    assert any(expected in line and ".yaml: " in line for line in str(caught.value).splitlines()) or (
        expected in str(caught.value) and "phrasings" in changes
    )


def test_broken_yaml_is_one_line_with_its_line_number(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("name: x\nfields: {answer: [}\n")
    assert problem(path, RecipeError).startswith(f"{path}:2: ")


def test_a_task_file_that_is_not_there_is_suggested_its_neighbour(declare: Declare, tmp_path: Path) -> None:
    declare()
    expected = f"task {tmp_path / 'sum.yaml'} does not exist; did you mean {tmp_path / 'sums.yaml'}?"
    assert problem(tmp_path / "sum.yaml", RecipeError) == expected


def test_an_unknown_built_in_task_is_suggested_a_known_one() -> None:
    assert problem("builtin:gsm9k", RecipeError) == (
        "there is no built-in task builtin:gsm9k; did you mean builtin:gsm8k?"
    )


def test_a_built_in_task_without_a_folder_says_which_file_it_wants() -> None:
    assert problem("builtin:gsm8k", RecipeError).endswith(
        "file gsm8k_train.jsonl is not part of the package; set folder to where it is"
    )


def test_a_folder_without_the_file_is_an_error_that_names_both(tmp_path: Path) -> None:
    text = problem("builtin:gsm8k", DataError, tmp_path)
    assert text.endswith(f"file gsm8k_train.jsonl is not in {tmp_path}; set folder to where it is")
    assert f"no files *.jsonl in {tmp_path}" in problem("builtin:t0", DataError, tmp_path)


def test_a_file_that_is_there_twice_is_not_guessed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "gsm8k_train.jsonl").write_text("{}")
    assert "is there more than once" in problem("builtin:gsm8k", DataError, tmp_path)


@pytest.mark.parametrize(
    ("rows", "changes", "expected"),
    [
        ([{"question": "a", "why": "b"}], {}, "sums.jsonl:1: no 'sum' for field answer; the row has: question, why"),
        ([{"question": "a", "why": "b", "summ": 1}], {}, "no 'sum' for field answer; did you mean summ?"),
        ([{"question": ["a"], "why": "b", "sum": 1}], {}, "sums.jsonl:1: 'question' is a list, not a text"),
        ([{"question": None, "why": "b", "sum": 1}], {}, "task sums has no usable rows (2 read, 2 empty_question)"),
        ([], {}, "task sums has no usable rows (0 read)"),
        ([{"question": "a", "why": "b", "sum": ""}], {}, "task sums has no usable rows (2 read, 2 empty_answer)"),
        (
            [{"question": "a", "why": "b", "sum": "7"}],
            {"fields": {"question": "question", "rationale": "why", "answer": {"from": "sum", "pattern": "#(.*)"}}},
            "sums.jsonl:1: fields.answer: pattern '#(.*)' is not in 'sum'",
        ),
        (
            [{"question": "a", "why": "b", "sum": "7"}],
            {"fields": {"question": "question", "rationale": "why", "answer": {"from": "sum", "map": {"1": "x"}}}},
            "sums.jsonl:1: fields.answer: map has no entry for '7'; it has: 1",
        ),
        (
            [{"question": "a", "why": "b", "sum": "7"}],
            {"options": ["1", "2"]},
            "sums.jsonl:1: the answer '7' is none of the options' texts: 1, 2",
        ),
        (
            [{"question": "a", "why": "b", "sum": "7"}],
            {"options": {"from": "why"}},
            "sums.jsonl:1: 'why' is a text, not a list; say in options.each how to split it",
        ),
    ],
)
def test_wrong_data_is_one_line_with_file_and_row(
    declare: Declare, rows: list[dict[str, Any]], changes: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError) as caught:
        load_tasks([str(declare(rows=rows * 2, **changes))])
    assert expected in str(caught.value).splitlines()[0]


def test_rows_that_cannot_be_read_are_all_counted_and_on_request_dropped(declare: Declare, tmp_path: Path) -> None:
    path = declare()
    file = tmp_path / "sums.jsonl"
    good = file.read_text().splitlines()
    file.write_text("\n".join([*good, "{", '{"question": ["a"], "why": "b", "sum": 1}']))
    with pytest.raises(DataError) as caught:
        load_tasks([str(path)])
    first, second = str(caught.value).splitlines()
    assert first.startswith(f"{file}:11: not valid JSON (")
    assert first.endswith("(the first of 2 bad rows of 12; on_bad_row: drop leaves them out)")
    assert second.startswith(f"{file}:12: 'question' is a list, not a text")
    (read,) = load_tasks([str(path)], on_bad_row="drop").tasks
    assert (read.read, len(read.items), read.dropped["invalid_json"]) == (12, 10, 1)
    assert sum(read.dropped.values()) == 2


def test_a_declared_field_must_be_in_the_data_even_if_no_phrasing_uses_it(declare: Declare) -> None:
    path = declare(fields={"question": "question", "rationale": "why", "answer": "sum", "extra": "nowhere"})
    assert "no 'nowhere' for field extra" in problem(path, DataError)


def test_a_tsv_row_with_too_few_columns_is_named(declare: Declare, tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("a\tb\tc\na\tb\n")
    path = declare(file="t.tsv", columns=["question", "why", "sum"])
    assert f"{tmp_path / 't.tsv'}:2: 2 columns where 3 are named (question, why, sum)" in problem(path, DataError)


def test_two_tasks_of_one_name_are_an_error(declare: Declare, tmp_path: Path) -> None:
    first = declare()
    second = tmp_path / "copy.yaml"
    second.write_text(first.read_text())
    with pytest.raises(RecipeError) as caught:
        load_tasks([str(first), str(second)])
    assert str(caught.value) == f"{second}: name: there is already a task sums ({first}); rename one"
