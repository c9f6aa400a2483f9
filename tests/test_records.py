"""Records come back as they were written, and a broken line is named."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from spintune.errors import RunError
from spintune.records import (
    ROLES,
    Answer,
    Completion,
    Example,
    Message,
    Pair,
    ToolCall,
    plain_example,
    plain_message,
    read_records,
    write_records,
)

# every code point that UTF-8 can hold: line separators, controls, private use, emoji, right-to-left, combining
text = st.text(st.characters(exclude_categories=["Cs"]))
ids = st.lists(st.integers(0, 2**31)).map(tuple)
number = st.floats(allow_nan=False, allow_infinity=False)
calls = st.lists(st.builds(ToolCall, text, text, text)).map(tuple)
plain_messages = st.builds(Message, st.sampled_from(["system", "user", "assistant"]), text)
rich_messages = st.builds(Message, st.sampled_from(ROLES), text, text, calls, text, text, st.booleans())
messages = plain_messages | rich_messages
examples = st.builds(Example, st.lists(messages, min_size=1).map(tuple), text, st.lists(text).map(tuple))
completions = st.builds(Completion, ids, text, st.sampled_from(["stop", "length"]), number)
scores = st.none() | number
answers = st.builds(Answer, ids, text, st.booleans(), scores, scores)
generated = st.lists(answers).map(tuple)
pairs = st.builds(Pair, text, ids, answers, generated, st.none() | answers, text, number)


@given(rows=st.one_of(st.lists(examples), st.lists(completions), st.lists(pairs)))
def test_records_come_back_equal(rows: list[Any], tmp_path_factory: Any) -> None:
    path = tmp_path_factory.mktemp("records") / "x.jsonl"
    write_records(path, rows)
    assert path.read_bytes().count(b"\n") == len(rows)
    assert read_records(path, type(rows[0]) if rows else Example) == rows


def test_odd_texts_come_back_and_keep_one_line_each(tmp_path: Path) -> None:
    odd = [
        "",
        "a\u2028b\u2029c\x85d",
        "\x00\x1b\x7f",
        "\r\n\t",
        "e\u0301 \U0001f469\u200d\U0001f680 \u202eabc",
        "\ufeff",
    ]
    rows = [Example((Message("user", "q"), Message("assistant", content))) for content in odd]
    write_records(tmp_path / "x.jsonl", rows)
    assert [row.answer for row in read_records(tmp_path / "x.jsonl", Example)] == odd


def test_what_a_plain_message_lacks_stays_out_of_the_file_and_of_its_id(tmp_path: Path) -> None:
    plain = Example((Message("user", "q"), Message("assistant", "a")), "x:1")
    write_records(tmp_path / "x.jsonl", [plain])
    row = b'{"messages":[{"role":"user","content":"q"},{"role":"assistant","content":"a"}],"source":"x:1"}\n'
    assert (tmp_path / "x.jsonl").read_bytes() == row
    # the id of earlier versions, by which cached tokens and answers of old run folders are found
    assert plain.id == hashlib.sha256(b'[["user","q"],["assistant","a"]]').hexdigest()[:16]


def test_reasoning_calls_tools_and_training_are_part_of_the_id() -> None:
    def example(tools: tuple[str, ...] = (), **fields: Any) -> Example:
        return Example((Message("user", "q"), Message("assistant", "a", **fields)), tools=tools)

    call = (ToolCall("f", "{}"),)
    all_of_them = [
        example(),
        example(reasoning="r"),
        example(tool_calls=call),
        example(trained=False),
        example(("{}",)),
    ]
    assert len({one.id for one in all_of_them}) == 5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "invalid json"),
        (b"[]", ""),
        (b"null", ""),
        (b"3", ""),
        (b'{"messages": [{"role": "user"}]}', "content"),
        (b'{"source": "x"}', "messages"),
    ],
)
def test_a_line_that_is_no_record_is_named_with_what_to_do(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "x.jsonl"
    write_records(path, [Example((Message("user", "q"), Message("assistant", "a")))] * 2)
    path.write_bytes(path.read_bytes() + line + b"\n")
    with pytest.raises(RunError, match=rf"x\.jsonl:3: not a Example record .*({reason}).*; delete the file"):
        read_records(path, Example)


def test_a_pair_with_a_missing_or_unknown_field_is_named(tmp_path: Path) -> None:
    pair = dataclasses.asdict(Pair("id", (1,), Answer((2,), "a", True, -1.5), (Answer((3,), "b", False, -2.5),)))
    answer = pair["real"] | {"more": 1}
    for row in (pair | {"real": answer}, pair | {"generated": [answer]}, {"prompt_ids": [], "real": pair["real"]}):
        import json

        (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
        with pytest.raises(RunError, match=r"x\.jsonl:1"):
            read_records(tmp_path / "x.jsonl", Pair)


def test_writing_that_fails_half_way_keeps_the_old_file(tmp_path: Path) -> None:
    row = Example((Message("user", "q"), Message("assistant", "a")))
    write_records(tmp_path / "x.jsonl", [row])

    def failing() -> Any:
        yield row
        raise ValueError("the source broke")

    with pytest.raises(ValueError, match="the source broke"):
        write_records(tmp_path / "x.jsonl", failing())
    assert read_records(tmp_path / "x.jsonl", Example) == [row]
    assert [path.name for path in tmp_path.iterdir()] == ["x.jsonl"]


def test_an_example_is_known_by_its_conversation_alone() -> None:
    turns = (Message("user", "q"), Message("assistant", "a"))
    assert Example(turns, "here:1").id == Example(turns, "there:2").id
    others = [
        (Message("user", "qa"), Message("assistant", "")),
        (Message("system", "q"), Message("assistant", "a")),
        (Message("user", "q"), Message("user", ""), Message("assistant", "a")),
    ]
    assert len({Example(turns).id, *(Example(other).id for other in others)}) == 4


@given(example=examples)
def test_prompt_and_answer_are_the_conversation(example: Example) -> None:
    assert [m.content for m in example.prompt] + [example.answer] == [m.content for m in example.messages]


def test_an_id_that_was_asked_for_is_not_stored(tmp_path: Path) -> None:
    row = Example((Message("user", "q"), Message("assistant", "a")), "here:1")
    write_records(tmp_path / "before.jsonl", [row])
    assert len(row.id) == 16
    write_records(tmp_path / "after.jsonl", [row])
    assert (tmp_path / "after.jsonl").read_bytes() == (tmp_path / "before.jsonl").read_bytes()


def test_records_are_frozen() -> None:
    for record in (Message("user", "q"), Completion((1,), "a", "stop", -1.0)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            record.content = "other"  # type: ignore[misc, union-attr]


def test_a_plain_message_is_a_message() -> None:
    plain, whole = plain_message("user", "Hi"), Message("user", "Hi")
    assert plain == whole
    assert (hash(plain), orjson.dumps(plain), repr(plain)) == (hash(whole), orjson.dumps(whole), repr(whole))
    assert (plain.reasoning, plain.tool_calls, plain.trained) == ("", (), True)
    for source in ("", "f:1"):
        made, example = plain_example((plain, plain), source), Example((whole, whole), source)
        assert (made, made.id, orjson.dumps(made), made.tools) == (example, example.id, orjson.dumps(example), ())
