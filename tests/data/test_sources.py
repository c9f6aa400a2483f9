"""Each way to write examples down, each flaw of a row, and the account of what became of every row."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tickets
from hypothesis import given
from hypothesis import strategies as st

import spintune
from spintune.data.file_rows import FileRow, instruction_prompt
from spintune.data.formats import FORMATS, Conversation, Format, register_format
from spintune.data.sources import Collection, Source, SourceResult, read_source, read_sources
from spintune.errors import DataError, RecipeError
from spintune.progress import Silent
from spintune.recipe import parse_recipe
from spintune.records import Message

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
ROW = {"instruction": "Add 2 and 3.", "output": "5"}


def write_lines(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(*numbers: int) -> list[dict[str, str]]:
    return [{"instruction": f"Say {number}.", "output": str(number)} for number in numbers]


def read(path: Path | str, **options: Any) -> SourceResult:
    return read_source(Source(str(path), **options))


def messages(path: Path, **options: Any) -> list[list[tuple[str, str]]]:
    return [[(m.role, m.content) for m in example.messages] for example in read(path, **options).examples]


def error(path: Path | str, **options: Any) -> str:
    with pytest.raises((DataError, RecipeError)) as caught:
        read(path, **options)
    text = str(caught.value)
    assert "\n" not in text
    return text


def balanced(account: SourceResult | Collection) -> bool:
    return len(account.examples) + account.dropped.total() == account.read + account.repeated


# --- formats ---

CONVERSATION = [("user", "Hi"), ("assistant", "Hello")]


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("alpaca", {"instruction": "Hi", "input": "", "output": "Hello"}, CONVERSATION),
        ("alpaca", {"instruction": "Hi", "input": "<noinput>", "output": "Hello"}, CONVERSATION),
        ("alpaca", {"instruction": "Hi", "input": None, "output": "Hello"}, CONVERSATION),
        ("alpaca", {"instruction": "Hi", "input": "x ", "output": "Hello"}, [("user", "Hi\n\nx "), CONVERSATION[1]]),
        ("chat", {"prompt": "Hi", "messages": [{"role": r, "content": c} for r, c in CONVERSATION]}, CONVERSATION),
        (
            "sharegpt",
            {"conversations": [{"from": r, "value": r} for r in ("system", "human", "bard", "user", "human", "gpt")]},
            [
                ("system", "system"),
                ("user", "human"),
                ("assistant", "bard"),
                ("user", "user"),
                ("user", "human"),
                ("assistant", "gpt"),
            ],
        ),
        ("prompt", {"prompt": "Hi", "completion": "Hello"}, CONVERSATION),
        ("prompt", {"prompt": "Hi", "response": "Hello"}, CONVERSATION),
        ("qa", {"question": "Hi", "answer": "Hello"}, CONVERSATION),
        ("seeds", {"instruction": "Hi", "instances": [{"input": "", "output": "Hello"}]}, CONVERSATION),
    ],
)
def test_a_format_is_recognised_and_named_with_the_same_result(
    tmp_path: Path, name: str, row: dict[str, Any], expected: list[tuple[str, str]]
) -> None:
    path = write_lines(tmp_path, [row])
    assert read(path).format == name
    assert messages(path) == messages(path, format=name) == [expected]


def test_a_seed_task_gives_one_example_an_instance(tmp_path: Path) -> None:
    instances = [{"input": "2 3", "output": "5"}, {"input": "4 5", "output": "9"}]
    path = write_lines(tmp_path, [{"instruction": "Add.", "instances": instances}])
    assert [prompt[1] for prompt, _ in messages(path)] == ["Add.\n\n2 3", "Add.\n\n4 5"]
    assert read(path).read == 2


def test_a_format_is_recognised_behind_a_first_row_that_lacks_its_answer(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{"instruction": "Add."}, ROW])
    assert error(path) == f"{path}:1: a row without an answer ('output' is missing); fill it in or delete the row"


@pytest.mark.parametrize(
    ("completion", "kept"),
    [
        ("Business<|endoftext|>", "Business"),
        ("a<|endoftext|>b", "a<|endoftext|>b"),
        ("Business<|endoftext|>\n", "Business<|endoftext|>\n"),
    ],
)
def test_only_an_end_of_text_that_ends_a_completion_is_removed(tmp_path: Path, completion: str, kept: str) -> None:
    assert read(write_lines(tmp_path, [{"prompt": "Hi", "completion": completion}])).examples[0].answer == kept


def test_text_is_kept_verbatim(tmp_path: Path) -> None:
    question, answer = " 48/2?\r\n\u2028", "48/2 = <<48/2=24>>24\n#### 24 "
    path = write_lines(tmp_path, [{"question": question, "answer": answer}])
    assert read(path).examples[0].messages == (Message("user", question), Message("assistant", answer))


def test_a_line_ends_at_its_newline_alone_and_may_be_a_megabyte_long(tmp_path: Path) -> None:
    rows = [{"instruction": "a\u2028b\u2029c\x85d", "output": "e"}, {"instruction": "x" * 2**20, "output": "e\u2028"}]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    found = [example.messages for example in read(path).examples]
    assert found == [(Message("user", row["instruction"]), Message("assistant", row["output"])) for row in rows]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_of_json_is_an_error_with_its_place(tmp_path: Path, number: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(numbered(1)[0]) + f'\n{{"instruction": "a", "output": "b", "score": {number}}}\n')
    with pytest.raises(DataError, match=r"rows.jsonl:2: not valid JSON .* column 4\d") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_an_error_with_a_suggestion(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [ROW])
    assert error(path, format="alpacca") == "there is no data format 'alpacca'; did you mean alpaca?"


def test_an_unknown_format_like_no_other_is_an_error_with_all_names(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [ROW])
    expected = (
        "there is no data format 'xyz'; use one of chat, sharegpt, seeds, alpaca, prompt, qa, spin, oasst, preference"
    )
    assert error(path, format="xyz") == expected


def _dolly(row: FileRow) -> Iterator[Conversation]:
    question = instruction_prompt(row.text("instruction", "a prompt"), row.text("context", "a context"))
    yield Message("user", question), Message("assistant", row.text("response", "an answer"))


@pytest.fixture
def dolly() -> Iterator[Format]:
    format = Format("dolly", (("instruction", "context", "response"),), _dolly)
    register_format(format)
    yield format
    FORMATS.unregister("dolly")


def test_a_registered_format_is_recognized_and_may_be_named(tmp_path: Path, dolly: Format) -> None:
    row = {"instruction": "Add.", "context": "2 3", "response": "5", "output": "also Alpaca's keys"}
    path = write_lines(tmp_path, [row])
    assert read(path).format == "dolly"  # a user's format comes before the built-in ones
    assert messages(path) == messages(path, format="dolly") == [[("user", "Add.\n\n2 3"), ("assistant", "5")]]
    assert read(path, format="alpaca").examples[0].answer == "also Alpaca's keys"
    recipe = parse_recipe({"model": "m", "out": "o", "data": {"train": {"path": str(path), "format": "dolly"}}}, "test")
    assert recipe.data is not None
    assert recipe.data.train[0].format == "dolly"


def test_a_format_that_a_recipe_names_must_exist(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"data.train.0.format: there is no data format 'doly'; use one of chat, "):
        parse_recipe({"model": "m", "out": "o", "data": {"train": {"path": "x", "format": "doly"}}}, "test")


def test_a_name_is_given_to_one_format(dolly: Format) -> None:
    register_format(dolly)
    with pytest.raises(RecipeError, match="there is a data format named 'dolly' already"):
        register_format(Format("dolly", (("q",),), _dolly))


def test_rows_that_fit_no_format_are_an_error_that_lists_keys_and_formats(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{"title": "x"}, {"title": "y", "label": 1}])
    text = error(path)
    assert text.startswith(
        f"{path}: the rows fit no known format; keys found: title, label; name them with columns: "
        "{prompt: ..., response: ...}, or rename them to one of: chat (messages); sharegpt (conversations or "
    )
    assert "; alpaca (instruction, output or instruction, response); prompt (prompt, completion or " in text


# --- containers ---


def test_json_lists_wrapped_lists_and_lines_hold_the_same_rows(tmp_path: Path) -> None:
    rows = numbered(1, 2, 3)
    texts = {
        "lines.jsonl": "\n".join(map(json.dumps, rows)),
        "lines.json": "\n".join(map(json.dumps, rows)),
        "list.json": json.dumps(rows, indent=1),
        "list.jsonl": json.dumps(rows),
        "wrapped.json": json.dumps({"version": "1", "data": rows}, indent=1),
        "wrapped.jsonl": json.dumps({"data": rows}),
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert {tuple(e.answer for e in read(tmp_path / name).examples) for name in texts} == {("1", "2", "3")}


@pytest.mark.parametrize("name", ["one.json", "one.jsonl"])
def test_one_chat_object_is_a_row_and_not_a_wrapped_list(tmp_path: Path, name: str) -> None:
    row = {"messages": [{"role": r, "content": c} for r, c in CONVERSATION]}
    assert messages(write_lines(tmp_path, [row], name)) == [CONVERSATION]


def test_a_parquet_file_holds_rows_and_nulls(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([{**ROW, "input": None}, {**ROW, "input": "x"}]), path)
    assert [example.source for example in read(path).examples] == [f"{path}:1", f"{path}:2"]
    parquet.write_table(pyarrow.Table.from_pylist([ROW, {"instruction": "Add.", "output": None}]), path)
    assert error(path) == f"{path}: row 2: a row without an answer ('output' is null); fill it in or delete the row"


def test_a_parquet_file_of_chats_is_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    row = {"messages": [{"role": r, "content": c} for r, c in CONVERSATION]}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert messages(tmp_path / "rows.parquet") == [CONVERSATION]


def test_a_broken_parquet_file_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"PAR1 and no more")
    assert error(path).startswith(f"{path}: not a readable parquet file (")


def test_bom_crlf_and_blank_lines_are_read_and_the_lines_counted(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    first, second = (json.dumps(row).encode() for row in numbered(1, 2))
    path.write_bytes(b"\xef\xbb\xbf\r\n" + first + b"\r\n\r\n  \r\n" + second + b"\r\n")
    result = read(path)
    assert [example.source for example in result.examples] == [f"{path}:2", f"{path}:5"]
    assert result.read == 2


def test_builtin_tickets_are_what_the_script_draws_and_each_is_right(capsys: pytest.CaptureFixture[str]) -> None:
    tickets.main()
    path = Path(spintune.__file__).parent / "data/builtin/tickets.jsonl"
    assert capsys.readouterr().out == path.read_text()
    examples = read("builtin:tickets").examples
    assert len({example.prompt for example in examples}) == len(examples) == 400
    for example in examples:
        message, ticket = example.prompt[-1].content, json.loads(example.answer)
        assert str(ticket["order"]) in message
        assert ticket["product"] in message


def test_builtin_seeds_are_read(tmp_path: Path) -> None:
    try:
        result = read("builtin:seeds")
    except DataError as missing:
        pytest.skip(str(missing))
    assert result.format == "seeds"
    assert result.examples
    assert balanced(result)
    assert result.examples[0].source == "builtin:seeds:1"


def test_an_unknown_builtin_is_an_error_that_lists_those_that_exist() -> None:
    assert error("builtin:sedes").startswith("there is no built-in data builtin:sedes; use one of: ")


class Counting(Silent):
    """Progress that adds up what it is told."""

    total = done = 0.0

    @contextlib.contextmanager
    def task(self, name: str, total: float, unit: str) -> Iterator[Counting]:
        self.total += total
        yield self

    def advance(self, amount: float = 1, **facts: Any) -> None:
        self.done += amount


def test_progress_counts_every_row(tmp_path: Path) -> None:
    progress = Counting()
    read_source(Source(str(write_lines(tmp_path, numbered(*range(2345))))), progress)
    assert progress.done == progress.total == 2345


# --- sources that are not there or cannot be read ---


def test_a_missing_file_is_an_error_with_the_closest_name(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [ROW], "alpaca.jsonl")
    missing = tmp_path / "alpacca.jsonl"
    assert error(missing) == f"data file {missing} does not exist; did you mean {path}?"


def test_a_missing_file_like_no_other_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "rows.jsonl"
    assert error(missing) == f"data file {missing} does not exist; check the path"


def test_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    missing = tmp_path / "no" / "rows.jsonl"
    assert error(missing) == (
        f"data file {missing} does not exist; its folder {missing.parent} does not exist either; check the path"
    )


@pytest.mark.parametrize("path", ["nowhere/train.jsonl", "nowhere/train.csv"])
def test_a_missing_file_that_looks_like_a_hub_id_is_a_missing_file(path: str) -> None:
    assert error(path).startswith(f"data file {path} does not exist; ")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [ROW])
    path.chmod(0)
    assert error(path) == f"{path}: cannot be read (Permission denied); check its permissions"


@pytest.mark.slow
def test_a_hub_out_of_reach_is_one_error_line_and_no_torch() -> None:
    pytest.importorskip("datasets")
    code = (
        "import sys\n"
        "from spintune.data.sources import Source, read_source\n"
        "from spintune.errors import DataError\n"
        "assert not {'torch', 'datasets', 'pyarrow'} & set(sys.modules)\n"
        "try: read_source(Source('nobody/nothing@v1', split='test'))\n"
        "except DataError as error: print(error)\n"
    )
    # in its own process, because the client reads the offline switch when it is imported
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    start = (
        "nobody/nothing@v1: there is no such file, no earlier download of the data set, and the hub cannot be asked "
        "(HF_HUB_OFFLINE is set)"
    )
    assert done.stdout.startswith(start)
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize("content", ["", "\n \r\n", "[]", '{"data": []}', "\ufeff"])
@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_an_empty_file_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert error(path) == f"{path}: empty; give a file with at least one row"


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("rows.jsonl", '{"instruction": "a", "output": "b"}\n{"instruction": \n', 2),
        ("rows.jsonl", '{"instruction": \n{"instruction": "a", "output": "b"}\n', 1),
        ("rows.json", '[\n{"instruction": "a",\n "output": b}]', 3),
        ("rows.jsonl", '[\n{"instruction": "a",\n "output": b}]', 3),
    ],
)
def test_invalid_json_is_an_error_with_its_line(tmp_path: Path, name: str, content: str, line: int) -> None:
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    text = error(path)
    assert text.startswith(f"{path}:{line}: not valid JSON (")
    assert text.endswith("); fix or delete the row")


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
def test_invalid_utf8_is_an_error_with_its_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(json.dumps(ROW).encode() + b'\n{"instruction": "caf\xe9", "output": "b"}\n')
    assert error(path) == f"{path}:2: not UTF-8 (byte 0xe9); save the file as UTF-8"


def test_several_lists_in_one_file_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps({"train": [ROW], "test": [ROW]}), encoding="utf-8")
    assert error(path) == f"{path}: holds several lists (train, test); put each in a file of its own"


def test_a_document_that_is_no_list_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text("42", encoding="utf-8")
    assert error(path) == f"{path}: holds a number, not rows; give a list of objects"


# --- broken rows ---

USER = {"role": "user", "content": "Hi"}
ASSISTANT = {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"instruction": "a"}, "a row without an answer ('output' is missing); fill it in or delete the row"),
        ({"output": "a"}, "a row without a prompt ('instruction' is missing); fill it in or delete the row"),
        ({**ROW, "output": None}, "a row without an answer ('output' is null); fill it in or delete the row"),
        ({**ROW, "output": 5}, "'output' is a number, not a text; quote it"),
        ({**ROW, "output": 0.5}, "'output' is a number, not a text; quote it"),
        ({**ROW, "output": True}, "'output' is a boolean, not a text; quote it"),
        ({**ROW, "output": ["5"]}, "'output' is a list, not a text; give it as one text"),
        ({**ROW, "input": {}}, "'input' is an object, not a text; give it as one text"),
        ([1], "the row is a list, not an object with keys; fix or delete the row"),
        (None, "the row is null, not an object with keys; fix or delete the row"),
    ],
)
def test_a_broken_row_is_an_error_with_its_line_and_what_to_do(tmp_path: Path, row: Any, expected: str) -> None:
    path = write_lines(tmp_path, [ROW, row], "rows.jsonl")
    assert error(path) == f"{path}:2: {expected}"


def test_a_broken_row_of_a_json_list_is_an_error_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW, 7], indent=1), encoding="utf-8")
    assert error(path) == f"{path}: row 2: the row is a number, not an object with keys; fix or delete the row"


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        ([], "a row without an answer ('messages' is empty); fill it in or delete the row"),
        (None, "a row without an answer ('messages' is null); fill it in or delete the row"),
        ("Hi", "'messages' is a text, not a list; give it as a list of objects"),
        (["Hi"], "messages 1: the row is a text, not an object with keys; fix or delete the row"),
        ([{"role": "king", "content": ""}], "messages 1: unknown role 'king'; use system, user, assistant, tool"),
        ([USER, {"role": "assistant"}], "messages 2: a row without a text ('content' is missing); fill it in"),
        ([USER, {"content": "Hello"}], "messages 2: a row without a role ('role' is missing); fill it in"),
        ([USER, {**ASSISTANT, "content": 5}], "messages 2: 'content' is a number, not a text; quote it"),
        ([ASSISTANT], "a row without a prompt (no user turn); add one or delete the row"),
        ([USER], "a row without an answer (its last turn is the user's); end it with an assistant turn or delete"),
    ],
)
def test_a_broken_chat_is_an_error_with_its_line_and_what_to_do(tmp_path: Path, turns: Any, expected: str) -> None:
    path = write_lines(tmp_path, [{"messages": turns}])
    assert error(path).startswith(f"{path}:1: {expected}")


def test_a_seed_task_without_instances_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{"instruction": "Add.", "instances": []}])
    assert error(path) == f"{path}:1: a row without an answer ('instances' is empty); fill it in or delete the row"


# --- counted drops ---


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"instruction": "a", "output": ""}, "empty_answer"),
        ({"instruction": "a", "output": " \n"}, "empty_answer"),
        ({"instruction": " ", "output": "b"}, "empty_prompt"),
        ({"instruction": "", "input": "x", "output": "b"}, "empty_prompt"),
        ({"instruction": "", "output": ""}, "empty_prompt"),
    ],
)
def test_an_empty_side_is_a_counted_drop(tmp_path: Path, row: dict[str, str], reason: str) -> None:
    result = read(write_lines(tmp_path, [ROW, row]))
    assert (len(result.examples), result.read, result.dropped) == (1, 2, Counter({reason: 1}))


def test_a_completion_that_is_only_the_stop_token_is_an_empty_answer(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{"prompt": "Hi", "completion": "<|endoftext|>"}])
    assert read(path).dropped == {"empty_answer": 1}


def test_an_empty_system_message_is_kept(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{"messages": [{"role": "system", "content": ""}, USER, ASSISTANT]}])
    assert len(read(path).examples) == 1


def test_a_repeated_row_is_a_duplicate_and_the_first_stays(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [ROW, *numbered(1), ROW])
    result = read(path)
    assert [example.source for example in result.examples] == [f"{path}:1", f"{path}:2"]
    assert result.dropped == {"duplicate": 1}


def test_a_duplicate_is_found_across_sources_and_formats(tmp_path: Path) -> None:
    first = write_lines(tmp_path, [ROW], "first.jsonl")
    second = write_lines(
        tmp_path, [{"question": ROW["instruction"], "answer": "5"}, {"question": "a", "answer": "b"}], "second.jsonl"
    )
    collection = read_sources([Source(str(first)), Source(str(second))], seed=7)
    assert [example.source for example in collection.examples] == [f"{first}:1", f"{second}:2"]
    assert [dict(result.dropped) for result in collection.sources] == [{}, {"duplicate": 1}]


def test_the_limit_takes_the_first_distinct_rows(tmp_path: Path) -> None:
    result = read(write_lines(tmp_path, numbered(1, 1, 2, 1, 3, 4)), limit=2)
    assert [example.answer for example in result.examples] == ["1", "2"]
    assert result.dropped == {"duplicate": 2, "over_limit": 2}


# --- weights ---


@pytest.mark.parametrize("weight", [0.25, 0.5, 1.0, 1.5, 3.0, 3.3])
def test_a_weight_gives_that_many_rows_with_every_row_accounted_for(tmp_path: Path, weight: float) -> None:
    path = write_lines(tmp_path, numbered(*range(20)))
    collection = read_sources([Source(str(path), weight=weight)], seed=7)
    assert len(collection.examples) == round(weight * 20)
    assert collection.dropped == ({"weight": 20 - round(weight * 20)} if weight < 1 else {})
    assert collection.repeated == max(0, round(weight * 20) - 20)
    assert balanced(collection)


def test_a_repeated_row_comes_equally_often_or_once_more(tmp_path: Path) -> None:
    path = write_lines(tmp_path, numbered(*range(20)))
    examples = read_sources([Source(str(path), weight=2.4)], seed=7).examples
    assert Counter(Counter(example.id for example in examples).values()) == {2: 12, 3: 8}


def test_a_sample_depends_on_the_seed_alone_and_keeps_the_order(tmp_path: Path) -> None:
    source = Source(str(write_lines(tmp_path, numbered(*range(50)))), weight=0.3)
    first, again, other = ([int(e.answer) for e in read_sources([source], seed).examples] for seed in (1, 1, 2))
    assert first == again == sorted(first)
    assert first != other


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_above_zero_is_an_error(tmp_path: Path, weight: float) -> None:
    path = write_lines(tmp_path, [ROW])
    assert error(path, weight=weight) == f"{path}: a weight of {weight} cannot be used; give a number above 0"


def test_a_limit_below_one_is_an_error(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [ROW])
    assert error(path, limit=0) == f"{path}: a limit of 0 cannot be used; give 1 or more, or leave it out"


def test_sources_that_leave_nothing_are_an_error_with_the_reasons(tmp_path: Path) -> None:
    path = write_lines(tmp_path, [{**ROW, "output": ""}, {**ROW, "instruction": ""}])
    with pytest.raises((DataError, RecipeError)) as caught:
        read_sources([Source(str(path))], seed=7)
    assert str(caught.value) == (
        f"{path}: no examples are left (1 empty_answer, 1 empty_prompt); give data with answers"
    )


# --- any rows, real rows ---

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=6)
ALPACA = st.fixed_dictionaries({"instruction": TEXT, "output": TEXT}, optional={"input": st.none() | TEXT})


@given(
    rows=st.lists(ALPACA, min_size=1, max_size=12),
    weight=st.floats(0.1, 3.0),
    limit=st.none() | st.integers(1, 5),
)
def test_every_row_of_any_alpaca_file_is_kept_or_counted(
    rows: list[dict[str, str]], weight: float, limit: int | None
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Source(str(write_lines(Path(folder), rows)), weight=weight, limit=limit)
        result = read_source(source)
        assert result.read == len(rows)
        assert result.repeated == 0
        assert balanced(result)
        if round(weight * len(result.examples)) > 0:
            collection = read_sources([source], seed=7)
            assert collection.read == len(rows)
            assert balanced(collection)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not beside the repository")
@pytest.mark.parametrize(
    ("name", "format_", "rows"),
    [
        ("rasbt_instructions_1100.json", "alpaca", 1_100),
        ("gsm8k_train.jsonl", "qa", 7_473),
        ("self_instruct_seed_tasks.jsonl", "seeds", 175),
        ("t0_tasks/ag_news_classify.jsonl", "prompt", 200),
    ],
)
def test_real_files_are_read_whole(name: str, format_: str, rows: int) -> None:
    result = read(SHARED / name)
    assert (result.format, result.read) == (format_, rows)
    assert balanced(result)
    assert not any(example.answer.endswith("<|endoftext|>") for example in result.examples)
