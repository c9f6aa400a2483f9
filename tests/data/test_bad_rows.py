"""Rows that cannot be read: all are counted, the first ten are named, and on request they are dropped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from data_files import ROW, Notes, error, errors, json_lines, numbered, read

from spintune.data.sources import Source, read_sources
from spintune.errors import RecipeError
from spintune.recipe import parse_recipe
from spintune.stages.data import read_data

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
CHAT = {"messages": [USER, ASSISTANT]}


def lines(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Path:
    path = folder / name
    path.write_bytes(b"".join(row if isinstance(row, bytes) else json_lines([row]) for row in rows))
    return path


def test_one_bad_row_is_one_line(tmp_path: Path) -> None:
    path = lines(tmp_path, [ROW, {"instruction": "a"}, *numbered(1, 2)])
    assert error(path) == f"{path}:2: a row without an answer ('output' is missing); fill it in or delete the row"


def test_bad_rows_are_counted_to_the_end_and_the_first_ten_named(tmp_path: Path) -> None:
    path = lines(tmp_path, [ROW, b"{\n", {"instruction": "a"}, *numbered(*range(2000)), *[{**ROW, "output": 5}] * 20])
    found = errors(path)
    assert len(found) == 10
    assert found[0] == (
        f"{path}:2: not valid JSON (unexpected end of data, column 1); fix or delete the row "
        "(the first of 22 bad rows of 2,023; on_bad_row: drop leaves them out)"
    )
    assert found[1] == f"{path}:3: a row without an answer ('output' is missing); fill it in or delete the row"
    assert found[2:] == [f"{path}:{number}: 'output' is a number, not a text; quote it" for number in range(2004, 2012)]


def test_rows_that_are_all_bad_are_an_error_even_if_they_may_be_dropped(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"instruction": "a"}, {"instruction": "b"}])
    for policy in ("stop", "drop"):
        found = errors(path, format="alpaca", on_bad_row=policy)
        assert len(found) == 2
        assert found[0].endswith("(the first of 2 bad rows of 2; no row can be read)")
    path = lines(tmp_path, [{"instruction": "a"}])
    assert error(path, format="alpaca", on_bad_row="drop").startswith(f"{path}:1: a row without an answer")


@pytest.mark.parametrize(
    ("good", "bad", "reason"),
    [
        (ROW, b'{"instruction": "a", "output": b}\n', "invalid_json"),
        (ROW, b'{"instruction": "caf\xe9", "output": "b"}\n', "not_utf8"),
        (ROW, [1], "no_object"),
        (ROW, None, "no_object"),
        (ROW, b'{"instruction": "a", "output": "b", "output": "c"}\n', "repeated_key"),
        (CHAT, b'{"messages": [{"role": "user", "role" : "system", "content": "a"}]}\n', "repeated_key"),
        (ROW, {"instruction": "a"}, "missing_answer"),
        (ROW, {"instruction": "a", "output": None}, "missing_answer"),
        (ROW, {"output": "a"}, "missing_prompt"),
        (ROW, {**ROW, "output": 5}, "wrong_type"),
        (ROW, {**ROW, "input": {}}, "wrong_type"),
        (CHAT, {"messages": [{"role": "wizard", "content": "x"}, ASSISTANT]}, "unknown_role"),
        (CHAT, {"messages": [USER]}, "missing_answer"),
        (CHAT, {"messages": [ASSISTANT]}, "missing_prompt"),
        (CHAT, {"messages": [{"content": "Hi"}, ASSISTANT]}, "missing_role"),
    ],
)
def test_a_dropped_row_is_counted_by_its_reason(tmp_path: Path, good: Any, bad: Any, reason: str) -> None:
    path = lines(tmp_path, [good, bad, good])
    notes = Notes()
    result = read(path, notes, on_bad_row="drop")
    assert result.dropped == {reason: 1, "duplicate": 1}
    assert [example.source for example in result.examples] == [f"{path}:1"]
    assert (result.read, len(notes.lines)) == (3, 1)
    assert notes.lines[0].startswith(f"{path}: dropped 1 of 3 rows (1 {reason}); the first is {path}:2: ")


def test_a_row_is_dropped_whole(tmp_path: Path) -> None:
    good = {"instruction": "Add.", "instances": [{"input": "1 1", "output": "2"}, {"input": "2 2", "output": "4"}]}
    bad = {"instruction": "Sub.", "instances": [{"input": "1 1", "output": "0"}, {"input": "2 2"}]}
    result = read(lines(tmp_path, [good, bad]), on_bad_row="drop")
    assert [example.answer for example in result.examples] == ["2", "4"]
    assert (result.read, result.dropped) == (3, {"missing_answer": 1})


def test_the_format_is_recognised_behind_lines_that_are_no_rows(tmp_path: Path) -> None:
    path = lines(tmp_path, [{"question": "a", "answer": "b"}, *[b"{\n"] * 30, {"question": "c", "answer": "d"}])
    assert read(path, on_bad_row="drop").dropped == {"invalid_json": 30}
    path = lines(tmp_path, [*[b"{\n"] * 30, {"question": "c", "answer": "d"}], "many.jsonl")
    # nothing at the beginning tells that these are lines: the file may be one damaged document
    assert errors(path)[0].startswith(f"{path}:1: not valid JSON (")


def test_a_key_that_occurs_twice_is_named(tmp_path: Path) -> None:
    """JSON readers take the last and say nothing, so one of two answers would be lost in silence."""
    path = lines(tmp_path, [ROW, b'{"instruction": "a", "output": "yes", "output": "no"}\n'])
    assert error(path) == (
        f"{path}:2: the key 'output' occurs twice in an object, and only one of its values can be read; keep one"
    )
    document = tmp_path / "rows.json"
    document.write_text('[{"instruction": "a", "output": "yes", "output": "no"}]')
    assert error(document).startswith(f"{document}: the key 'output' occurs twice in an object")
    # quotes, colons and backslashes in texts make no keys
    odd = [
        {"instruction": 'a "b": "b": \\', "output": '\\\\": " : "x" :'},
        {"instruction": '{"k": 1, "k": 2}', "output": "b\\"},
    ]
    assert len(read(lines(tmp_path, [json.dumps(row).encode() + b"\n" for row in odd])).examples) == 2


def test_a_damaged_document_stops(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([ROW], indent=1)[:-5])
    assert error(path, on_bad_row="drop").startswith(f"{path}:4: not valid JSON (")


def test_counts_of_several_sources_add_up(tmp_path: Path) -> None:
    first = lines(tmp_path, [ROW, {"instruction": "a"}, {**ROW, "output": ""}], "first.jsonl")
    second = lines(tmp_path, [ROW, *numbered(1), b"{\n"], "second.jsonl")
    collection = read_sources([Source(str(first), on_bad_row="drop"), Source(str(second), on_bad_row="drop")], 0)
    assert collection.dropped == {"missing_answer": 1, "empty_answer": 1, "duplicate": 1, "invalid_json": 1}
    assert len(collection.examples) + collection.dropped.total() == collection.read == 6


def test_held_out_rows_are_repeated_by_no_weight(tmp_path: Path) -> None:
    """Of 10 rows three times each, 2 are held out, once: 24 + 2 = 10 + 16."""
    data = {"train": {"path": str(lines(tmp_path, numbered(*range(10)))), "weight": 3}, "eval_fraction": 0.2}
    facts = read_data(parse_recipe({"model": "m", "out": "o", "data": data}, "test"), None).facts
    assert (facts.train, facts.heldout, facts.read, facts.repeated) == (24, 2, 10, 16)


def test_a_recipe_says_what_to_do_for_all_sources_or_for_one(tmp_path: Path) -> None:
    path = str(lines(tmp_path, [ROW, b"{\n"]))
    base = {"model": "m", "out": "o"}

    def dropped(data: dict[str, Any]) -> dict[str, int]:
        return read_data(parse_recipe({**base, "data": data}, "test"), None).facts.dropped

    assert dropped({"train": path, "on_bad_row": "drop"}) == {"invalid_json": 1}
    assert dropped({"train": {"path": path, "on_bad_row": "drop"}}) == {"invalid_json": 1}
    assert dropped({"train": {"path": path, "on_bad_row": "drop"}, "on_bad_row": "stop"}) == {"invalid_json": 1}
    assert "on_bad_row" in parse_recipe({**base, "data": {"train": path}}, "test").identity()["data"]
    with pytest.raises(RecipeError, match=r"data\.on_bad_row: "):
        parse_recipe({**base, "data": {"train": path, "on_bad_row": "ignore"}}, "test")
